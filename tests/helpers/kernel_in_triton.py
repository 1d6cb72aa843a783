"""The tests that need Triton: on a GPU, or in its interpreter, which has to be chosen before it is imported.

`tests/tokens/test_triton.py` runs them in a process of their own.
"""

import pytest
import torch

from lightning_pce.tokens._log_prob_rows import gradient_of_one_label, row_log_prob
from lightning_pce.tokens.kernels import read_rows
from lightning_pce.tokens.kernels.triton import BLOCK, write_gradient
from lightning_pce.tokens.statistics import STATISTICS, token_cross_entropy, token_statistics
from tests.helpers.token_cases import VIEW_NAMES, VIEWS, assert_statistics, hard_rows, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def scored(logits, labels, **settings):
    stats = token_statistics(logits.to(DEVICE), labels.to(DEVICE), backend="triton", **settings)
    return type(stats)(*(None if value is None else value.cpu() for value in stats))


@pytest.mark.parametrize("scale_and_offset", [(4.0, 0.0), (30.0, -200.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [1, 2, 17, 1000, BLOCK, 3 * BLOCK + 905])
def test_every_statistic_of_hard_rows_is_that_of_float64(vocabulary, dtype, scale_and_offset):
    scale, offset = scale_and_offset
    logits, labels = hard_rows(vocabulary, dtype, scale=scale, offset=offset)
    before = logits.clone()
    assert_statistics(scored(logits, labels), reference(logits, labels))
    assert torch.equal(logits.nan_to_num(7.0), before.nan_to_num(7.0))


def test_a_large_vocabulary_loses_no_accuracy():
    logits, labels = hard_rows(262_144, torch.float32)
    assert_statistics(scored(logits[:1], labels[:1]), reference(logits[:1], labels[:1]))


@pytest.mark.parametrize("label", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 7])
def test_equal_logits_count_where_they_come_first_in_every_block(label):
    logits = torch.zeros(1, 2 * BLOCK + 8)
    assert scored(logits, torch.tensor([label])).rank.item() == label + 1


@pytest.mark.parametrize("rivals", [1, 50])
def test_cross_entropies_of_1e_minus_20_keep_their_relative_error(rivals):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(50, rivals + 1, generator=random)
    logits[:, 0] += torch.linspace(0, 80, 50)
    labels = torch.zeros(50, dtype=torch.long)
    expected = reference(logits, labels)["ce"]
    ce = scored(logits, labels, statistics=("ce",)).ce
    torch.testing.assert_close(ce.double(), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", STATISTICS)
def test_only_what_is_asked_for_is_returned(name):
    logits, labels = hard_rows(300, torch.float32)
    stats, everything = scored(logits, labels, statistics=(name,)), scored(logits, labels)
    for other in STATISTICS:
        value = getattr(stats, other)
        assert (value is None) == (other != name)
        if other == name:
            assert torch.equal(value.nan_to_num(-1), getattr(everything, other).nan_to_num(-1))


@pytest.mark.parametrize("view", VIEWS, ids=VIEW_NAMES)
def test_statistics_of_non_contiguous_logits_are_the_same(view):
    logits, labels = hard_rows(300, torch.float32)
    assert_statistics(scored(view(logits.to(DEVICE)), labels), reference(logits, labels))


@pytest.mark.parametrize("shape", [(0,), (0, 5), (2, 0)])
def test_an_empty_batch_has_empty_statistics(shape):
    stats = scored(torch.zeros(*shape, 61), torch.zeros(shape, dtype=torch.long))
    assert [tuple(value.shape) for value in stats] == [shape] * 7


def test_with_shift_the_last_position_does_not_count():
    logits, labels = torch.randn(2, 9, 300), torch.randint(0, 300, (2, 9))
    stats = scored(logits, labels, shift=True)
    losses, valid, _ = token_cross_entropy(logits, labels, shift=True)
    torch.testing.assert_close(stats.ce, losses, rtol=1e-6, atol=1e-6)
    assert torch.equal(stats.valid, valid)
    assert not valid[:, -1].any()


def test_float64_is_refused():
    with pytest.raises(ValueError, match=r"float64.*eager"):
        scored(torch.zeros(1, 5, dtype=torch.float64), torch.tensor([0]))


@pytest.mark.parametrize("view", [lambda logits: logits, lambda logits: logits.T.contiguous().T])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [1, 17, BLOCK, 2 * BLOCK + 905])
def test_gradients_are_those_of_float64_and_0_where_a_row_is_not_used(vocabulary, dtype, offset, view):
    random = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(6, vocabulary, generator=random) + offset).to(dtype)
    labels = torch.randint(0, vocabulary, (6,), generator=random)
    logits[0, vocabulary // 2 + 1 :] = -float("inf")
    labels[0] = 0
    labels[3] = -100
    rows = row_log_prob(read_rows(logits, labels, everything=False, backend="eager"))
    u = torch.randn(6, generator=random, dtype=torch.float64)
    part = gradient_of_one_label(rows.log_prob, labels, u, None)
    logits[3] = float("nan")
    given = view(logits.to(DEVICE))
    out = torch.full_like(logits, 7.0, device=DEVICE).contiguous()
    where = [each.to(DEVICE) for each in (rows.logsumexp, part.others, part.used)]
    write_gradient(given, *where, out)
    p = logits.double().softmax(-1)
    wanted = (-u[:, None] * p).masked_fill(labels[:, None] < 0, 0.0)
    # The interpreter cuts float32 off to bfloat16 where a GPU rounds.
    rounding = 2**-7 if dtype == torch.bfloat16 else 3e-6
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=rounding, atol=1e-30)
