"""Truth over a proxy: points, bars, names and rho."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from lightning_pce._errors import UserError
from lightning_pce.reports.plot import new_axes, proxy_scatter
from lightning_pce.runs.ranking import ProxyTable
from tests.helpers.pictures import NAMES, crowded, words_of
from tests.helpers.proxy_populations import changed, population


@pytest.fixture(scope="module")
def table():
    return population(12, 2)


def points(ax):
    return {tuple(point) for point in ax.get_lines()[0].get_xydata()}


def test_each_model_is_a_point_with_its_bar_and_name(table):
    part = table.select(tasks=["t1"])
    ax = proxy_scatter(table, "p2", "t1")
    assert points(ax) == set(zip(part.column("p2"), part.truth, strict=True))
    bars = {tuple(round(float(x), 9) for x in bar[:, 0]) for bar in ax.collections[0].get_segments()}
    assert bars == {(round(x - 0.1, 9), round(x + 0.1, 9)) for x in part.column("p2").tolist()}
    rho = spearmanr(part.column("p2"), part.truth)[0]
    assert ax.get_title(loc="left") == f"t1: rho {rho:+.2f}, 12 models"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("p2", "truth")
    assert set(part.models) <= set(words_of(ax.figure))
    assert crowded(ax.figure) == []


def test_what_is_not_known_is_left_out_and_counted(table):
    values, truth, errors = table.values.copy(), table.truth.copy(), table.errors.copy()
    values[0, 0], truth[2], errors[4, 0] = math.inf, math.nan, math.nan
    ax = proxy_scatter(changed(table, values=values, truth=truth, errors=errors), "ce_uniform", "t0")
    assert len(points(ax)) == 10
    assert ax.get_title(loc="left").endswith(", 10 models (2 left out)")
    assert ax.get_xlabel() == "ce_uniform (nats)"
    assert not {"m0", "m1"} & set(words_of(ax.figure))


def test_no_model_one_and_a_proxy_that_is_the_same_of_all_have_no_rho():
    table = ProxyTable(["a", "b"], ["t", "t"], ["p"], [[1], [1]], truth=[0.1, 0.2])
    assert proxy_scatter(table, "p", "t").get_title(loc="left") == "t: no rho, 2 models"
    ax = proxy_scatter(table.select(models=["a"]), "p", "t")
    assert ax.get_title(loc="left") == "t: no rho, 1 model"
    unknown = changed(table, truth=[math.nan, math.nan])
    ax = proxy_scatter(unknown, "p", "t")
    assert ax.get_title(loc="left") == "t: no rho, 0 models (2 left out)"
    assert "no model with a proxy and a truth that are known" in words_of(ax.figure)


def test_many_models_have_no_names_and_odd_ones_are_drawn_as_written():
    many = population(40, 1)
    assert "m7" not in words_of(proxy_scatter(many, "p1", "t0").figure)
    odd = ProxyTable(
        NAMES, ["$t_1$"] * len(NAMES), ["$p^$"], np.arange(len(NAMES))[:, None], truth=range(len(NAMES))
    )
    ax = proxy_scatter(odd, "$p^$", "$t_1$", ax=new_axes())
    assert ax.get_title(loc="left") == f"$t_1$: rho +1.00, {len(NAMES)} models"
    assert "$x^{$" in words_of(ax.figure)


def test_what_there_is_not_is_refused(table):
    with pytest.raises(UserError, match="There is no task 't9'"):
        proxy_scatter(table, "p1", "t9")
    with pytest.raises(UserError, match="no proxy 'p99'"):
        proxy_scatter(table, "p99", "t0")
    styles = changed(table, styles=["x", "y"] * 12, tasks=["t"] * 24, truth=None)
    with pytest.raises(UserError, match="several styles"):
        proxy_scatter(styles, "p1", "t")
