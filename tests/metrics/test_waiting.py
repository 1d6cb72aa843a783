"""Values wait before they are sorted; nobody who looks at a metric may notice."""

import copy
import io
import math
import operator
import warnings

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import MetricCollection
from torchmetrics.utilities.exceptions import TorchMetricsUserError
from torchmetrics.wrappers import MetricTracker, Running

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles
from lightning_pce import digest as td
from tests.helpers.casts_and_copies import COPIES
from tests.helpers.distributions import exact_quantile
from tests.helpers.processes import run_ranks

V = 13
INF, NAN = math.inf, math.nan
CLASSES = [PercentileCrossEntropy, StreamingQuantiles]


def losses_of(seed=0, n=40):
    return 1 + 5 * torch.rand(n, generator=torch.Generator().manual_seed(seed))


def add(metric, values, **more):
    metric.update(**{"losses" if isinstance(metric, PercentileCrossEntropy) else "values": values}, **more)


def fed(*seeds, cls=StreamingQuantiles, **settings_):
    metric = cls(**settings_)
    for seed in seeds:
        add(metric, losses_of(seed))
    return metric


def waits(metric):
    """Whether values wait: then the state is not there until somebody asks for it."""
    return not set(metric._defaults) & set(vars(metric))


def state_of(metric):
    (state,) = metric.metric_state.values()
    return state


def name_of(metric):
    (name,) = metric._defaults
    return name


