from __future__ import annotations

import math
import re
import statistics as plain
import warnings

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter
from torchmetrics import MetricCollection, SumMetric

from lightning_pce import TokenProxies, proxy_names
from lightning_pce.metrics import proxies
from lightning_pce.tokens.statistics import TokenStatistics, token_statistics
from tests.helpers.casts_and_copies import CASTS, COPIES
from tests.helpers.processes import counted_collectives, run_ranks

V = 13
COUNTERS = ["sequences", "tokens", "nan", "invalid"]
COUNTS = tuple((7 * i) % 30 for i in range(V))


# ------------------------------------------------------------------- the definitions, token after token


def token_by_hand(scores, label):
    """What the ten statistics and the weightings are made of, from the logits of one token in float64."""
    top = max(scores)
    total = sum(math.exp(score - top) for score in scores)
    p = [math.exp(score - top) / total for score in scores]
    rank = 1 + sum(
        score > scores[label] or (score == scores[label] and v < label) for v, score in enumerate(scores)
    )
    return {
        "ce": math.log(total) + top - scores[label],
        "entropy": -sum(x * math.log(x) for x in p if x),
        "target_prob": p[label],
        "max_prob": max(p),
        "rank": rank,
    }


def values_by_hand(token):
    rank, p, top = token["rank"], token["target_prob"], token["max_prob"]
    return {
        "ce": token["ce"],
        **{f"top{k}": float(rank <= k) for k in (1, 2, 3, 5)},
        "entropy": token["entropy"] / math.log(V),
        "rank": rank,
        "reciprocal_rank": 1 / rank,
        "margin": top - p,
        "wrong_confidence": 0.0 if rank == 1 else top,
    }


def weights_by_hand(token, label, labels, inverse, counts, center, width):
    entropy = token["entropy"] / math.log(V)
    frequency = labels.count(label) / len(labels)
    if counts is not None:
        frequency = (counts[label] + 1) / (sum(counts) + len(counts))
    inverted = (lambda x: 1 / x) if inverse == "reciprocal" else (lambda x: 1 - x)
    return {
        "uniform": 1.0,
        "probability": token["target_prob"],
        "disagreement": 1 - token["target_prob"],
        "entropy": entropy,
        "inverse_entropy": inverted(max(entropy, 0.01)),
        "frequency": frequency,
        "inverse_frequency": inverted(frequency),
        "gaussian": math.exp(-(((token["ce"] - center) / width) ** 2) / 2),
    }


def by_hand(
    logits,
    labels,
    last_n=1000,
    inverse="reciprocal",
    token_counts=None,
    gaussian_center=1.0,
    gaussian_width=1.0,
):
    """The whole result; labels are -100 where a token is not scored."""
    scores = {name: [] for name in proxy_names()}
    tokens_seen = 0
    for row, ids in zip(logits.double().tolist(), labels.tolist(), strict=True):
        scored = [t for t, label in enumerate(ids) if label != -100][-last_n:]
        if not scored:
            continue
        tokens_seen += len(scored)
        tokens = [token_by_hand(row[t], ids[t]) for t in scored]
        expert = [ids[t] for t in scored]
        weights = [
            weights_by_hand(token, label, expert, inverse, token_counts, gaussian_center, gaussian_width)
            for token, label in zip(tokens, expert, strict=True)
        ]
        values = [values_by_hand(token) for token in tokens]
        for statistic in values[0]:
            for weighting in weights[0]:
                w = [each[weighting] for each in weights]
                w = w if any(w) else [1.0] * len(w)
                score = sum(x * m[statistic] for x, m in zip(w, values, strict=True)) / sum(w)
                scores[f"{statistic}_{weighting}"].append(score)
    result = {}
    for name, of_sequences in scores.items():
        n = len(of_sequences)
        result[name] = plain.fmean(of_sequences) if n else math.nan
        result[f"{name}_se"] = plain.stdev(of_sequences) / math.sqrt(n) if n > 1 else math.nan
    n = len(scores["ce_uniform"])
    return result | {"sequences": n, "tokens": tokens_seen, "nan": 0, "invalid": 0}


