"""A damaged history of figures in a checkpoint never ends a run: one warning, and an empty history."""

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_pce import PercentileCECallback, PercentileFigures
from lightning_pce.reports.plot import fan_chart, new_axes
from tests.helpers.lit_modules import LitLM, Oracle, Returning, fit, make_loader, make_trainer
from tests.integrations.lightning.test_figures import assert_looks_like, images

KEYS = {PercentileFigures: "lightning_pce.PercentileFigures", PercentileCECallback: "PercentileCECallback"}
WHOLE = {"history": {"val": {4: (1.5, {5.0: 0.1, 50.0: 1.0}), 8: (1.25, {50.0: math.nan})}, "val_dl0": {}}}
DAMAGED = {
    "nothing": None,
    "list": [],
    "text": "history",
    "history none": {"history": None},
    "history list": {"history": [1, 2]},
    "summaries none": {"history": {"val": None}},
    "summary none": {"history": {"val": {4: None}}},
    "summary number": {"history": {"val": {4: 1.5}}},
    "summary short": {"history": {"val": {4: (1.5,)}}},
    "summary long": {"history": {"val": {4: (1.5, {}, {})}}},
    "values list": {"history": {"val": {4: (1.5, [1.0])}}},
    "value text": {"history": {"val": {4: (1.5, {50.0: "1.0"})}}},
    "value none": {"history": {"val": {4: (1.5, {50.0: None})}}},
    "percentile text": {"history": {"val": {4: (1.5, {"50": 1.0})}}},
    "mean text": {"history": {"val": {4: ("1.5", {50.0: 1.0})}}},
    "mean huge": {"history": {"val": {4: (10**400, {50.0: 1.0})}}},
    "step text": {"history": {"val": {"4": (1.5, {50.0: 1.0})}}},
    "step none": {"history": {"val": {None: (1.5, {50.0: 1.0})}}},
    "step bool": {"history": {"val": {True: (1.5, {50.0: 1.0})}}},
    "prefix number": {"history": {1: {4: (1.5, {50.0: 1.0})}}},
    "records list": {"history": {}, "records": [1]},
    "record short": {"history": {}, "records": {"val": [(0, 1)]}},
    "record of a batch in words": {"history": {}, "records": {"val": [(0, "1", 1.5, {50.0: 1.0})]}},
    "one of two": {"history": {"val": {4: (1.5, {50.0: 1.0}), 8: (1.5, None)}}},
}


