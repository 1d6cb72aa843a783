"""The token proxies by their definitions, one token after the other."""

import math
import statistics as plain

import pytest
import torch

from lightning_pce import TokenProxies, proxy_names
from lightning_pce.tokens.statistics import TokenStatistics
from tests.helpers.metric_states import fed
from tests.helpers.token_batches import batch

V = 13
COUNTERS = ["sequences", "tokens", "nan", "invalid"]
COUNTS = tuple((7 * i) % 30 for i in range(V))


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


def small_batch(seed=0, shape=(4, 9), ignored=0.3):
    """Logits and labels of a vocabulary that a loop can go through."""
    return batch(seed, shape, ignored, vocabulary=V)


def proxies_of(*batches, **settings):
    return fed(TokenProxies(**settings), *batches)


def joined(*batches):
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
