import pytest
import torch

from lightning_pce import token_statistics
from lightning_pce.tokens.top_tokens import top_and_rank


def logits_of(dtype, shape=(3, 200, 11)):
    """Of few values, so that the highest are often equal."""
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("strides", ["contiguous", "cut", "transposed", "expanded"])
def test_rows_by_index_whatever_the_strides(dtype, strides):
    logits = logits_of(dtype)
    logits = {
        "contiguous": logits,
        "cut": logits[:, 1:, 2:],
        "transposed": logits.transpose(0, 1),
        "expanded": logits[:1].expand(3, -1, -1),
    }[strides]
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(0, logits.shape[-1], logits.shape[:-1], generator=random)
    index = torch.randperm(labels.numel(), generator=random)[:300]  # more than one block of rows
    top, rank = top_and_rank(logits, index, labels.flatten()[index])
    expected = token_statistics(logits, labels, statistics=("rank",)).rank.flatten()[index]
    assert torch.equal(rank, expected)
    rows = logits.double().flatten(0, 1)[index]
    assert torch.equal(top, (rows == rows.amax(-1, keepdim=True)).int().argmax(-1))


def test_a_single_row_and_none():
    top, rank = top_and_rank(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0]), torch.tensor([2]))
    assert (top.tolist(), rank.tolist()) == ([1], [2])
    none = torch.empty(0, dtype=torch.long)
    for logits in (torch.zeros(0, 5, 3), torch.zeros(2, 5, 3)):
        assert [len(each) for each in top_and_rank(logits, none, none)] == [0, 0]


def test_on_an_accelerator_nothing_is_read_on_the_host():
    # On the meta device there is nothing to read: any .item() or data-dependent shape raises.
    with torch.device("meta"):
        index = torch.empty(7, dtype=torch.long)
        top, rank = top_and_rank(torch.empty(2, 5, 3), index, index)
    assert top.is_meta
    assert rank.shape == (7,)
