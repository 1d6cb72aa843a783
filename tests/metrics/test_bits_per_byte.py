import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_pce import BitsPerByte
from lightning_pce.metrics import bits_per_byte
from tests.helpers.metric_states import fed

SIZES = (0, 1, 4, 3, 0, 16, 2)
V = len(SIZES)


def scored_batch(seed=0, shape=(3, 11), ignored=0.3):
    random = torch.Generator().manual_seed(seed)
    losses = 8 * torch.rand(shape, generator=random)
    labels = torch.randint(V, shape, generator=random)
    return losses, labels, torch.rand(shape, generator=random) >= ignored


def by_hand(*batches):
    """Bits over bytes, one token after the other."""
    nats = size = 0.0
    for losses, labels, mask in batches:
        for loss, label, counts in zip(
            losses.flatten().tolist(), labels.flatten().tolist(), mask.flatten().tolist(), strict=True
        ):
            nats += loss if counts else 0.0
            size += SIZES[label] if counts else 0
    return nats / math.log(2) / size


def bits_of(*batches):
    return fed(BitsPerByte(SIZES), *batches)


def close(actual, expected):
    assert actual.dtype == torch.float64
    assert actual.ndim == 0
    assert actual.item() == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------------ results


def test_two_bytes_at_one_bit_each():
    metric = BitsPerByte(torch.tensor([0, 2]))
    metric.update(torch.tensor([2 * math.log(2)]), torch.tensor([1]))
    assert metric.compute().item() == pytest.approx(1.0, rel=1e-6)


def test_a_token_without_bytes_adds_its_loss_unless_it_is_masked():
    losses, labels = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 2, 0])
    close(bits_of((losses, labels)).compute(), 7 / math.log(2) / 5)
    table = torch.tensor(SIZES)
    close(bits_of((losses, labels, table[labels] > 0)).compute(), 3 / math.log(2) / 5)


def test_batches_of_different_length_are_no_mean_of_means():
    batches = [scored_batch(seed, (2, length)) for seed, length in enumerate([3, 40, 7])]
    close(bits_of(*batches).compute(), by_hand(*batches))


@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    ignored=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_any_split_gives_what_a_loop_gives(lengths, seed, ignored):
    batches = [scored_batch(seed + i, (length,), ignored) for i, length in enumerate(lengths)]
    metric, *others = [bits_of(one) for one in batches]
    for other in others:
        metric.merge_state(other)
    counted = torch.cat([one[2] for one in batches])
    labels = torch.cat([one[1] for one in batches])
    size = int((torch.tensor(SIZES)[labels] * counted).sum())
    assert metric.totals["bytes"] == size
    assert metric.totals["tokens"] == counted.sum()
    if size:
        close(metric.compute(), by_hand(*batches))
        close(bits_of(*batches).compute(), by_hand(*batches))
    else:
        assert metric.compute().isnan()


def test_masked_labels_may_be_anything():
    losses, labels, mask = scored_batch()
    metric = bits_of((losses, torch.where(mask, labels, -100), mask))
    close(metric.compute(), by_hand((losses, labels, mask)))
    assert metric.totals["invalid"] == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_and_tables_of_any_integer_dtype(dtype):
    losses, labels, mask = scored_batch()
    metric = BitsPerByte(torch.tensor(SIZES, dtype=dtype))
    metric.update(losses, labels.to(dtype), mask)
    close(metric.compute(), by_hand((losses, labels, mask)))


def test_bfloat16_losses_are_not_summed_in_bfloat16():
    losses, labels = torch.full((5000,), 1.0, dtype=torch.bfloat16), torch.ones(5000, dtype=torch.long)
    close(bits_of((losses, labels)).compute(), 1 / math.log(2))


def test_counts_beyond_2_to_the_24_are_exact():
    metric = BitsPerByte([2**40, 1])
    metric.update(torch.zeros(3), torch.tensor([0, 1, 1]))
    metric.update(torch.zeros(1), torch.tensor([1]))
    assert int(metric.totals["bytes"]) == 2**40 + 3


def test_nothing_and_tokens_without_bytes_alone_give_nan():
    assert bits_of((torch.tensor([3.0]), torch.tensor([0]))).compute().isnan()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert BitsPerByte(SIZES).compute().isnan()


