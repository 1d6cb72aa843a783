"""token_statistics: values in float64, ranks, ties, layouts, modes."""

import pytest
import torch

from lightning_pce.tokens.kernels import triton_works
from lightning_pce.tokens.statistics import STATISTICS, token_cross_entropy, token_statistics
from tests.helpers.token_cases import (
    DTYPES,
    VIEW_NAMES,
    VIEWS,
    V,
    assert_statistics,
    hard_rows,
    message_of,
    reference,
    tokens,
)

BACKENDS = [
    "eager",
    pytest.param("compile", marks=pytest.mark.slow),
]  # Triton's are in test_triton


@pytest.mark.parametrize("scale_and_offset", [(4.0, 0.0), (1.0, 50.0), (30.0, -200.0)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_statistic_of_hard_rows_is_that_of_float64(backend, dtype, scale_and_offset):
    scale, offset = scale_and_offset
    for vocabulary in (1, 2, 17, 1000, 5003):
        logits, labels = hard_rows(vocabulary, dtype, scale=scale, offset=offset)
        before = logits.clone()
        stats = token_statistics(logits, labels, backend=backend)
        assert_statistics(stats, reference(logits, labels))
        assert torch.equal(stats.valid, labels != -100)
        assert not stats.invalid.any()
        assert torch.equal(logits.nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocabulary", [49_152, 262_144])
def test_large_vocabularies_lose_no_accuracy(vocabulary, backend):
    logits, labels = hard_rows(vocabulary, torch.float32)
    assert_statistics(token_statistics(logits, labels, backend=backend), reference(logits, labels))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rivals", [1, 50])
def test_cross_entropies_of_1e_minus_20_keep_their_relative_error(rivals, backend):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(200, rivals + 1, generator=random)
    logits[:, 0] += torch.linspace(0, 80, 200)
    labels = torch.zeros(200, dtype=torch.long)
    ce = token_statistics(logits, labels, statistics=("ce",), backend=backend).ce
    expected = reference(logits, labels)["ce"]
    assert expected.min() < 1e-30
    torch.testing.assert_close(ce.double(), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rank_is_1_exactly_where_the_label_is_the_argmax(dtype, backend):
    random = torch.Generator().manual_seed(0)
    logits = torch.randint(-3, 4, (64, 300), generator=random).to(dtype)  # ties in every row
    labels = torch.randint(0, 300, (64,), generator=random)
    labels[::2] = logits[::2].float().argmax(1)
    stats = token_statistics(logits, labels, backend=backend)
    assert torch.equal(stats.rank == 1, logits.float().argmax(1) == labels)
    assert torch.equal(stats.rank, reference(logits, labels)["rank"])
    top5 = torch.sort(logits.float(), dim=1, descending=True, stable=True).indices[:, :5]
    assert torch.equal(stats.rank <= 5, (top5 == labels[:, None]).any(1))
    assert (stats.margin[stats.rank == 1] == 0).all()


def test_what_has_no_distribution_or_does_not_count_is_among_no_top_k():
    logits = torch.zeros(4, V)
    logits[0, 0] = torch.nan
    logits[1] = -torch.inf
    logits[2, 0] = torch.inf
    stats = token_statistics(logits, torch.tensor([0, 0, 0, -100]))
    assert (stats.rank == V + 1).all()
    assert stats.ce[:3].isnan().all()
    assert stats.entropy[:3].isnan().all()
    assert stats.valid.tolist() == [True, True, True, False]


@pytest.mark.parametrize("name", STATISTICS)
def test_only_what_is_asked_for_is_returned(name):
    logits, labels = tokens(2, 9, ignored=0.3)
    stats, everything = token_statistics(logits, labels, statistics=(name,)), token_statistics(logits, labels)
    for other in STATISTICS:
        value = getattr(stats, other)
        if other == name:
            torch.testing.assert_close(value, getattr(everything, other), rtol=3e-7, atol=0)
        else:
            assert value is None
    assert stats.margin is None
    assert (stats.log_rank is None) == (name != "rank")


def test_margin_and_log_rank_follow_from_the_others():
    logits, labels = tokens(2, 9)
    stats = token_statistics(logits, labels)
    assert torch.equal(stats.margin, stats.max_prob - stats.target_prob)
    torch.testing.assert_close(stats.log_rank, stats.rank.double().log().float())


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 7])
def test_the_cross_entropy_and_its_mask_are_those_of_token_cross_entropy(shift, ignore_index):
    logits, labels = tokens(3, 33)
    labels[:, ::4] = ignore_index
    settings = {"ignore_index": ignore_index, "shift": shift}
    stats = token_statistics(logits, labels, statistics=("ce",), **settings)
    losses, valid, invalid = token_cross_entropy(logits, labels, **settings)
    assert torch.equal(stats.ce, losses)
    assert torch.equal(stats.valid, valid)
    assert torch.equal(stats.invalid, invalid)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", VIEWS, ids=VIEW_NAMES)
def test_statistics_of_non_contiguous_logits_are_the_same(view, backend):
    logits, labels = tokens(4, 17, ignored=0.2)
    stats = token_statistics(view(logits), labels, backend=backend)
    for value, expected in zip(stats, token_statistics(logits, labels), strict=True):
        torch.testing.assert_close(value, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("backend", ["auto", "eager", "compile"])
@pytest.mark.parametrize("shape", [(0,), (0, 5), (2, 0)])
def test_an_empty_batch_has_empty_statistics(shape, backend):
    stats = token_statistics(torch.zeros(*shape, V), torch.zeros(shape, dtype=torch.long), backend=backend)
    assert [tuple(value.shape) for value in stats] == [shape] * 7
    assert stats.ce.dtype == torch.float32
    assert stats.rank.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (33,)])
def test_statistics_do_not_depend_on_autocast_or_inference_mode(shape, dtype):
    logits, labels = tokens(*shape, dtype=dtype)
    expected = token_statistics(logits, labels)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        stats = token_statistics(logits, labels)
    assert all(torch.equal(value, other) for value, other in zip(stats, expected, strict=True))


@pytest.mark.parametrize("wrong", [("ce", "accuracy"), "ce", ("top",)])
def test_unknown_statistics_are_refused_and_shown(wrong):
    message = message_of(torch.zeros(2, V), torch.tensor([0, 1]), token_statistics, statistics=wrong)
    assert "`statistics`" in message
    assert "entropy" in message
    assert repr(wrong) in message


def test_unknown_backends_are_refused_and_shown():
    message = message_of(torch.zeros(2, V), torch.tensor([0, 1]), token_statistics, backend="numpy")
    assert "`backend`" in message
    assert "'numpy'" in message
    assert "eager" in message


def test_where_triton_can_not_be_launched_automatic_choice_warns_and_is_eager():
    pytest.importorskip("triton")
    triton_works.cache_clear()
    with pytest.warns(UserWarning, match="Triton does not work on cuda:0"):
        assert not triton_works(0)
    triton_works.cache_clear()
