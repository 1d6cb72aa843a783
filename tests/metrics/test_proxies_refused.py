"""Batches and settings that TokenProxies refuses, and tokens that it leaves out."""

import math
import warnings

import pytest
import torch

from lightning_pce import TokenProxies, proxy_names
from lightning_pce.metrics import proxies
from lightning_pce.tokens.statistics import token_statistics
from tests.helpers.metric_states import state_of
from tests.helpers.proxies_by_hand import (
    COUNTERS,
    COUNTS,
    V,
    assert_close,
    by_hand,
    exact_statistics,
    proxies_of,
    small_batch,
)


def test_where_all_weights_are_0_tokens_count_alike():
    logits = torch.zeros(1, 2, 3)
    logits[0, 0, 0] = logits[0, 1, 1] = 2000.0  # sure, rightly and wrongly
    result = proxies_of((logits, torch.tensor([[0, 0]]))).compute()
    assert result["top1_entropy"] == 0.5  # all entropies are 0
    assert result["top1_probability"] == 1.0  # not all probabilities are
    assert result["top1_disagreement"] == 0.0
    assert result["ce_gaussian"] == pytest.approx(0.0)
    only_wrong = proxies_of((logits[:, 1:], torch.tensor([[0]]))).compute()
    assert only_wrong["ce_probability"] == only_wrong["ce_gaussian"] == 2000


def test_weights_too_small_for_a_float_count_alike():
    logits = torch.zeros(1, 2, 2)
    logits[..., 1] = torch.tensor([39.0, 39.1])  # the kernel gives about 1e-314
    result = proxies_of((logits, torch.tensor([[0, 0]]))).compute()
    assert result["ce_gaussian"].item() == pytest.approx(39.05, rel=1e-6)


def test_a_target_of_probability_0_makes_the_ce_infinite_where_it_has_weight():
    logits, labels = small_batch(ignored=0)
    logits[0, 0, labels[0, 0]] = -math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric = proxies_of((logits, labels), small_batch(1))
        result = metric.compute()
    assert result["ce_uniform"] == result["ce_inverse_frequency"] == math.inf
    assert result["ce_uniform_se"].isnan()
    others = [name for name in proxy_names() if not name.startswith("ce_")]
    finite = [*others, "ce_probability", "ce_gaussian"]
    assert all(result[name].isfinite() and result[f"{name}_se"].isfinite() for name in finite)
    metric.update(*small_batch(2))
    assert metric.compute()["ce_uniform"] == math.inf