def test_a_loss_that_is_nan_is_left_out_with_its_bytes_and_said_once():
    metric = bits_of((torch.tensor([1.0, math.nan, 2.0]), torch.tensor([1, 5, 2])))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        close(metric.compute(), 3 / math.log(2) / 5)
        metric.compute()
    (message,) = [str(warning.message) for warning in caught]
    assert "BitsPerByte: 1 losses were NaN" in message
    assert metric.totals["nan"] == 1


def test_an_infinite_loss_makes_the_result_infinite():
    metric = bits_of((torch.tensor([1.0, math.inf]), torch.tensor([1, 2])), scored_batch())
    assert metric.compute() == math.inf


def test_where_looking_would_make_the_host_wait_a_foreign_label_is_left_out_and_counted(monkeypatch):
    monkeypatch.setattr(bits_per_byte, "may_look", lambda _: False)  # as on an accelerator
    metric = bits_of((torch.tensor([1.0, 5.0, 7.0, 2.0]), torch.tensor([1, V, -1, 2])))
    with pytest.warns(UserWarning, match="2 tokens were left out because their label"):
        close(metric.compute(), 3 / math.log(2) / 5)
    assert metric.totals["invalid"] == 2
    assert metric.totals["tokens"] == 2


def test_update_on_an_accelerator_reads_nothing_on_the_host():
    # On the meta device there is nothing to read: any .item() or data-dependent shape raises.
    table = torch.tensor(SIZES)
    with torch.device("meta"):
        metric = BitsPerByte(table)
        losses, labels = torch.empty(2, 9), torch.empty(2, 9, dtype=torch.long)
        metric.update(losses, labels)
        metric.update(losses, labels, torch.empty(2, 9, dtype=torch.bool))
        assert metric.compute().is_meta
    metric.to_empty(device="cpu")
    metric.update(*scored_batch())
    close(metric.compute(), by_hand(scored_batch()))


# ---------------------------------------------------------------------------------------------- bad input

LOSSES, LABELS = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.long)
BAD = {
    "label beyond the table": ("labels", (LOSSES, LABELS * V)),
    "ignore_index without a mask": ("labels", (LOSSES, LABELS - 101)),
    "labels of another shape": ("labels", (LOSSES, LABELS[:1])),
    "float labels": ("labels", (LOSSES, LABELS.float())),
    "bool labels": ("labels", (LOSSES, LABELS > 0)),
    "list of labels": ("labels", (LOSSES, [[1, 1, 1], [1, 1, 1]])),
    "integer losses": ("losses", (LABELS, LABELS)),
    "mean-reduced loss": ("losses", (torch.tensor(2.0), LABELS)),
    "mask of another dtype": ("mask", (LOSSES, LABELS, LABELS)),
    "mask of another shape": ("mask", (LOSSES, LABELS, LABELS[0] > 0)),
}


@pytest.mark.parametrize("call", ["update", "forward"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name_and_leaves_the_state_as_it_was(case, call):
    name, arguments = BAD[case]
    metric = bits_of(scored_batch())
    (before,) = [state.clone() for state in metric.metric_state.values()]
    with pytest.raises(ValueError, match=f"`{name}`"):
        getattr(metric, call)(*arguments)
    (after,) = metric.metric_state.values()
    assert torch.equal(after, before)
    metric.update(*scored_batch(1))
    close(metric.compute(), by_hand(scored_batch(), scored_batch(1)))


def test_a_foreign_label_is_explained_by_the_table_and_the_mask():
    with pytest.raises(ValueError, match=r"\[0, 7\).*2 others, from -100 to 9.*mask=labels"):
        bits_of((torch.ones(3), torch.tensor([1, 9, -100])))


@pytest.mark.parametrize(
    "table", [[], [[1, 2]], [1.0, 2.0], [-1, 2], torch.tensor([True]), "ab", None, torch.tensor(3)]
)
def test_an_impossible_table_is_refused(table):
    with pytest.raises(ValueError, match="`token_bytes`"):
        BitsPerByte(table)


def test_a_table_without_content_is_refused():
    with pytest.raises(ValueError, match=r"`token_bytes`.*meta"):
        BitsPerByte(torch.ones(3, dtype=torch.long, device="meta"))


def test_the_table_is_not_that_of_the_caller():
    table = torch.tensor(SIZES)
    metric = BitsPerByte(table)
    table.zero_()
    metric.update(*scored_batch())
    close(metric.compute(), by_hand(scored_batch()))
