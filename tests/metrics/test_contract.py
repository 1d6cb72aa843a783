"""What every Metric of the package promises; the cases are in ``tests/helpers/metric_contract.py``."""

import warnings
from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounter
from torchmetrics import Metric, MetricCollection, SumMetric

from lightning_pce import LabelTotals, metrics
from tests.helpers.casts_and_copies import CASTS
from tests.helpers.metric_contract import ALL_COPIES, CASES, as_dict, moved, results
from tests.helpers.metric_states import state_of
from tests.helpers.ranks import counted_collectives, run_function_on_ranks
from tests.helpers.summaries import assert_same_result

OTHERS = [(name, other) for name, case in CASES.items() for other in case.others]


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def assert_same(metric, twin, rtol=0.0):
    """The same state, to the bit unless a tolerance is given, and the same results."""
    if not rtol:
        assert torch.equal(state_of(metric), state_of(twin))
    assert_same_result(results(metric), results(twin), rtol)


def test_every_metric_of_the_package_has_a_case():
    names = [
        f"{metrics.__name__}.{each.name}" for each in iter_modules(metrics.__path__) if each.name[0] != "_"
    ]
    found = {
        each
        for name in names
        for each in vars(import_module(name)).values()
        if isinstance(each, type) and issubclass(each, Metric) and each.__module__ == name
    }
    assert {case.cls for case in CASES.values()} == found


# -------------------------------------------------------------------------------------------------- state


def test_the_state_is_one_float64_tensor_of_fixed_size_and_nothing_else_is_saved(case):
    metric = case.metric()
    shape = state_of(metric).shape
    for one in case.batches:
        metric.update(**one)
        assert state_of(metric).dtype == torch.float64
        assert state_of(metric).shape == shape
    metric.reset()
    assert state_of(metric).shape == shape
    assert metric.state_dict() == {}
    assert list(torch.nn.ModuleDict({"metric": metric}).state_dict()) == []
    assert list(metric.buffers()) == list(metric.parameters()) == []


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_of_the_module_never_touches_the_state(case, cast):
    metric, twin = case.metric(), case.metric()
    parent = torch.nn.ModuleDict({"metric": metric, "layer": torch.nn.Linear(2, 2)})
    for _ in range(2):  # the second works on what reset brings back
        CASTS[cast](parent)
        for one in case.batches:
            metric.update(**one)  # may wait, and is cast then
            CASTS[cast](parent)
            twin.update(**one)
            assert state_of(metric).dtype == torch.float64
            assert torch.equal(state_of(metric), state_of(twin))
        assert_same_result(*(as_dict(each(**case.batches[0])) for each in (metric, twin)))
        assert_same(metric, twin)
        metric.reset()
        twin.reset()


def on_meta(case, leave):
    with torch.device("meta"):
        parent = torch.nn.ModuleDict({"metric": case.metric(), "layer": torch.nn.Linear(2, 2)})
    assert state_of(parent["metric"]).is_meta
    return leave(parent)


def under_bfloat16(function):
    torch.set_default_dtype(torch.bfloat16)
    try:
        return function()
    finally:
        torch.set_default_dtype(torch.float32)


