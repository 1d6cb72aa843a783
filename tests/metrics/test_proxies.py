"""TokenProxies: its results are those of the definitions."""

import math
import re
import statistics as plain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce import TokenProxies, proxy_names
from lightning_pce.metrics import proxies
from lightning_pce.tokens.statistics import TokenStatistics, token_statistics
from tests.helpers.metric_states import state_of
from tests.helpers.proxies_by_hand import (
    COUNTERS,
    COUNTS,
    V,
    assert_close,
    by_hand,
    exact_statistics,
    joined,
    proxies_of,
    small_batch,
)


def test_there_are_80_names_that_a_module_and_a_file_may_have():
    names = proxy_names()
    assert len(set(names)) == 80
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)
    assert not {f"{name}_se" for name in names} & set(names)
    assert names[:8] == (
        "ce_uniform",
        "ce_probability",
        "ce_disagreement",
        "ce_entropy",
        "ce_inverse_entropy",
        "ce_frequency",
        "ce_inverse_frequency",
        "ce_gaussian",
    )
    assert [name.removesuffix("_uniform") for name in names[::8]] == [
        *("ce", "top1", "top2", "top3", "top5", "entropy", "rank", "reciprocal_rank", "margin"),
        "wrong_confidence",
    ]


def test_the_result_has_each_proxy_its_standard_error_and_the_counts():
    result = proxies_of(small_batch()).compute()
    assert list(result) == [f"{name}{end}" for name in proxy_names() for end in ("", "_se")] + COUNTERS
    assert {(value.dtype, value.ndim) for value in result.values()} == {(torch.float64, 0)}


def test_whole_numbers_are_the_same_settings_as_floats():
    whole = TokenProxies(gaussian_center=2, gaussian_width=3)
    other = proxies_of(small_batch(), gaussian_center=2.0, gaussian_width=3.0)
    whole.merge_state(other)
    assert whole.named_settings() == other.named_settings()
    assert state_of(whole).equal(state_of(other))
    assert TokenProxies(gaussian_center=1).named_settings() == TokenProxies().named_settings()


