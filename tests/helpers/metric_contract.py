"""What every Metric of the package promises is tested on these cases, in ``tests/metrics/test_contract.py``.

A new Metric needs one more case here, and tests of its own for what it computes.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torchmetrics import Metric

from lightning_pce import (
    BitsPerByte,
    ExpectedPassAtN,
    LabelTotals,
    PercentileCrossEntropy,
    StreamingQuantiles,
    TailTokens,
    TokenProxies,
)
from lightning_pce.metrics.weighted_mean import WeightedMean
from tests.helpers.casts_and_copies import COPIES, saved_and_loaded
from tests.helpers.metric_states import fed
from tests.helpers.token_batches import GROUP_NAMES, V, batch, grouped_batch, random_losses


@dataclass(frozen=True)
class Case:
    """A Metric, and what it takes.

    Attributes:
        cls: the class.
        settings: its arguments; some that are not the defaults.
        batches: arguments of two updates, tensors of equal shapes, few enough for exact results.
        nothing: arguments of an update in which no token counts.
        bad: arguments that ``update`` refuses.
        others: for each setting in which metrics may differ, another one. It takes the same batches, and the
            two metrics may not be mixed.
        collectives: those of one ``compute`` on several ranks, one for each state.
    """

    cls: type[Metric]
    settings: dict[str, Any]
    batches: tuple[dict[str, Any], dict[str, Any]]
    nothing: dict[str, Any]
    bad: dict[str, Any]
    others: tuple[dict[str, Any], ...]
    collectives: tuple[str, ...] = ("all_gather",)

    def metric(self, *batches, **settings):
        """The metric of the case, or one that differs in these settings, after these updates."""
        return fed(self.cls(**{**self.settings, **settings}), *batches)


def _named(names, *values):
    return dict(zip(names.split(), values, strict=True))


def _percentiles():
    first, second = (_named("logits labels", *batch(seed, ignored=0)) for seed in range(2))
    return Case(
        PercentileCrossEntropy,
        {},
        (first, second),
        nothing={name: value[:0] for name, value in first.items()},
        bad={**first, "labels": first["labels"] + V},
        others=({"percentiles": (50,)}, {"compression": 512}, {"ignore_index": 3}, {"shift": True}),
    )


def _percentiles_of_groups():
    weights = torch.arange(64).reshape(4, 16) % 3
    first, second = (
        _named("logits labels group weights", *grouped_batch(seed), weights) for seed in range(2)
    )
    settings = {"groups": GROUP_NAMES, "percentiles": (50, 99.9), "ignore_index": 3, "shift": True}
    return Case(
        PercentileCrossEntropy,
        {**settings, "compression": 256},
        tuple({**one, "labels": one["labels"].where(one["labels"] >= 0, 3)} for one in (first, second)),
        nothing={**first, "labels": torch.full_like(first["labels"], 3)},
        bad={**first, "labels": first["labels"].abs() % V, "group": first["group"] + 2},
        others=({"groups": GROUP_NAMES[::-1]}, {"groups": ("prompt", "answer")}, {"compression": 255}),
    )


def _percentiles_by_document():
    """Few values, so that sums are exact in any order."""
    first, second = (
        {
            "losses": torch.arange(240.0).reshape(120, 2) / 16 + seed,
            "document": torch.arange(120) * 7 - 50,
            "group": torch.arange(240).reshape(120, 2) % 2,
        }
        for seed in range(2)
    )
    return Case(
        PercentileCrossEntropy,
        {"error_bars": True, "groups": GROUP_NAMES, "percentiles": (50,)},
        (first, second),
        nothing={name: value[:0] for name, value in first.items()},
        bad={**first, "document": first["document"][:-1]},
        others=({"level": 0.9}, {"groups": GROUP_NAMES[::-1]}, {"percentiles": (25, 50)}),
        collectives=("all_gather", "all_reduce"),
    )


def _quantiles():
    values = [random_losses(seed).double() - 3 + 1e-12 for seed in range(2)]
    weights = torch.arange(100) % 3
    return Case(
        StreamingQuantiles,
        {"compression": 300},
        tuple({"values": each, "weights": weights} for each in values),
        nothing={"values": values[0], "weights": 0 * weights},
        bad={"values": values[0], "weights": -weights},
        others=({"percentiles": (50,)}, {"compression": 64}),
    )


def _weighted_mean():
    group, weights = torch.arange(100) % 2, torch.arange(100) % 3
    first, second = (
        {"values": random_losses(seed).double() + 1e-12, "weights": weights, "group": group}
        for seed in range(2)
    )
    return Case(
        WeightedMean,
        {"groups": GROUP_NAMES},
        (first, second),
        nothing={**first, "weights": 0 * weights},
        bad={**first, "weights": -weights},
        others=({"groups": GROUP_NAMES[::-1]}, {"groups": (*GROUP_NAMES, "tool")}),
    )


def _bits_per_byte():
    """Of a table and counts that half precision cannot hold."""
    sizes = [300, 1, 4, 3, 0, 16, 2]
    labels = [torch.arange(1001) * step % 7 for step in (2, 3)]
    first, second = (
        {"losses": random_losses(seed, 1001), "labels": each, "mask": each != 2}
        for seed, each in enumerate(labels)
    )
    return Case(
        BitsPerByte,
        {"token_bytes": sizes},
        (first, second),
        nothing={**first, "mask": first["mask"] & False},
        bad={**first, "labels": labels[0] + 7},
        others=({"token_bytes": [*sizes[:-1], 3]}, {"token_bytes": [*sizes, 5]}),
    )


def _proxies():
    first, second = (_named("logits labels", *batch(seed, (4, 9), 0, vocabulary=13)) for seed in range(2))
    counts = tuple((7 * i) % 30 for i in range(13))
    others = {
        "last_n": 5,
        "shift": True,
        "ignore_index": 0,
        "vocabulary": 99,
        "inverse": "reciprocal",
        "token_counts": counts[::-1],
        "gaussian_center": 0.0,
        "gaussian_width": 2.0,
    }
    return Case(
        TokenProxies,
        {"last_n": 4, "token_counts": counts, "inverse": "complement"},
        (first, second),
        nothing={name: value[:, :0] for name, value in first.items()},
        bad={**first, "labels": first["labels"] + 13},
        others=tuple({name: value} for name, value in others.items()),
    )


def _tail_tokens():
    first, second = (_named("logits labels", *batch(seed, ignored=0)) for seed in range(2))
    for place, one in enumerate((first, second)):  # some beyond what float64 can hold
        one["document"] = torch.tensor([-1, 2**62 + place, -(2**63), place])
    return Case(
        TailTokens,
        {"n": 30},
        (first, second),
        nothing={name: value[:0] for name, value in first.items()},
        bad={**first, "labels": first["labels"] + V},
        others=({"n": 29}, {"ignore_index": 3}, {"shift": True}),
    )


def _label_totals():
    first, second = (_named("logits labels", *batch(seed, ignored=0)) for seed in range(2))
    return Case(
        LabelTotals,
        {"vocabulary": V + 1},
        (first, second),
        nothing={name: value[:0] for name, value in first.items()},
        bad={**first, "labels": first["labels"] + V},
        others=({"vocabulary": V}, {"ignore_index": 3}, {"shift": True}),
        collectives=("all_reduce",),
    )


def _pass_at_n():
    """Packed rows of two answers, and a token of none."""
    answer = torch.tensor([[7, 7, 7, 0, 0, -1, 7]]).expand(30, 7)
    first, second = (
        {"losses": random_losses(seed, 210).reshape(30, 7), "answer": answer, "mask": answer != seed}
        for seed in range(2)
    )
    return Case(
        ExpectedPassAtN,
        {"n": (1, 300)},
        (first, second),
        nothing={**first, "answer": answer * 0 - 1},
        bad={**first, "losses": -first["losses"]},
        others=({"n": (300, 1)}, {"n": (1, 301)}, {"n": (1,)}),
    )


CASES = {
    "percentiles": _percentiles(),
    "percentiles of groups": _percentiles_of_groups(),
    "percentiles by document": _percentiles_by_document(),
    "quantiles": _quantiles(),
    "weighted mean of groups": _weighted_mean(),
    "bits per byte": _bits_per_byte(),
    "proxies": _proxies(),
    "tail tokens": _tail_tokens(),
    "label totals": _label_totals(),
    "pass at n": _pass_at_n(),
}

ALL_COPIES = COPIES | {"copy": copy.copy, "torch.save": saved_and_loaded}


def as_dict(result):
    """A dict, a named tuple or a tensor by name."""
    if isinstance(result, torch.Tensor):
        return {"result": result}
    return result if isinstance(result, dict) else result._asdict()


def results(metric):
    """What ``compute`` gives, by name; the views of a metric that has views show the same."""
    result = as_dict(metric.compute())
    for key in result if hasattr(metric, "view") else ():
        torch.testing.assert_close(metric.view(key).compute(), result[key], rtol=0, atol=0, equal_nan=True)
    return result


def moved(arguments, device):
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