ORIGINS = {
    "meta, parent.to_empty": lambda case: on_meta(
        case, lambda parent: parent.to_empty(device="cpu")["metric"]
    ),
    "meta, metric.to_empty": lambda case: on_meta(
        case, lambda parent: parent["metric"].to_empty(device="cpu")
    ),
    "cpu, metric.to_empty": lambda case: case.metric().to_empty(device="cpu"),
    "default dtype bfloat16": lambda case: under_bfloat16(case.metric),
    "cast before it is used": lambda case: case.metric().to(torch.bfloat16),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_metric_counts_the_same_wherever_it_was_made(case, origin):
    metric, twin = ORIGINS[origin](case), case.metric()
    for _ in range(2):  # the second works on what reset brings back
        for one in case.batches:
            metric.update(**one)
            twin.update(**one)
        assert state_of(metric).device.type == "cpu"
        assert_same(metric, twin)
        metric.reset()
        twin.reset()


def test_default_dtype_bfloat16_during_update_and_compute_changes_nothing(case):
    metric, twin = case.metric(), case.metric(*case.batches)

    def use():
        for one in case.batches:
            metric.update(**one)
        return results(metric)

    assert_same_result(under_bfloat16(use), results(twin))
    under_bfloat16(metric.reset)
    assert state_of(metric).dtype == torch.float64


def test_on_an_accelerator_nothing_is_read_on_the_host_and_what_was_there_does_not_come_back(case):
    # On the meta device there is nothing to read: any .item() or data-dependent shape raises.
    with torch.device("meta"):
        metric = case.metric()
        for one in (*case.batches, case.nothing):
            metric.update(**moved(one, "meta"))
        result = as_dict(metric.compute())
        assert all(value.is_meta for value in result.values())
        assert all(value.is_meta for value in as_dict(case.metric().compute()).values())
    assert state_of(metric).is_meta
    metric.update(**moved(case.batches[0], "meta"))  # may wait, and is lost as the state is
    metric.to_empty(device="cpu")
    metric.update(**case.batches[1])
    assert_same(metric, case.metric(case.batches[1]))


# ------------------------------------------------------------------------------------- copies and merging


@pytest.mark.parametrize("how", ALL_COPIES)
@pytest.mark.parametrize("computed_before", [False, True])
def test_a_copy_has_the_same_content_and_goes_its_own_way(case, how, computed_before):
    first, second = case.batches
    metric = case.metric(first)
    if computed_before:
        results(metric)
    metric.update(**first)  # may wait
    clone = ALL_COPIES[how](metric)
    clone.update(**second)
    assert_same(metric, case.metric(first, first), rtol=1e-12)
    metric.update(**first)
    assert_same(clone, case.metric(first, first, second), rtol=1e-12)
    clone.reset()
    assert_same(metric, case.metric(first, first, first), rtol=1e-12)


@pytest.mark.parametrize("form", ["metric", "dict"])
@pytest.mark.parametrize("compute_with_cache", [False, True])
def test_merge_state_adds_the_other_and_leaves_no_stale_result(case, form, compute_with_cache):
    first, second = case.batches
    metric, other = case.metric(first, compute_with_cache=compute_with_cache), case.metric(second)
    results(metric)
    metric.merge_state(other if form == "metric" else other.metric_state)
    assert_same(metric, case.metric(first, second), rtol=1e-12)
    assert_same(other, case.metric(second))
    metric.update(**first)
    assert_same(metric, case.metric(first, second, first), rtol=1e-12)
    fresh = case.metric()
    fresh.merge_state(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # among others, that of compute before update
        assert_same(fresh, case.metric(second), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "other"), OTHERS, ids=lambda value: value if isinstance(value, str) else next(iter(value))
)
def test_metrics_of_other_settings_are_never_mixed(name, other):
    case = CASES[name]
    metric, stranger = case.metric(case.batches[0]), case.metric(case.batches[1], **other)
    with pytest.raises(ValueError, match="same settings"):
        metric.merge_state(stranger)
    with pytest.raises(ValueError, match="Expected a state"):
        metric.merge_state(stranger.metric_state)
    for each in (metric, stranger):
        each.persistent(True)
    for strict in (True, False):
        with pytest.raises(ValueError, match="Expected"):
            metric.load_state_dict(stranger.state_dict(), strict=strict)
    assert metric.update_count == 1
    assert_same(metric, case.metric(case.batches[0]))
    # torchmetrics joins metrics whose states are equal after a batch, as those of nothing are.
    collection = MetricCollection({"a": case.metric(), "b": case.metric(**other)})
    collection.update(**case.nothing)
    collection.update(**case.batches[0])
    assert len(collection.compute_groups) == 2
    assert_same(collection["a"], case.metric(case.nothing, case.batches[0]), rtol=1e-12)
    assert_same(collection["b"], case.metric(case.nothing, case.batches[0], **other), rtol=1e-12)


def test_nothing_but_a_metric_of_the_same_class_is_merged(case):
    metric, subclass = case.metric(case.batches[0]), type("Subclass", (case.cls,), {})
    others = [each.metric(each.batches[0]) for each in CASES.values() if each is not case]
    strangers = [subclass(**case.settings), SumMetric(), *others]
    states = [each.metric_state for each in strangers]
    wrong_size = {name: state[..., :-1] for name, state in case.metric().metric_state.items()}
    for other in [*strangers, *states, wrong_size, results(case.metric(case.batches[0])), {}, None]:
        with pytest.raises(ValueError):
            metric.merge_state(other)
    assert metric.update_count == 1
    assert_same(metric, case.metric(case.batches[0]))
    collection = MetricCollection({"a": case.metric(), "b": subclass(**case.settings)})
    collection.update(**case.batches[0])
    assert len(collection.compute_groups) == 2


def test_a_collection_updates_equal_metrics_once_and_all_are_right(case):
    collection = MetricCollection({"a": case.metric(), "b": case.metric()})
    for one in case.batches:
        collection.update(**one)
    assert len(collection.compute_groups) == 1  # so that the test of other settings can fail
    for metric in collection.values():
        assert_same(metric, case.metric(*case.batches), rtol=1e-12)
    collection.compute()
    collection.reset()
    collection.update(**case.batches[1])
    for metric in collection.values():
        assert_same(metric, case.metric(case.batches[1]))


# --------------------------------------------------------------------------------------------- state_dict


@pytest.mark.parametrize("used_before", [False, True])
def test_a_persistent_metric_is_saved_and_loaded(case, used_before):
    first, second = case.batches
    metric, other = case.metric(first), case.metric()
    if used_before:
        other.update(**second)
        results(other)
        other.update(**second)  # may wait
    for each in (metric, other):
        each.persistent(True)
    saved = metric.state_dict()
    assert len(saved) == len(case.collectives)
    other.load_state_dict(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # among others, that of compute before update
        assert_same(other, case.metric(first))
    other.update(**second)
    assert_same(metric, case.metric(first))
    assert_same(other, case.metric(first, second), rtol=1e-12)


@pytest.mark.parametrize("strict", [True, False])
def test_a_saved_state_of_another_size_is_refused(case, strict):
    metric = case.metric(case.batches[0])
    metric.persistent(True)
    wrong = {name: state[..., :-1] for name, state in metric.state_dict().items()}
    parent = torch.nn.ModuleDict({"metric": metric})
    with pytest.raises(ValueError, match="shape"):
        parent.load_state_dict({f"metric.{name}": state for name, state in wrong.items()}, strict=strict)
    assert_same(metric, case.metric(case.batches[0]))


def test_loading_a_module_that_saves_no_state_changes_nothing(case):
    metric = case.metric(case.batches[0])
    module = torch.nn.ModuleDict({"metric": metric, "layer": torch.nn.Linear(2, 2)})
    module.load_state_dict(module.state_dict())
    assert_same(metric, case.metric(case.batches[0]))


# --------------------------------------------------------------------------------------------------- calls


def test_forward_gives_the_batch_and_accumulates_like_update(case):
    forwarded, updated = case.metric(), case.metric()
    for one in (*case.batches, case.batches[0]):
        assert_same_result(as_dict(forwarded(**one)), results(case.metric(one)))
        updated.update(**one)
    assert_same(forwarded, updated, rtol=1e-12)
    assert forwarded.update_count == 3


@pytest.mark.parametrize("call", ["update", "forward"])
@pytest.mark.parametrize("computed_before", [False, True])
def test_a_refused_batch_leaves_the_state_as_it_was(case, call, computed_before):
    first, second = case.batches
    metric = case.metric(first)
    if computed_before:
        results(metric)
    with pytest.raises(ValueError, match="Expected"):
        getattr(metric, call)(**case.bad)
    assert_same(metric, case.metric(first))
    metric.update(**second)
    assert_same(metric, case.metric(first, second), rtol=1e-12)


def test_a_refused_batch_leaves_a_metric_usable_that_has_seen_nothing(case):
    metric = case.metric()
    with pytest.raises(ValueError, match="Expected"):
        metric.update(**case.bad)
    metric.update(**case.batches[0])
    assert_same(metric, case.metric(case.batches[0]))


def test_reset_forgets_everything(case):
    metric = case.metric(*case.batches)
    results(metric)
    metric.update(**case.batches[0])  # may wait
    for _ in range(2):
        metric.reset()
        assert torch.equal(state_of(metric), state_of(case.metric()))
        assert metric.update_count == 0
    metric.update(**case.batches[1])
    assert_same(metric, case.metric(case.batches[1]))


def test_an_empty_metric_and_one_that_saw_nothing_give_nan_counts_of_0_and_ids_of_minus_1(case):
    metric = case.metric()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        empty = as_dict(metric.compute())
    for value in empty.values():
        none = value == (0 if value.is_floating_point() else -1)
        assert (value.isnan() | none).all()
    assert any(value.isnan().any() for value in empty.values()) or case.cls is LabelTotals  # sums alone
    metric.update(**case.nothing)
    assert_same_result(results(metric), empty)
    metric.update(**case.batches[0])
    metric.update(**case.nothing)
    assert_same_result(results(metric), results(case.metric(case.batches[0])), rtol=1e-12)


@pytest.mark.parametrize("call", ["update", "forward"])
def test_what_was_made_in_inference_mode_can_be_used_in_normal_mode(case, call):
    first, second = case.batches
    metric = case.metric()
    with torch.inference_mode():
        getattr(metric, call)(**first)
        metric.compute()
        metric.update(**first)  # may wait
    getattr(metric, call)(**second)
    assert_same(metric, case.metric(first, first, second), rtol=1e-12)
    with torch.inference_mode():
        metric.reset()
    getattr(metric, call)(**first)
    assert_same(metric, case.metric(first))


def test_nothing_keeps_a_graph_or_changes_the_arguments(case):
    given = {
        name: value.clone().requires_grad_() if value.is_floating_point() else value.clone()
        for name, value in case.batches[0].items()
    }
    metric = case.metric(given)
    result = as_dict(metric(**given))
    assert not any(value.requires_grad for value in (*result.values(), *results(metric).values()))
    assert not state_of(metric).requires_grad
    assert all(torch.equal(value, case.batches[0][name]) for name, value in given.items())


def test_arguments_and_results_that_are_overwritten_later_change_nothing(case):
    given = {name: value.clone() for name, value in case.batches[0].items()}
    metric = case.metric(given)
    for value in given.values():
        value.zero_()
    assert_same(metric, case.metric(case.batches[0]))
    for value in as_dict(metric.compute()).values():
        value += 5
    assert_same(metric, case.metric(case.batches[0]))


@pytest.mark.parametrize("call", ["update", "forward"])
def test_a_compiled_step_is_not_compiled_again_and_again_nor_are_its_results_others(case, call):
    metric, twin, counter = case.metric(), case.metric(), CompileCounter()
    torch._dynamo.reset()

    @torch.compile(backend=counter)
    def step(x, arguments):
        x = x * 2
        getattr(metric, call)(**arguments)
        return x.sum()

    for _ in range(6):
        for one in case.batches:
            assert step(torch.ones(3), one) == 6
            twin.update(**one)
    torch._dynamo.reset()
    assert 1 <= counter.frame_count <= 2
    assert_same(metric, twin, rtol=1e-12)


# ---------------------------------------------------------------------------------------------- two ranks


def one_on_each_rank(case, rank):
    """What one of two ranks sees; rank 1 begins without a batch."""
    first, second = case.batches
    metric = case.metric(*([first, second] if rank == 0 else []))
    outcome, calls = {}, {}
    with counted_collectives() as calls["compute"]:
        outcome["uneven"] = as_dict(metric.compute())
    if rank == 1:  # rank 0 must not answer from a cache while rank 1 waits for it
        metric.update(**first)
    with counted_collectives() as calls["compute again"]:
        outcome["after one"] = as_dict(metric.compute())
    with counted_collectives() as calls["forward"]:
        batch = as_dict(metric(**case.batches[rank]))
    with counted_collectives() as calls["sync"]:
        metric.sync()
        metric.unsync()
    outcome["all"] = as_dict(metric.compute())
    metric.reset()
    outcome["nothing"] = as_dict(metric.compute())
    with counted_collectives() as calls["views"]:
        keys = outcome["all"] if hasattr(metric, "view") else ()
        viewed = {key: metric.view(key).compute() for key in keys}
    return {"outcome": outcome, "calls": calls, "batch": batch, "viewed": viewed}


def every_case(rank, _):
    return {name: one_on_each_rank(case, rank) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def two_ranks():
    return run_function_on_ranks(every_case, 2)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_agree_to_the_bit_on_what_one_would_give_by_one_collective_a_state(two_ranks, name):
    case = CASES[name]
    first, second = case.batches
    seen = {
        "uneven": (first, second),
        "after one": (first, second, first),
        "all": (first, second, first, first, second),
        "nothing": (case.nothing,),
    }
    ranks = [outcomes[name] for outcomes in two_ranks]
    for rank, outcome in enumerate(ranks):
        for when, batches in seen.items():
            alone = results(case.metric(*batches))
            assert_same_result(outcome["outcome"][when], alone, rtol=1e-12)
        assert_same_result(outcome["batch"], results(case.metric(case.batches[rank])))
        calls = outcome["calls"]
        once = list(case.collectives)
        assert [calls[what] for what in ("compute", "compute again", "sync")] == [once] * 3
        assert calls["forward"] == []
        assert calls["views"] == (once if outcome["viewed"] else [])
    for when in seen:
        bits = [[value.view(torch.int64) for value in each["outcome"][when].values()] for each in ranks]
        assert all(map(torch.equal, *bits))