def assert_close(result, expected, rtol, atol=1e-12):
    assert list(result) == list(expected)
    for name, value in result.items():
        wanted = pytest.approx(float(expected[name]), rel=rtol, abs=atol, nan_ok=True)
        assert value.item() == wanted, name


def exact_statistics(logits, labels):
    """Statistics in float64, so that what is made of them can be checked to the last digits."""
    found = [
        [token_by_hand(scores, max(label, 0)) for scores, label in zip(row, ids, strict=True)]
        for row, ids in zip(logits.double().tolist(), labels.tolist(), strict=True)
    ]
    columns = {
        name: torch.tensor([[token[name] for token in row] for row in found], dtype=torch.float64).reshape(
            labels.shape
        )
        for name in ("ce", "entropy", "target_prob", "max_prob", "rank")
    }
    columns["rank"] = columns["rank"].long()
    return TokenStatistics(**columns, valid=labels != -100, invalid=labels == -1)


def batch(seed=0, shape=(4, 9), ignored=0.3):
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, V, generator=random)
    labels = torch.randint(0, V, shape, generator=random)
    return logits, torch.where(torch.rand(shape, generator=random) < ignored, -100, labels)


def metric_of(*batches, **settings):
    metric = TokenProxies(**settings)
    for one in batches:
        metric.update(*one)
    return metric


def joined(*batches):
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def state_of(metric):
    (state,) = metric.metric_state.values()
    return state


# --------------------------------------------------------------------------------------------------- names


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
    result = metric_of(batch()).compute()
    assert list(result) == [f"{name}{end}" for name in proxy_names() for end in ("", "_se")] + COUNTERS
    assert {(value.dtype, value.ndim) for value in result.values()} == {(torch.float64, 0)}