def assert_holds(metric, *seeds):
    """The metric has seen these batches and nothing else, each as often as it is named."""
    values = torch.cat([losses_of(seed) for seed in seeds]).double() if seeds else torch.empty(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = metric.compute()
    assert result["count"] == len(values)
    if seeds:
        torch.testing.assert_close(result["mean"], values.mean(), rtol=1e-12, atol=0)
        torch.testing.assert_close(result["p50"], exact_quantile(values, 0.5), rtol=1e-12, atol=0)
        torch.testing.assert_close(result["p95"], exact_quantile(values, 0.95), rtol=1e-12, atol=0)
    assert td.count(metric.digest) == len(values)


# ----------------------------------------------------------------------------------- values wait, and count


@pytest.mark.parametrize("cls", CLASSES)
def test_values_wait_until_somebody_asks_for_the_state(cls):
    metric = cls()
    assert not waits(metric)
    for seed in range(3):
        add(metric, losses_of(seed))
        assert waits(metric)
    assert_holds(metric, 0, 1, 2)
    assert not waits(metric)
    add(metric, losses_of(3))
    assert waits(metric)
    assert_holds(metric, 0, 1, 2, 3)


LOOKS = {
    "compute": lambda metric: metric.compute(),
    "digest": lambda metric: metric.digest,
    "group_digests and digest": lambda metric: (metric.group_digests, metric.digest),
    "metric_state": lambda metric: metric.metric_state,
    "attribute": lambda metric: getattr(metric, name_of(metric)),
    "to": lambda metric: metric.to("cpu"),
    "view": lambda metric: metric.view("p50").compute(),
}


@pytest.mark.parametrize("look", LOOKS)
def test_whoever_looks_sees_what_waits_and_looking_twice_adds_nothing(look):
    metric = fed(0)
    for seed in (1, 2):
        assert waits(metric)
        LOOKS[look](metric)
        assert not waits(metric)
        before = state_of(metric)
        LOOKS[look](metric)
        assert torch.equal(state_of(metric), before)
        add(metric, losses_of(seed))
    assert_holds(metric, 0, 1, 2)


def test_a_hash_makes_nothing_enter_and_does_not_change_when_it_does():
    metric = fed(0)
    before = hash(metric)
    assert waits(metric)
    add(metric, losses_of(1))
    assert_holds(metric, 0, 1)
    assert hash(metric) == before


def test_the_state_is_that_of_a_metric_that_never_waited():
    metric, eager = fed(0, 1, 2), StreamingQuantiles()
    for seed in range(3):
        add(eager, losses_of(seed))
        assert state_of(eager).dtype == torch.float64
        assert td.count(state_of(eager)) == 40 * (seed + 1)
    torch.testing.assert_close(state_of(metric), state_of(eager), rtol=1e-15, atol=0)
    assert state_of(metric) is state_of(metric)


def test_an_unknown_attribute_is_still_unknown_while_values_wait():
    metric = fed(0)
    with pytest.raises(AttributeError, match="digest_of_somebody"):
        operator.attrgetter("digest_of_somebody")(metric)
    assert not hasattr(metric, "nothing")
    assert waits(metric)


def forwarded(metric, seen, seed):
    assert metric(losses_of(seed))["count"] == 40
    return metric, [*seen, seed]


def merged(metric, seen, seed):
    metric.merge_state(fed(seed, 100 + seed))
    return metric, [*seen, seed, 100 + seed]


def looked_at(metric, seen, seed):
    assert td.count(state_of(metric)) == 40 * len(seen)
    return metric, seen


def refused(metric, seen, seed):
    with pytest.raises(ValueError, match="`weights`"):
        metric.update(losses_of(seed), torch.ones(3))
    return metric, seen


STEPS = {
    "update": lambda metric, seen, seed: (metric.update(losses_of(seed)), (metric, [*seen, seed]))[1],
    "compute": lambda metric, seen, seed: (metric.compute() if seen else None, (metric, seen))[1],
    "reset": lambda metric, seen, seed: (metric.reset(), (metric, []))[1],
    "copy": lambda metric, seen, seed: (copy.deepcopy(metric), seen),
    "move": lambda metric, seen, seed: (metric.to("cpu").half(), seen),
    "forward": forwarded,
    "merge": merged,
    "look": looked_at,
    "refuse": refused,
}


@settings(max_examples=40)
@given(steps=st.lists(st.sampled_from(list(STEPS)), max_size=14))
def test_any_order_of_calls_gives_what_was_added_since_the_last_reset(steps):
    metric, seen = StreamingQuantiles(), []
    for seed, step in enumerate(steps):
        metric, seen = STEPS[step](metric, seen, seed)
    assert_holds(metric, *seen)


# --------------------------------------------------------------------------------------- the list is emptied


def test_the_list_is_emptied_after_so_many_updates():
    metric = StreamingQuantiles()
    for _ in range((1 << 10) - 1):
        metric.update(1.0)
    assert waits(metric)
    metric.update(2.0)
    assert not waits(metric)
    metric.update(3.0)
    assert waits(metric)
    result = metric.compute()
    assert result["count"] == 1025
    assert result["mean"] == 1028 / 1025


def test_the_list_is_emptied_after_so_many_values():
    metric, piece = StreamingQuantiles(), torch.zeros(1 << 14)
    metric.update(piece)
    while waits(metric) and metric.update_count < 64:
        metric.update(piece)
    number = metric.update_count
    assert 1 < number < 64
    metric.update(torch.ones(number << 14))
    assert not waits(metric)
    metric.update(1.0)
    assert waits(metric)
    assert metric.compute()["count"] == 2 * (number << 14) + 1
    assert metric.compute()["mean"].item() == pytest.approx(0.5, rel=1e-4)


def test_twenty_thousand_updates_of_one_value_are_all_counted_and_few_are_kept():
    metric = StreamingQuantiles(percentiles=(50,))
    values = torch.arange(20_000.0)
    longest = 0
    for value in values[torch.randperm(20_000, generator=torch.Generator().manual_seed(0))]:
        metric.update(value)
        longest = max(longest, len(metric._waiting))
    assert longest < 1 << 10
    result = metric.compute()
    assert metric.update_count == result["count"] == 20_000
    assert result["mean"] == 9999.5
    assert abs(result["p50"] - 9999.5) <= 20_000 * 7e-4


def test_empty_batches_wait_too_and_add_nothing():
    metric = StreamingQuantiles()
    for _ in range(1100):
        metric.update([])
    metric.update(losses_of(0))
    metric.update(torch.empty(0), torch.empty(0))
    assert_holds(metric, 0)


def test_nothing_but_empty_batches_is_an_empty_metric():
    metric = StreamingQuantiles()
    metric.update([])
    metric.update(torch.empty(0, 3), torch.empty(0, 3, dtype=torch.bool))
    assert torch.equal(state_of(metric), td.empty(1024))
    metric = StreamingQuantiles(groups=("a", "b"))
    metric.update([], group=torch.empty(0, dtype=torch.long))
    assert torch.equal(state_of(metric), td.empty(1024, shape=(2,)))


# --------------------------------------------------------------------------------------- forward and compute


def test_forward_between_updates_gives_its_own_batch_and_keeps_what_waits():
    metric = fed(0, 1)
    assert waits(metric)
    result = metric(losses_of(2))
    assert result["count"] == 40
    torch.testing.assert_close(result["p50"], exact_quantile(losses_of(2), 0.5), rtol=1e-12, atol=0)
    add(metric, losses_of(3))
    assert_holds(metric, 0, 1, 2, 3)
    assert metric.update_count == 4


def test_updates_after_compute_are_in_the_next_one():
    metric = fed(0)
    for seed in range(1, 4):
        metric.compute()
        add(metric, losses_of(seed))
    assert_holds(metric, 0, 1, 2, 3)


def test_a_view_sees_what_waits():
    metric = fed(0)
    views = [metric.view("count"), metric.view("mean")]
    assert views[0].compute() == 40
    add(metric, losses_of(1))
    assert waits(metric)
    assert views[0].compute() == 80
    assert views[1].compute() == metric.compute()["mean"]


def test_update_and_mean_waits_and_has_its_mean_at_once():
    metric = PercentileCrossEntropy()
    for seed in range(3):
        mean = metric.update_and_mean(losses=losses_of(seed).requires_grad_())
        assert waits(metric)
        assert mean.item() == pytest.approx(losses_of(seed).mean().item())
        assert mean.requires_grad
    assert_holds(metric, 0, 1, 2)
    assert metric.update_count == 3


# -------------------------------------------------------------------------------------------- what is added


def test_tensors_overwritten_after_update_have_been_copied():
    metric = PercentileCrossEntropy(groups=("a", "b"))
    own = {
        "losses": losses_of(0).double(),
        "mask": torch.arange(40) < 30,
        "weights": 1 + torch.arange(40.0) % 3,
        "group": torch.arange(40) % 2,
    }
    before = {name: tensor.clone() for name, tensor in own.items()}
    metric.update(**own)
    for tensor in own.values():
        tensor.zero_()
    twin = PercentileCrossEntropy(groups=("a", "b"))
    twin.update(**before)
    result = metric.compute()
    assert all(torch.equal(value, result[key]) for key, value in twin.compute().items())
    assert result["count"] == before["weights"][:30].sum()
    assert result["b_count"] == before["weights"][1:30:2].sum()
    assert result["mean"] > 1


def test_a_number_and_an_expanded_tensor_overwritten_after_update_have_been_copied():
    metric, one = StreamingQuantiles(groups=("a", "b")), torch.tensor([2.0])
    group = torch.tensor(0)
    metric.update(one.expand(7), group=group)
    one.fill_(9)
    group.fill_(1)
    result = metric.compute()
    assert result["a_count"] == 7
    assert result["a_p50"] == 2


def test_a_buffer_that_is_filled_again_and_again_gives_every_filling():
    metric, buffer = PercentileCrossEntropy(), torch.empty(40)
    for seed in range(6):
        metric.update(losses=buffer.copy_(losses_of(seed)))
    buffer.fill_(NAN)
    assert_holds(metric, *range(6))


def test_values_without_weights_with_a_mask_and_with_numbers_wait_together():
    values, mask, numbers = losses_of(0), torch.arange(40) % 3 > 0, torch.arange(40) % 4
    forms = [None, mask, numbers, numbers.double() / 2, numbers.half(), numbers.bool(), None]
    metric, eager = StreamingQuantiles(), StreamingQuantiles()
    for weights in forms:
        metric.update(values, weights)
        eager.update(values, weights)
        eager.compute()
    assert waits(metric)
    torch.testing.assert_close(metric.compute(), eager.compute(), rtol=1e-12, atol=0)
    total = sum(40 if each is None else each.double().sum().item() for each in forms)
    assert metric.compute()["count"] == total


def test_what_a_mask_leaves_out_is_not_counted_as_nan_nor_invalid():
    metric = StreamingQuantiles()
    values, mask = losses_of(0), torch.arange(40) % 3 > 0
    metric.update(torch.where(mask, values, NAN), mask)
    metric.update(values)
    weights = td.centroids(metric.digest)[1]
    assert weights.sort(descending=True).values[:40].tolist() == [2.0] * 26 + [1.0] * 14
    result = metric.compute()
    assert result["nonfinite"] == result["invalid"] == 0
    assert result["count"] == 26 + 40


def test_values_of_several_dtypes_that_wait_together_are_kept_as_they_are():
    metric = StreamingQuantiles()
    parts = [
        torch.tensor([0.1, 1.0], dtype=torch.float32),
        torch.tensor([0.1, 1 + 1e-12], dtype=torch.float64),
        torch.tensor([0.1], dtype=torch.bfloat16),
        torch.tensor([0.1], dtype=torch.float16),
        torch.tensor([2**53 - 1]),
    ]
    for part in parts:
        metric.update(part)
    assert waits(metric)
    means, weights, _ = td.centroids(metric.digest)
    wanted = torch.cat([part.double() for part in parts]).unique()
    assert torch.equal(means[weights > 0], wanted)
    assert metric.compute()["count"] == 7


def test_values_of_an_8_bit_dtype_wait_with_others():
    metric = StreamingQuantiles()
    metric.update(torch.tensor([1.0, 2.0]))
    metric.update(torch.tensor([3.0]).to(torch.float8_e4m3fn))
    metric.update(torch.tensor([4.0, 5.0]))
    assert metric.compute()["count"] == 5
    assert metric.compute()["p50"] == 3


def test_nan_and_infinities_wait_and_are_counted_and_warned_of_once():
    metric = StreamingQuantiles()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metric.update([1.0, NAN, INF])
        metric.update([NAN, -INF])
        assert not caught
        result = metric.compute()
    assert result["nonfinite"] == 4
    assert result["count"] == 3
    assert sorted("NaN" in str(warning.message) for warning in caught) == [False, True]


@pytest.mark.parametrize("first", ["inference", "normal"])
@pytest.mark.parametrize("weighted", [False, True])
def test_updates_in_inference_mode_and_out_of_it_wait_together(first, weighted):
    metric = PercentileCrossEntropy()
    modes = [first == "inference", first != "inference"] * 2
    for seed, inference in enumerate(modes):
        with torch.inference_mode(inference):
            weights = torch.ones(40) if weighted else None
            metric.update(losses=losses_of(seed), weights=weights)
    assert waits(metric)
    assert_holds(metric, 0, 1, 2, 3)
    with torch.inference_mode():
        metric.update(losses=losses_of(4))
        metric.compute()
    metric.update(losses=losses_of(5))
    assert_holds(metric, 0, 1, 2, 3, 4, 5)
    with torch.inference_mode():
        metric.update(losses=losses_of(6))
    metric.reset()
    metric.update(losses=losses_of(7))
    assert_holds(metric, 7)


def test_what_waits_keeps_no_graph():
    metric = PercentileCrossEntropy()
    metric.update_and_mean(torch.randn(2, 5, V, requires_grad=True), torch.zeros(2, 5, dtype=torch.long))
    metric.update(losses=losses_of(0).requires_grad_())
    assert not any(each.values.requires_grad for each in metric._waiting)
    assert not state_of(metric).requires_grad


# ------------------------------------------------------------------------------------------------- refused

REFUSED = {
    "shape of the weights": {"values": torch.ones(3), "weights": torch.ones(2)},
    "negative weights": {"values": torch.ones(3), "weights": -torch.ones(3)},
    "no numbers": {"values": "abc"},
    "complex": {"values": torch.ones(3, dtype=torch.complex64)},
    "a group": {"values": torch.ones(3), "group": torch.zeros(3, dtype=torch.long)},
    "values without data": {"values": torch.ones(3, device="meta")},
    "sparse values": {"values": torch.tensor([0.0, 1.0]).to_sparse()},
    "weights elsewhere": {"values": torch.ones(3, device="meta"), "weights": torch.ones(3)},
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("call", ["update", "forward"])
@pytest.mark.parametrize("waiting", [True, False])
def test_a_refused_batch_leaves_state_and_waiting_values_as_they_were(case, call, waiting):
    metric = fed(0, 1)
    if not waiting:
        metric.compute()
    with pytest.raises((ValueError, RuntimeError)):  # of torch, where it is not the metric that refuses
        getattr(metric, call)(**REFUSED[case])
    add(metric, losses_of(2))
    assert_holds(metric, 0, 1, 2)
    metric.reset()
    add(metric, losses_of(3))
    assert_holds(metric, 3)


def test_a_refused_batch_leaves_a_metric_usable_that_has_seen_nothing():
    metric = StreamingQuantiles()
    with pytest.raises(RuntimeError):
        metric.update(torch.tensor([0.0, 1.0]).to_sparse())
    assert torch.equal(state_of(metric), td.empty(1024))


@pytest.mark.parametrize("call", ["update", "update_and_mean", "forward"])
def test_impossible_labels_leave_waiting_losses_as_they_were(call):
    metric = fed(0, 1, cls=PercentileCrossEntropy)
    with pytest.raises(ValueError, match="`labels`"):
        getattr(metric, call)(torch.zeros(2, 3, V), torch.full((2, 3), V))
    assert_holds(metric, 0, 1)


# ------------------------------------------------------------------------------------------ reset and copies


@pytest.mark.parametrize("computed_before", [False, True])
def test_reset_forgets_what_waits_and_nothing_comes_back(computed_before):
    metric = fed(0)
    if computed_before:
        metric.compute()
        add(metric, losses_of(1))
    assert waits(metric)
    metric.reset()
    assert not waits(metric)
    assert torch.equal(state_of(metric), td.empty(1024))
    assert_holds(metric)
    add(metric, losses_of(2))
    assert_holds(metric, 2)
    metric.reset()
    metric.reset()
    assert_holds(metric)


ALL_COPIES = COPIES | {"copy": copy.copy}


@pytest.mark.parametrize("how", ALL_COPIES)
@pytest.mark.parametrize("groups", [None, ("a", "b")])
def test_a_copy_of_a_metric_with_waiting_values_goes_its_own_way(how, groups):
    more = {} if groups is None else {"group": 1}
    metric = StreamingQuantiles(groups=groups)
    metric.update(losses_of(0), **more)
    metric.compute()
    metric.update(losses_of(1), **more)
    assert waits(metric)
    clone = ALL_COPIES[how](metric)
    clone.update(losses_of(2), **more)
    metric.update(losses_of(3), **more)
    metric.update(losses_of(4), **more)
    assert_holds(clone, 0, 1, 2)
    assert_holds(metric, 0, 1, 3, 4)
    clone.reset()
    assert_holds(clone)
    assert_holds(metric, 0, 1, 3, 4)


def test_torch_save_holds_what_waits():
    metric, file = fed(0, 1), io.BytesIO()
    torch.save(metric, file)
    file.seek(0)
    assert_holds(torch.load(file, weights_only=False), 0, 1)


def test_the_state_dict_of_a_persistent_metric_holds_what_waits():
    metric, other = fed(0, 1), fed(2)
    for each in (metric, other):
        each.persistent(True)
        assert waits(each)
    (saved,) = metric.state_dict().values()
    assert td.count(saved) == 80
    other.load_state_dict(metric.state_dict())  # what waited in the other is replaced, as a state is
    assert not waits(other)
    assert_holds(other, 0, 1)
    add(other, losses_of(3))
    assert_holds(other, 0, 1, 3)
    assert_holds(metric, 0, 1)
    assert td.count(saved) == 80


def test_loading_a_module_that_saves_no_state_keeps_what_waits():
    metric = fed(0)
    module = torch.nn.ModuleDict({"metric": metric, "layer": torch.nn.Linear(2, 2)})
    module.load_state_dict(module.state_dict())
    add(metric, losses_of(1))
    assert_holds(metric, 0, 1)


def test_a_state_assigned_from_outside_takes_the_place_of_what_waits():
    metric, other = fed(0, 1), fed(2)
    setattr(metric, name_of(metric), state_of(other))
    assert_holds(metric, 2)
    add(metric, losses_of(3))
    assert_holds(metric, 2, 3)


# -------------------------------------------------------------------------------------- merging and moving


@pytest.mark.parametrize("form", ["metric", "dict"])
@pytest.mark.parametrize("settled", ["neither", "this", "other"])
def test_merge_state_takes_what_waits_on_both_sides(form, settled):
    metric, other = fed(0, 1), fed(2, 3)
    if settled != "neither":
        {"this": metric, "other": other}[settled].compute()
    metric.merge_state(other if form == "metric" else other.metric_state)
    assert_holds(metric, 0, 1, 2, 3)
    assert_holds(other, 2, 3)
    add(metric, losses_of(4))
    add(other, losses_of(5))
    assert_holds(metric, 0, 1, 2, 3, 4)
    assert_holds(other, 2, 3, 5)


def test_merge_state_that_is_refused_keeps_what_waits():
    metric = fed(0, 1)
    for other in (fed(2, percentiles=(50,)), {"nothing": torch.zeros(3)}, fed(2).compute()):
        with pytest.raises(ValueError):
            metric.merge_state(other)
    add(metric, losses_of(2))
    assert_holds(metric, 0, 1, 2)


MOVES = {
    "to cpu": lambda module: module.to("cpu"),
    "half": lambda module: module.half(),
    "double": lambda module: module.double(),
    "bfloat16": lambda module: module.bfloat16(),
    "to(float16)": lambda module: module.to(torch.float16),
    "set_dtype": lambda module: module["metric"].set_dtype(torch.bfloat16),
    "train and eval": lambda module: module.train().eval(),
    "requires_grad_": lambda module: module.requires_grad_(False),
}


@pytest.mark.parametrize("move", MOVES)
def test_moves_and_casts_lose_nothing_that_waits_nor_its_precision(move):
    metric = StreamingQuantiles()
    module = torch.nn.ModuleDict({"metric": metric, "layer": torch.nn.Linear(2, 2)})
    metric.update(torch.tensor([1 + 1e-12, 2 + 1e-12], dtype=torch.float64))
    MOVES[move](module)
    metric.update(torch.tensor([3 + 1e-12], dtype=torch.float64))
    MOVES[move](module)
    assert state_of(metric).dtype == torch.float64
    assert metric.compute()["p50"] == 2 + 1e-12
    assert metric.compute()["count"] == 3


def test_what_waits_on_the_meta_device_is_not_there_on_the_cpu():
    with torch.device("meta"):
        metric = PercentileCrossEntropy()
        metric.update(losses=torch.empty(40))
    assert waits(metric)
    metric = metric.to_empty(device="cpu")
    metric.update(losses=losses_of(0))
    assert_holds(metric, 0)


# ------------------------------------------------------------------------------------------ sync by hand


def doubled(metric):
    metric.sync(dist_sync_fn=lambda state, group=None: [state, state], distributed_available=lambda: True)


def test_a_sync_by_hand_takes_what_waits_and_unsync_brings_it_back_once():
    metric = fed(0, 1)
    assert waits(metric)
    doubled(metric)
    assert td.count(state_of(metric)) == 160
    metric.unsync()
    assert td.count(state_of(metric)) == 80
    add(metric, losses_of(2))
    assert_holds(metric, 0, 1, 2)


def test_what_came_while_synced_is_gone_after_unsync():
    metric = fed(0)
    doubled(metric)
    add(metric, losses_of(1))
    assert waits(metric)
    metric.unsync()
    assert not waits(metric)
    assert_holds(metric, 0)
    add(metric, losses_of(2))
    assert_holds(metric, 0, 2)


def test_forward_of_a_synced_metric_is_refused_and_unsync_still_works():
    metric = fed(0)
    doubled(metric)
    with pytest.raises(TorchMetricsUserError, match="synced"):
        metric(losses_of(1))
    metric.unsync()
    add(metric, losses_of(2))
    assert_holds(metric, 0, 2)


def test_reset_of_a_synced_metric_with_waiting_values_forgets_all():
    metric = fed(0)
    doubled(metric)
    add(metric, losses_of(1))
    metric.reset()
    add(metric, losses_of(2))
    assert_holds(metric, 2)
    with pytest.raises(TorchMetricsUserError):
        metric.unsync()


# ------------------------------------------------------------------------------ collections and wrappers


def test_a_collection_of_equal_metrics_is_right_after_two_updates():
    collection = MetricCollection({"a": StreamingQuantiles(), "b": StreamingQuantiles()})
    for seed in range(2):
        collection.update(values=losses_of(seed))
    result = collection.compute()
    assert len(collection.compute_groups) == 1
    assert result["a_count"] == result["b_count"] == 80
    collection.update(values=losses_of(2))
    for metric in collection.values():
        assert_holds(metric, 0, 1, 2)
    collection.reset()
    for seed in range(3, 5):
        collection.update(values=losses_of(seed))
    for name in ("a", "b"):
        assert_holds(collection[name], 3, 4)


def test_a_collection_of_metrics_that_differ_lets_each_wait():
    collection = MetricCollection({"a": StreamingQuantiles(), "b": StreamingQuantiles(compression=512)})
    for seed in range(3):
        collection.update(values=losses_of(seed))
    assert len(collection.compute_groups) == 2
    for metric in collection.values(copy_state=False):
        assert waits(metric)
        assert_holds(metric, 0, 1, 2)


def test_a_collection_without_compute_groups_lets_each_wait():
    collection = MetricCollection(
        {"a": StreamingQuantiles(), "b": StreamingQuantiles()}, compute_groups=False
    )
    for seed in range(3):
        collection.update(values=losses_of(seed))
    copied = copy.deepcopy(collection)
    collection.update(values=losses_of(3))
    for metric in collection.values():
        assert_holds(metric, 0, 1, 2, 3)
    for metric in copied.values():
        assert_holds(metric, 0, 1, 2)


def test_a_member_that_was_updated_alone_follows_its_collection_again():
    collection = MetricCollection({"a": StreamingQuantiles(), "b": StreamingQuantiles()})
    collection.update(values=losses_of(0))
    add(collection["b"], losses_of(1))  # and waits
    collection.update(values=losses_of(2))  # shares the state of the first member, as torchmetrics does
    assert_holds(collection["b"], 0, 2)
    add(collection["b"], losses_of(3))
    assert_holds(collection._modules["b"], 0, 2, 3)


def test_forward_of_a_collection_gives_the_batch_and_keeps_what_waits():
    collection = MetricCollection({"a": StreamingQuantiles(), "b": StreamingQuantiles()})
    collection.update(values=losses_of(0))
    collection.update(values=losses_of(1))
    result = collection(values=losses_of(2))
    assert result["a_count"] == result["b_count"] == 40
    for metric in collection.values():
        assert_holds(metric, 0, 1, 2)


def test_running_and_tracker_see_what_waits():
    running, tracker = Running(StreamingQuantiles(), window=2), MetricTracker(PercentileCrossEntropy())
    tracker.increment()
    for seed in range(3):
        running.update(losses_of(seed))
        tracker.update(losses=losses_of(seed))
    assert running.compute()["count"] == 80
    assert tracker.compute()["count"] == 120
    tracker.increment()
    tracker.update(losses=losses_of(3))
    assert tracker.compute_all()["count"].tolist() == [120, 40]


# ---------------------------------------------------------------------------------------------- two ranks


def waiting_on_one_rank(rank, _):
    metric = PercentileCrossEntropy()
    add(metric, losses_of(rank))
    if rank == 1:
        state_of(metric)
        add(metric, losses_of(2))
        assert waits(metric)
    else:
        state_of(metric)
        assert not waits(metric)
    calls, original = [], dist.all_gather

    def counting(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    dist.all_gather = counting
    try:
        first = metric.compute()
    finally:
        dist.all_gather = original
    if rank == 0:
        add(metric, losses_of(3))
    second = metric.compute()
    metric.sync()
    synced = td.count(state_of(metric))
    metric.unsync()
    add(metric, losses_of(4 + rank))
    own = td.count(state_of(metric))
    return {"first": first, "second": second, "calls": calls, "synced": synced, "own": own}


def test_values_that_wait_on_one_rank_only_are_in_the_result_of_both():
    ranks = run_ranks(waiting_on_one_rank, 2, timeout=60)
    for name, seeds in {"first": (0, 1, 2), "second": (0, 1, 2, 3)}.items():
        values = torch.cat([losses_of(seed) for seed in seeds]).double()
        for outcome in ranks:
            assert outcome[name]["count"] == len(values)
            torch.testing.assert_close(outcome[name]["p50"], exact_quantile(values, 0.5), rtol=1e-12, atol=0)
        first, second = (torch.stack(list(outcome[name].values())).view(torch.int64) for outcome in ranks)
        assert torch.equal(first, second)
    assert [outcome["calls"] for outcome in ranks] == [[1], [1]]
    assert [outcome["synced"] for outcome in ranks] == [160, 160]
    assert [outcome["own"] for outcome in ranks] == [120, 120]
