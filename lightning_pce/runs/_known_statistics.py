"""What is known of a statistic by its name: what holds its limit, and which way is better.

A bound that is wrong makes every forecast wrong: a cross-entropy below 1, say. So nothing is assumed of what
a user has logged but of a few names whose values fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

Bounds = tuple[float | None, float | None]


class Known(NamedTuple):
    """What holds the limit of a series, and which way it should go; None: not known."""

    bounds: Bounds | None = None
    rising: bool | None = None
    note: str | None = None
    """What is to be said of it, where it is guessed."""


NOTHING = Known()
_SHARE, _POSITIVE = (0.0, 1.0), (0.0, None)
# Of tokens, by what keys begin with; the entropy of a better model may be higher or lower, and its margin
# rises before it falls.
_OF_TOKENS = {
    "ce_better_share": Known(_SHARE),
    "ce": Known(_POSITIVE, False),
    "bits_per_byte": Known(_POSITIVE, False),
    "log_rank": Known(_POSITIVE, False),
    "rank": Known((1.0, None), False),
    "entropy": Known(_POSITIVE),
    "target_prob": Known(_SHARE, True),
    "max_prob": Known(_SHARE),
    "margin": Known(_SHARE),
    "accuracy": Known(_SHARE, True),
    "top5_accuracy": Known(_SHARE, True),
}
# Weighted by what the model itself holds for probable, a better model need not be lower or higher.
_OF_PROXIES = {
    "ce": Known(_POSITIVE, False),
    "top1": Known(_SHARE, True),
    "top2": Known(_SHARE, True),
    "top3": Known(_SHARE, True),
    "top5": Known(_SHARE, True),
    "entropy": Known(_SHARE),  # over log V
    "rank": Known((1.0, None), False),
    "reciprocal_rank": Known(_SHARE, True),
    "margin": Known(_SHARE),
    "wrong_confidence": Known(_SHARE),
}
_DIRECTION_KEPT = ("uniform", "frequency", "inverse_frequency")
_COUNTED = ("count", "nonfinite", "invalid", "nan", "tokens", "sequences", "se")
_SHARES = ("accuracy", "acc", "recall", "precision", "f1", "auroc")
_PASS = re.compile(r"pass_at_\d+$")


def known_of_tokens(key: str) -> Known:
    """What is known of a key of ``record.values``.

    Example:
        >>> known_of_tokens("ce_web_p50")[:2], known_of_tokens("proxy_top1_uniform")[:2]
        (((0.0, None), False), ((0.0, 1.0), True))
    """
    if key.rpartition("_")[2] in _COUNTED:
        return NOTHING
    if key.startswith("proxy_"):
        return _of_proxy(key.removeprefix("proxy_"))
    names = [name for name in _OF_TOKENS if key == name or key.startswith(f"{name}_")]
    return _OF_TOKENS[max(names, key=len)] if names else NOTHING


def known_by_name(name: str, values: Iterable[float]) -> Known:
    """What the name of a user's metric says, if all values fit.

    Example:
        >>> known_by_name("val_accuracy", [0.2, 0.4]).bounds, known_by_name("val_accuracy", [20.0]).bounds
        ((0.0, 1.0), None)
    """
    values = list(values)
    plain = re.sub(r"/dataloader_idx_\d+$", "", name).lower()
    last = re.split(r"[^a-z0-9]+", plain)[-1]
    if (last in _SHARES or _PASS.search(plain)) and all(0 <= value <= 1 for value in values):
        return Known(_SHARE, True, _guessed(name, "between 0 and 1"))
    if last == "loss" and all(value >= 0 for value in values):
        return Known(_POSITIVE, False, _guessed(name, "not below 0"))
    return NOTHING


def _of_proxy(name: str) -> Known:
    for statistic in sorted(_OF_PROXIES, key=len, reverse=True):  # reciprocal_rank before rank
        if name.startswith(f"{statistic}_"):
            known = _OF_PROXIES[statistic]
            kept = name.removeprefix(f"{statistic}_") in _DIRECTION_KEPT
            return known if kept else known._replace(rising=None)
    return NOTHING


def _guessed(name: str, where: str) -> str:
    return f"By its name the limit of {name} is taken to lie {where}: other bounds can be given."