# ------------------------------------------------------------------------------------------------- results

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
    batches = [batch(seed) for seed in range(3)]
    result = metric_of(*batches, **SETTINGS[settings]).compute()
    assert_close(result, by_hand(*joined(*batches), **SETTINGS[settings]), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_make_a_difference(settings):
    # Otherwise the test above would say nothing about them.
    result = metric_of(batch(), **SETTINGS[settings]).compute()
    usual = metric_of(batch()).compute()
    same = all(torch.equal(result[name], usual[name]) for name in proxy_names())
    assert same == (settings == "defaults")


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
    batches = [batch(seed + i, (size, length), ignored) for i, size in enumerate(sizes)]
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
    logits, labels = batch()
    result = metric_of((logits, labels), shift=shift).compute()
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    assert_close(result, by_hand(logits, labels), rtol=2e-6, atol=2e-7)


def test_another_ignore_index_is_heeded():
    logits, labels = batch(ignored=0)
    result = metric_of((logits, labels), ignore_index=7).compute()
    assert_close(result, by_hand(logits, torch.where(labels == 7, -100, labels)), rtol=2e-6, atol=2e-7)


def test_only_the_last_scored_tokens_of_each_sequence_count_and_are_computed(monkeypatch):
    logits, labels = batch(shape=(3, 40))
    asked = []

    def spy(logits, labels, **settings):
        asked.append((labels != -100).sum(-1).tolist())
        return token_statistics(logits, labels, **settings)

    monkeypatch.setattr(proxies, "token_statistics", spy)
    first = metric_of((logits, labels), last_n=5).compute()
    assert asked == [[5, 5, 5]]
    logits[:, :10] = 99.0
    second = metric_of((logits, labels), last_n=5).compute()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert first["tokens"] == 15


def test_a_sequence_without_a_scored_token_does_not_count():
    logits, labels = batch()
    labels[1] = -100
    result = metric_of((logits, labels)).compute()
    assert result["sequences"] == 3
    assert_close(result, by_hand(logits[[0, 2, 3]], labels[[0, 2, 3]]), rtol=2e-6, atol=2e-7)


def test_statistics_that_were_computed_already_give_the_same_and_are_not_computed_again(monkeypatch):
    logits, labels = batch(shape=(3, 20))
    wanted = metric_of((logits, labels), last_n=7, shift=True).compute()
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
    logits, labels = batch()
    padded = torch.cat([logits, torch.full((*labels.shape, 3), -math.inf)], dim=-1)
    result = metric_of((padded, labels), vocabulary=V).compute()
    assert_close(result, by_hand(logits, labels), rtol=2e-6, atol=2e-7)


def test_no_weight_is_negative_though_the_entropy_is_above_that_of_the_vocabulary():
    logits = torch.zeros(1, 2, V)
    logits[0, 1, 3] = 100.0
    labels = torch.tensor([[1, 3]])
    result = metric_of((logits, labels), vocabulary=4, inverse="complement").compute()
    assert result["rank_inverse_entropy"] == 1
    assert 0 <= result["ce_inverse_entropy"] < 1e-6


def test_bfloat16_logits_are_not_scored_in_bfloat16():
    logits, labels = batch()
    result = metric_of((logits.bfloat16(), labels)).compute()
    assert_close(result, by_hand(logits.bfloat16(), labels), rtol=2e-6, atol=2e-7)


def test_a_vocabulary_of_one_token():
    result = metric_of((torch.zeros(2, 3, 1), torch.zeros(2, 3, dtype=torch.long))).compute()
    assert result["entropy_uniform"] == 0
    assert result["top1_inverse_entropy"] == 1
    assert result["top1_uniform_se"] == 0


# ------------------------------------------------------------------------------------------- odd tokens


def test_where_all_weights_are_0_tokens_count_alike():
    logits = torch.zeros(1, 2, 3)
    logits[0, 0, 0] = logits[0, 1, 1] = 2000.0  # sure, rightly and wrongly
    result = metric_of((logits, torch.tensor([[0, 0]]))).compute()
    assert result["top1_entropy"] == 0.5  # all entropies are 0
    assert result["top1_probability"] == 1.0  # not all probabilities are
    assert result["top1_disagreement"] == 0.0
    assert result["ce_gaussian"] == pytest.approx(0.0)
    only_wrong = metric_of((logits[:, 1:], torch.tensor([[0]]))).compute()
    assert only_wrong["ce_probability"] == only_wrong["ce_gaussian"] == 2000


def test_weights_too_small_for_a_float_count_alike():
    logits = torch.zeros(1, 2, 2)
    logits[..., 1] = torch.tensor([39.0, 39.1])  # the kernel gives about 1e-314
    result = metric_of((logits, torch.tensor([[0, 0]]))).compute()
    assert result["ce_gaussian"].item() == pytest.approx(39.05, rel=1e-6)


def test_a_target_of_probability_0_makes_the_ce_infinite_where_it_has_weight():
    logits, labels = batch(ignored=0)
    logits[0, 0, labels[0, 0]] = -math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric = metric_of((logits, labels), batch(1))
        result = metric.compute()
    assert result["ce_uniform"] == result["ce_inverse_frequency"] == math.inf
    assert result["ce_uniform_se"].isnan()
    others = [name for name in proxy_names() if not name.startswith("ce_")]
    finite = [*others, "ce_probability", "ce_gaussian"]
    assert all(result[name].isfinite() and result[f"{name}_se"].isfinite() for name in finite)
    metric.update(*batch(2))
    assert metric.compute()["ce_uniform"] == math.inf


def test_a_token_of_nan_is_left_out_and_counted_in_a_single_warning():
    logits, labels = batch(ignored=0)
    logits[0, 2] = math.nan
    logits[1] = math.nan
    metric = metric_of((logits, labels))
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
    logits, labels = batch(ignored=0)

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
    logits, labels = batch(ignored=0)
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
    metric = metric_of(batch(), batch(1, shape), (torch.zeros(2, 4, V), torch.full((2, 4), -100)))
    twin = metric_of(batch())
    assert torch.equal(state_of(metric), state_of(twin))


# ---------------------------------------------------------------------------------------------- numerics


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


# --------------------------------------------------------------------------------------------- bad input

LOGITS, LABELS = batch(ignored=0)
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
    metric, twin = (metric_of(batch(), vocabulary=V, token_counts=COUNTS) for _ in range(2))
    before = state_of(metric).clone()
    with pytest.raises(ValueError, match=f"`{name}`"):
        getattr(metric, call)(**arguments)
    assert torch.equal(state_of(metric), before)
    metric.update(*batch(1))
    twin.update(*batch(1))
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


# ------------------------------------------------------------------------------------------------- state


def test_the_state_is_one_float64_tensor_of_fixed_size():
    metric = metric_of(batch())
    assert state_of(metric).shape == (81, 4)
    assert state_of(metric).dtype == torch.float64
    assert metric.state_dict() == {}
    assert list(metric.buffers()) == list(metric.parameters()) == []


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_of_the_module_never_touches_the_state(cast):
    metric, twin = TokenProxies(token_counts=COUNTS), TokenProxies(token_counts=COUNTS)
    parent = torch.nn.ModuleDict({"metric": metric, "layer": torch.nn.Linear(2, 2)})
    for _ in range(2):  # the second works on what reset brings back
        CASTS[cast](parent)
        for seed in range(3):
            metric.update(*batch(seed))
            twin.update(*batch(seed))
            CASTS[cast](parent)
            assert state_of(metric).dtype == torch.float64
            assert torch.equal(state_of(metric), state_of(twin))
        assert_close(metric(*batch(9)), twin(*batch(9)), rtol=0, atol=0)
        metric.reset()
        twin.reset()


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_the_same_content_and_goes_its_own_way(how):
    settings = {"last_n": 4, "token_counts": COUNTS, "inverse": "complement"}
    metric = metric_of(batch(), **settings)
    other = COPIES[how](metric)
    before = state_of(metric).clone()
    other.update(*batch(1))
    assert torch.equal(state_of(metric), before)
    assert torch.equal(state_of(other), state_of(metric_of(batch(), batch(1), **settings)))


def test_forward_gives_the_batch_and_accumulates_like_update():
    forwarded = TokenProxies()
    for seed in range(3):
        assert_close(forwarded(*batch(seed)), by_hand(*batch(seed)), rtol=2e-6, atol=2e-7)
    updated = metric_of(*(batch(seed) for seed in range(3)))
    assert_close(forwarded.compute(), updated.compute(), rtol=1e-12)
    assert forwarded.update_count == 3


def test_reset_forgets_everything():
    metric = metric_of(batch())
    metric.compute()
    metric.reset()
    assert state_of(metric).abs().sum() == 0
    metric.update(*batch(1))
    assert torch.equal(state_of(metric), state_of(metric_of(batch(1))))


def test_a_persistent_metric_is_saved_and_loaded_into_the_same_settings_only():
    metric, other, stranger = metric_of(batch()), TokenProxies(), TokenProxies(last_n=5)
    for each in (metric, other, stranger):
        each.persistent(True)
    other.load_state_dict(metric.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # among others, that of compute before update
        assert_close(other.compute(), metric.compute(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="same settings"):
        stranger.load_state_dict(metric.state_dict())


DIFFERENT = [
    {"last_n": 999},
    {"shift": True},
    {"ignore_index": 0},
    {"vocabulary": 99},
    {"inverse": "complement"},
    {"token_counts": COUNTS},
    {"gaussian_center": 0.0},
    {"gaussian_width": 2.0},
]


@pytest.mark.parametrize("settings", DIFFERENT, ids=lambda settings: next(iter(settings)))
def test_metrics_that_differ_are_merged_neither_by_hand_nor_in_a_collection(settings):
    metric, other = metric_of(batch()), TokenProxies(**settings)
    with pytest.raises(ValueError, match="same settings"):
        metric.merge_state(other)
    with pytest.raises(ValueError, match="Expected a state"):
        metric.merge_state(other.metric_state)
    collection = MetricCollection({"a": TokenProxies(), "b": TokenProxies(**settings)})
    collection.update(logits=LOGITS[:, :0], labels=LABELS[:, :0])  # after which both are zeros
    collection.update(logits=LOGITS, labels=LABELS)
    assert len(collection.compute_groups) == 2
    assert torch.equal(state_of(collection["b"]), state_of(metric_of((LOGITS, LABELS), **settings)))


def test_a_collection_may_update_equal_metrics_once():
    collection = MetricCollection({"a": TokenProxies(), "b": TokenProxies()})
    for seed in range(2):
        collection.update(*batch(seed))
    assert len(collection.compute_groups) == 1  # so the test above can fail
    wanted = metric_of(batch(0), batch(1))
    assert torch.equal(state_of(collection["b"]), state_of(wanted))
    assert torch.equal(collection.compute()["b_rank_uniform"], wanted.compute()["rank_uniform"])


def test_merge_state_into_a_fresh_metric_does_not_warn_of_compute_before_update():
    metric, other = TokenProxies(), metric_of(batch())
    metric.merge_state(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(metric.compute(), other.compute(), rtol=0, atol=0)


def test_merge_state_leaves_no_stale_result():
    metric = metric_of(batch(), compute_with_cache=True)
    metric.compute()
    metric.merge_state(metric_of(batch(1)))
    assert metric.compute()["sequences"] == 8


def test_editing_a_result_does_not_edit_the_state():
    metric = metric_of(batch())
    wanted = state_of(metric).clone()
    for value in metric.compute().values():
        value += 5
    assert torch.equal(state_of(metric), wanted)


def test_merge_state_refuses_what_is_no_such_metric():
    with pytest.raises(ValueError):
        metric_of(batch()).merge_state(SumMetric())


def test_what_was_made_in_inference_mode_can_be_used_in_normal_mode():
    with torch.inference_mode():
        metric = metric_of(batch())
        metric(*batch(1))
    metric.update(*batch(2))
    wanted = metric_of(*(batch(seed) for seed in range(3)))
    assert_close(metric.compute(), wanted.compute(), rtol=1e-12)


def test_update_keeps_no_graph_and_leaves_the_logits_alone():
    logits, labels = batch()
    kept = logits.clone()
    metric = metric_of((logits.requires_grad_(), labels))
    assert not any(value.requires_grad for value in metric(logits, labels).values())
    assert not state_of(metric).requires_grad
    assert torch.equal(logits, kept)


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
    metric.update(*batch())
    twin = metric_of(batch(), vocabulary=V, shift=True, last_n=5, **settings)
    assert torch.equal(state_of(metric), state_of(twin))


def test_a_compiled_function_that_updates_is_not_compiled_again_and_again():
    metric, counter = TokenProxies(), CompileCounter()
    torch._dynamo.reset()

    @torch.compile(backend=counter)
    def step(logits, labels):
        logits = logits * 2
        metric.update(logits, labels)
        return logits.sum()

    for seed in range(12):
        step(*batch(seed))
    torch._dynamo.reset()
    assert 1 <= counter.frame_count <= 2
    assert metric.compute()["sequences"] == 48


# --------------------------------------------------------------------------------------------- two ranks


def uneven_updates(rank, _):
    metric = metric_of(*(batch(seed, (2 + seed, 9)) for seed in ([0, 1, 2], [])[rank]))
    with counted_collectives() as calls:
        first = metric.compute()
    if rank == 1:  # rank 0 must not answer from a cache while rank 1 waits for it
        metric.update(*batch(3))
    after_one = metric.compute()
    with counted_collectives() as in_forward:
        of_batch = metric(*batch(5 + rank))
    with counted_collectives() as bare:
        metric.sync()
        metric.unsync()
    assert dist.get_world_size() == 2
    return {
        "first": first,
        "after_one": after_one,
        "of_batch": of_batch,
        "second": metric.compute(),
        "calls": [calls, in_forward, bare],
    }


def test_two_ranks_agree_to_the_bit_by_one_collective():
    ranks = run_ranks(uneven_updates, 2, timeout=20)
    batches = [batch(seed, (2 + seed, 9)) for seed in range(3)]
    alone = metric_of(*batches)
    first = alone.compute()
    alone.update(*batch(3))
    after_one = alone.compute()
    for seed in range(5, 7):
        alone.update(*batch(seed))
    second = alone.compute()
    for rank, outcome in enumerate(ranks):
        assert outcome["calls"] == [["all_gather"], [], ["all_gather"]]
        assert_close(outcome["first"], first, rtol=1e-12)
        assert_close(outcome["after_one"], after_one, rtol=1e-12)
        assert_close(outcome["second"], second, rtol=1e-12)
        assert_close(outcome["of_batch"], by_hand(*batch(5 + rank)), rtol=2e-6, atol=2e-7)
    for when in ("first", "after_one", "second"):
        bits = [torch.stack(list(outcome[when].values())).view(torch.int64) for outcome in ranks]
        assert torch.equal(*bits)