def checkpoint(tmp_path, kind):
    """Of a run of two epochs."""
    module, callback = (LitLM(), kind()) if kind is PercentileFigures else (Returning(), kind())
    trainer = fit(tmp_path, module, callback, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    return torch.load(tmp_path / "two.ckpt"), callback


@pytest.mark.parametrize("kind", KEYS)
def test_a_run_goes_on_from_a_checkpoint_whose_history_is_damaged(tmp_path, kind):
    whole, _ = checkpoint(tmp_path, kind)
    for state in ({"history": None}, DAMAGED["one of two"], [1]):
        damaged = copy.deepcopy(whole)
        damaged["callbacks"][KEYS[kind]] = state
        torch.save(damaged, tmp_path / "damaged.ckpt")
        module, callback = (LitLM(), kind()) if kind is PercentileFigures else (Returning(), kind())
        trainer = make_trainer(tmp_path, callback, max_epochs=4)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(module, make_loader(2, 1), make_loader(3, 2), ckpt_path=tmp_path / "damaged.ckpt")
        assert [str(each.message).endswith("are damaged.") for each in caught].count(True) == 1
        assert list(callback.state_dict()["history"]["val"]) == [6, 8]


@pytest.mark.parametrize("kind", KEYS)
def test_a_whole_history_comes_back_without_a_word(tmp_path, kind):
    _, callback = checkpoint(tmp_path, kind)
    module, again = (LitLM(), kind()) if kind is PercentileFigures else (Returning(), kind())
    trainer = make_trainer(tmp_path, again, max_epochs=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*PercentileFigures")
        trainer.fit(module, make_loader(2, 1), make_loader(3, 2), ckpt_path=tmp_path / "two.ckpt")
    assert list(again.state_dict()["history"]["val"]) == [2, 4, 6]
    assert again.state_dict()["history"]["val"][4] == callback.state_dict()["history"]["val"][4]


@pytest.mark.parametrize("state", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("kind", KEYS)
def test_a_damaged_history_is_an_empty_one(kind, state):
    callback = kind()
    callback.load_state_dict(copy.deepcopy(state))
    assert callback.state_dict() == {"history": {}}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("state", [WHOLE, {}, {"history": {}}, {"history": {"val": {0: (1, {})}}}])
def test_what_state_dict_gives_is_taken(kind, state):
    callback = kind()
    callback.load_state_dict(copy.deepcopy(state))
    assert repr(callback.state_dict()["history"]) == repr(
        {
            prefix: {step: (float(mean), values) for step, (mean, values) in summaries.items()}
            for prefix, summaries in state.get("history", {}).items()
            if summaries
        }
    )


def test_validations_that_share_a_step_are_all_drawn_by_their_batches_and_come_back_after_a_resume(tmp_path):
    board = TensorBoardLogger(tmp_path, name="board", version=0)
    arguments = {"accumulate_grad_batches": 4, "val_check_interval": 1, "max_epochs": 2}
    whole, oracle = PercentileFigures(), Oracle()
    fit(tmp_path, LitLM(), whole, oracle, train=4, logger=board, **arguments)
    fit(
        tmp_path, LitLM(), first := PercentileFigures(), train=4, **{**arguments, "max_epochs": 1}
    ).save_checkpoint(tmp_path / "four.ckpt")
    make_trainer(tmp_path, again := PercentileFigures(), **arguments).fit(
        LitLM(), make_loader(4, 1), make_loader(3, 2), ckpt_path=tmp_path / "four.ckpt"
    )
    assert [batch for _, batch, *_ in first.state_dict()["records"]["val"]] == [1, 2, 3, 4]
    for callback in (whole, again):
        state = callback.state_dict()
        assert list(state["history"]["val"]) == [0, 1, 2]  # the last of each step, as ever
        steps, batches, means, _ = zip(*state["records"]["val"], strict=True)
        assert (steps, batches) == ((0, 0, 0, 1, 1, 1, 1, 2), tuple(range(1, 9)))
        assert list(means) == pytest.approx([float(losses.mean()) for losses, _ in oracle.single])
    runs = [losses.double() for losses, _ in oracle.single]
    bands = {p: [float(run.quantile(p / 100)) for run in runs] for p in (5, 25, 50, 75, 95, 99)}
    fan = fan_chart(range(1, 9), bands, [float(run.mean()) for run in runs], ax=new_axes(dpi=130))
    fan.set_xlabel("batches of training")
    fan.locator_params(axis="x", integer=True)
    assert_looks_like(images(board)["val_ce_fan"][2], fan, "val, step 2")


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
ANYTHING = st.recursive(
    PLAIN,
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.tuples(parts, parts)
        | st.dictionaries(PLAIN, parts, max_size=3)
        | st.fixed_dictionaries({"history": parts})
    ),
    max_leaves=12,
)


@given(ANYTHING | st.fixed_dictionaries({"history": st.dictionaries(st.text(max_size=3), ANYTHING)}))
def test_any_state_at_all_is_taken_and_given_again_as_plain_numbers(state):
    callback = PercentileFigures()
    callback.load_state_dict(state)
    history = callback.state_dict()["history"]
    for summaries in history.values():
        for step, (mean, values) in summaries.items():
            assert type(step) is int
            assert all(type(number) is float for number in (mean, *values, *values.values()))