SETTINGS = {
    "defaults": {},
    "few tokens": {"last_n": 3},
    "complement": {"inverse": "complement"},
    "corpus": {"token_counts": COUNTS},
    "corpus, complement": {"token_counts": COUNTS, "inverse": "complement"},
    "kernel": {"gaussian_center": 2.5, "gaussian_width": 0.7},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_logits_give_what_the_definitions_give(settings):
    batches = [small_batch(seed) for seed in range(3)]
    result = proxies_of(*batches, **SETTINGS[settings]).compute()
    assert_close(result, by_hand(*joined(*batches), **SETTINGS[settings]), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_make_a_difference(settings):
    # Otherwise the test above would say nothing about them.
    result = proxies_of(small_batch(), **SETTINGS[settings]).compute()
    usual = proxies_of(small_batch()).compute()
    same = all(torch.equal(result[name], usual[name]) for name in proxy_names())
    assert same == (settings == "defaults")


@settings(max_examples=100)
@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    length=st.integers(0, 8),
    last_n=st.integers(1, 9),
    ignored=st.sampled_from([0.0, 0.3, 0.9]),
    ties=st.booleans(),
    settings=st.sampled_from(list(SETTINGS)),
    seed=st.integers(0, 1000),
)
def test_exact_statistics_in_any_split_give_the_definitions(
    sizes, length, last_n, ignored, ties, settings, seed
):
    batches = [small_batch(seed + i, (size, length), ignored) for i, size in enumerate(sizes)]
    if ties:
        batches = [(logits.round(), labels) for logits, labels in batches]
    arguments = {**SETTINGS[settings], "last_n": last_n}
    expected = by_hand(*joined(*batches), **arguments)
    in_turn = TokenProxies(vocabulary=V, **arguments)
    merged = TokenProxies(vocabulary=V, **arguments)
    for logits, labels in batches:
        one = TokenProxies(vocabulary=V, **arguments)
        for metric in (in_turn, one):
            metric.update(labels=labels, statistics=exact_statistics(logits, labels))
        merged.merge_state(one)
    assert_close(in_turn.compute(), expected, rtol=1e-12, atol=1e-12)
    assert_close(merged.compute(), expected, rtol=1e-12, atol=1e-12)


def test_an_example_by_hand():
    labels = torch.tensor([[4, 7, 7]])
    statistics = TokenStatistics(
        ce=torch.tensor([[math.log(4), math.log(2), 0.0]], dtype=torch.float64),
        entropy=torch.tensor([[math.log(10), math.log(10) / 2, 0.0]], dtype=torch.float64),
        target_prob=torch.tensor([[0.25, 0.5, 1.0]]),
        max_prob=torch.tensor([[0.75, 0.5, 1.0]]),
        rank=torch.tensor([[4, 2, 1]]),
        valid=torch.ones(1, 3, dtype=torch.bool),
        invalid=torch.zeros(1, 3, dtype=torch.bool),
    )
    metric = TokenProxies(vocabulary=10)
    metric.update(labels=labels, statistics=statistics)
    result = metric.compute()
    wanted = {
        "ce_uniform": math.log(8) / 3,
        "ce_disagreement": (0.75 * math.log(4) + 0.5 * math.log(2)) / 1.25,
        "top1_probability": 1 / 1.75,
        "top2_uniform": 2 / 3,
        "top5_entropy": 1.0,
        "entropy_uniform": 0.5,
        "entropy_entropy": (1 + 0.25) / 1.5,
        "top1_inverse_entropy": 100 / (1 + 2 + 100),
        "rank_uniform": 7 / 3,
        "rank_frequency": (4 / 3 + 2 * 2 / 3 + 1 * 2 / 3) / (5 / 3),
        "top1_inverse_frequency": 1.5 / (3 + 1.5 + 1.5),
        "reciprocal_rank_uniform": 1.75 / 3,
        "margin_uniform": 0.5 / 3,
        "wrong_confidence_uniform": 1.25 / 3,
    }
    assert {name: result[name].item() for name in wanted} == pytest.approx(wanted, rel=1e-12)
    assert [result[name] for name in COUNTERS] == [1, 3, 0, 0]
    assert result["ce_uniform_se"].isnan()


@pytest.mark.parametrize("shift", [False, True])
def test_with_shift_labels_are_the_inputs(shift):
    logits, labels = small_batch()
    result = proxies_of((logits, labels), shift=shift).compute()
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    assert_close(result, by_hand(logits, labels), rtol=2e-6, atol=2e-7)


def test_another_ignore_index_is_heeded():
    logits, labels = small_batch(ignored=0)
    result = proxies_of((logits, labels), ignore_index=7).compute()
    assert_close(result, by_hand(logits, torch.where(labels == 7, -100, labels)), rtol=2e-6, atol=2e-7)


def test_only_the_last_scored_tokens_of_each_sequence_count_and_are_computed(monkeypatch):
    logits, labels = small_batch(shape=(3, 40))
    asked = []

    def spy(logits, labels, **settings):
        asked.append((labels != -100).sum(-1).tolist())
        return token_statistics(logits, labels, **settings)

    monkeypatch.setattr(proxies, "token_statistics", spy)
    first = proxies_of((logits, labels), last_n=5).compute()
    assert asked == [[5, 5, 5]]
    logits[:, :10] = 99.0
    second = proxies_of((logits, labels), last_n=5).compute()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert first["tokens"] == 15


def test_a_sequence_without_a_scored_token_does_not_count():
    logits, labels = small_batch()
    labels[1] = -100
    result = proxies_of((logits, labels)).compute()
    assert result["sequences"] == 3
    assert_close(result, by_hand(logits[[0, 2, 3]], labels[[0, 2, 3]]), rtol=2e-6, atol=2e-7)


def test_statistics_that_were_computed_already_give_the_same_and_are_not_computed_again(monkeypatch):
    logits, labels = small_batch(shape=(3, 20))
    wanted = proxies_of((logits, labels), last_n=7, shift=True).compute()
    once = token_statistics(logits, labels, shift=True)

    def never(*_, **__):
        raise AssertionError("computed twice")

    monkeypatch.setattr(proxies, "token_statistics", never)
    metric = TokenProxies(last_n=7, shift=True, vocabulary=V)
    metric.update(labels=labels, statistics=once)
    assert_close(metric.compute(), wanted, rtol=1e-12)


def test_disagreement_tells_tokens_apart_that_are_all_but_certain():
    ce = torch.tensor([[1e-12, 3e-12]])
    certain = TokenStatistics(
        ce=ce,
        entropy=30 * ce,
        target_prob=torch.ones(1, 2),
        max_prob=torch.ones(1, 2),
        rank=torch.ones(1, 2, dtype=torch.long),
        valid=torch.ones(1, 2, dtype=torch.bool),
        invalid=torch.zeros(1, 2, dtype=torch.bool),
    )
    metric = TokenProxies(vocabulary=V)
    metric.update(labels=torch.tensor([[1, 2]]), statistics=certain)
    assert metric.compute()["ce_disagreement"].item() == pytest.approx(2.5e-12, rel=1e-6, abs=0)


def test_a_padded_vocabulary_may_be_left_out_of_the_normalisation():
    logits, labels = small_batch()
    padded = torch.cat([logits, torch.full((*labels.shape, 3), -math.inf)], dim=-1)
    result = proxies_of((padded, labels), vocabulary=V).compute()
    assert_close(result, by_hand(logits, labels), rtol=2e-6, atol=2e-7)


def test_no_weight_is_negative_though_the_entropy_is_above_that_of_the_vocabulary():
    logits = torch.zeros(1, 2, V)
    logits[0, 1, 3] = 100.0
    labels = torch.tensor([[1, 3]])
    result = proxies_of((logits, labels), vocabulary=4, inverse="complement").compute()
    assert result["rank_inverse_entropy"] == 1
    assert 0 <= result["ce_inverse_entropy"] < 1e-6


def test_bfloat16_logits_are_not_scored_in_bfloat16():
    logits, labels = small_batch()
    result = proxies_of((logits.bfloat16(), labels)).compute()
    assert_close(result, by_hand(logits.bfloat16(), labels), rtol=2e-6, atol=2e-7)


def test_a_vocabulary_of_one_token():
    result = proxies_of((torch.zeros(2, 3, 1), torch.zeros(2, 3, dtype=torch.long))).compute()
    assert result["entropy_uniform"] == 0
    assert result["top1_inverse_entropy"] == 1
    assert result["top1_uniform_se"] == 0


@given(
    parts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    offset=st.sampled_from([0.0, 1e4, 1e8]),
    seed=st.integers(0, 100),
)
def test_the_variance_does_not_cancel_in_any_split(parts, offset, seed):
    random = torch.Generator().manual_seed(seed)
    scores = offset + torch.randn(sum(parts), dtype=torch.float64, generator=random)
    states = torch.zeros(len(scores), 81, 4, dtype=torch.float64)
    states[:, 0, 0], states[:, 0, 1] = 1, scores
    total = proxies.merge_proxies(torch.stack([proxies.merge_proxies(part) for part in states.split(parts)]))
    number, mean, squares, _ = total[0].tolist()
    exact = [float(score) for score in scores]
    assert number == len(exact)
    if len(exact) > 1:
        assert mean == pytest.approx(math.fsum(exact) / len(exact), rel=1e-14, abs=1e-14)
        # The scores themselves are rounded to 1e-8 when they are 1e8: compared with exact arithmetic on them.
        assert squares == pytest.approx(
            float(plain.variance(exact) * (len(exact) - 1)), rel=1e-6 if offset > 1e6 else 1e-9
        )


@pytest.mark.parametrize("settings", [{}, {"token_counts": COUNTS}], ids=["alone", "corpus"])
def test_update_on_an_accelerator_reads_nothing_on_the_host(settings):
    # On the meta device there is nothing to read: any .item() or data-dependent shape raises.
    with torch.device("meta"):
        metric = TokenProxies(vocabulary=V, shift=True, last_n=5, **settings)
        logits, labels = torch.empty(2, 9, V), torch.empty(2, 9, dtype=torch.long)
        metric.update(logits, labels)
        metric.update(labels=labels, statistics=token_statistics(logits, labels, shift=True))
        assert metric.compute()["ce_uniform"].is_meta
    assert state_of(metric).is_meta
    metric.to_empty(device="cpu")
    metric.reset()
    metric.update(*small_batch())
    twin = proxies_of(small_batch(), vocabulary=V, shift=True, last_n=5, **settings)
    assert torch.equal(state_of(metric), state_of(twin))