def test_a_token_of_nan_is_left_out_and_counted_in_a_single_warning():
    logits, labels = small_batch(ignored=0)
    logits[0, 2] = math.nan
    logits[1] = math.nan
    metric = proxies_of((logits, labels))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = metric.compute()
        metric.compute()
    (message,) = [str(warning.message) for warning in caught]
    assert "TokenProxies: 10 tokens had a statistic that was NaN" in message
    logits[0, 2] = 0.0
    labels[0, 2] = -100
    left = by_hand(logits[[0, 2, 3]], labels[[0, 2, 3]])
    assert_close(result, left | {"nan": 10}, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("form", ["logits", "statistics"])
def test_an_invalid_label_where_the_host_may_not_look_is_left_out_and_counted(monkeypatch, form):
    logits, labels = small_batch(ignored=0)

    def as_on_an_accelerator(logits, labels, **settings):
        found = token_statistics(logits, labels.clamp(max=V - 1), **settings)
        return found._replace(valid=found.valid & (labels < V), invalid=labels >= V)

    monkeypatch.setattr(proxies, "token_statistics", as_on_an_accelerator)
    wrong = labels.clone()
    wrong[0, 0] = wrong[2, 3] = wrong[2, 8] = V
    metric = TokenProxies(last_n=6, vocabulary=V)
    if form == "logits":
        metric.update(logits, wrong)
    else:
        metric.update(labels=wrong, statistics=as_on_an_accelerator(logits, wrong))
    with pytest.warns(UserWarning, match="2 tokens were left out because their label was impossible"):
        result = metric.compute()
    # The last six of a sequence are looked at, and impossible ones among them left out.
    left = torch.where((wrong == V) | (torch.arange(9) < 3), -100, wrong)
    assert_close(result, by_hand(logits, left) | {"invalid": 2}, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("form", ["corpus", "other labels", "other labels, corpus"])
def test_where_the_host_may_not_look_foreign_ids_are_left_out_and_counted(monkeypatch, form):
    monkeypatch.setattr(proxies, "may_look", lambda _: False)
    logits, labels = small_batch(ignored=0)
    labels[0, :2] = V - 1
    counts = {"corpus": COUNTS[:-1], "other labels": None, "other labels, corpus": COUNTS}[form]
    metric = TokenProxies(vocabulary=V, token_counts=counts)
    strange = int((labels == V - 1).sum())
    seen = torch.where(labels == V - 1, -100, labels)
    metric.update(labels=labels if form == "corpus" else seen, statistics=exact_statistics(logits, labels))
    with pytest.warns(UserWarning, match="label was impossible"):
        result = metric.compute()
    wanted = by_hand(logits, seen, token_counts=counts)
    assert_close(result, wanted | {"invalid": strange}, rtol=1e-12)


def test_an_empty_metric_gives_nan_and_counts_of_0():
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        result = TokenProxies().compute()
    assert all(value.isnan() for name, value in result.items() if name not in COUNTERS)
    assert [result[name] for name in COUNTERS] == [0, 0, 0, 0]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_an_empty_batch_changes_nothing(shape):
    metric = proxies_of(
        small_batch(), small_batch(1, shape), (torch.zeros(2, 4, V), torch.full((2, 4), -100))
    )
    twin = proxies_of(small_batch())
    assert torch.equal(state_of(metric), state_of(twin))


LOGITS, LABELS = small_batch(ignored=0)
FOUND = token_statistics(LOGITS, LABELS)
BAD = {
    "nothing": ("labels", {}),
    "no labels": ("labels", {"logits": LOGITS}),
    "labels alone": ("logits", {"labels": LABELS}),
    "logits and statistics": ("statistics", {"logits": LOGITS, "labels": LABELS, "statistics": FOUND}),
    "flattened": ("labels", {"logits": LOGITS.flatten(0, 1), "labels": LABELS.flatten()}),
    "mismatched shapes": ("labels", {"logits": LOGITS, "labels": LABELS[:, 1:]}),
    "float labels": ("labels", {"logits": LOGITS, "labels": LABELS.float()}),
    "list of labels": ("labels", {"logits": LOGITS, "labels": LABELS.tolist()}),
    "integer logits": ("logits", {"logits": LOGITS.long(), "labels": LABELS}),
    "label beyond the vocabulary": ("labels", {"logits": LOGITS, "labels": LABELS + V}),
    "negative label": ("labels", {"logits": LOGITS, "labels": LABELS - V}),
    "label beyond the corpus": ("labels", {"logits": torch.zeros(4, 9, V + 5), "labels": LABELS + 5}),
    "statistics without rank": ("statistics", {"labels": LABELS, "statistics": FOUND._replace(rank=None)}),
    "statistics of another shape": (
        "statistics",
        {"labels": LABELS, "statistics": FOUND._replace(ce=FOUND.ce[:, 1:])},
    ),
    "valid of another dtype": (
        "statistics",
        {"labels": LABELS, "statistics": FOUND._replace(valid=FOUND.valid.long())},
    ),
    "a tensor as statistics": ("statistics", {"labels": LABELS, "statistics": FOUND.ce}),
    "statistics of other labels": (
        "statistics",
        {"labels": torch.where(torch.arange(9) < 2, -100, LABELS), "statistics": FOUND},
    ),
}


@pytest.mark.parametrize("call", ["update", "forward"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name_and_leaves_the_state_as_it_was(case, call):
    name, arguments = BAD[case]
    metric, twin = (proxies_of(small_batch(), vocabulary=V, token_counts=COUNTS) for _ in range(2))
    before = state_of(metric).clone()
    with pytest.raises(ValueError, match=f"`{name}`"):
        getattr(metric, call)(**arguments)
    assert torch.equal(state_of(metric), before)
    metric.update(*small_batch(1))
    twin.update(*small_batch(1))
    assert torch.equal(state_of(metric), state_of(twin))


def test_statistics_need_to_know_the_vocabulary():
    with pytest.raises(ValueError, match="`vocabulary`"):
        TokenProxies().update(labels=LABELS, statistics=FOUND)


def test_statistics_with_another_shift_are_noticed():
    metric = TokenProxies(shift=True, vocabulary=V)
    with pytest.raises(ValueError, match="shift=True"):
        metric.update(labels=LABELS, statistics=FOUND)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("last_n", 0),
        ("last_n", 2.5),
        ("last_n", True),
        ("vocabulary", 0),
        ("inverse", "inverse"),
        ("gaussian_width", 0.0),
        ("gaussian_width", math.nan),
        ("gaussian_center", math.inf),
        ("token_counts", [1.5, 2.0]),
        ("token_counts", [1, -2]),
    ],
)
def test_impossible_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        TokenProxies(**{name: value})
