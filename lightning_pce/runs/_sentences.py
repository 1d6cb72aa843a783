"""The sentences of a verdict, one subject a function."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from lightning_pce.runs._candidates import TOLERANCE, Candidates
from lightning_pce.runs._reshaping import Reshaping
from lightning_pce.runs._task import Task, pearson
from lightning_pce.runs._ties import BULK, Ties, has_mean
from lightning_pce.runs._words import in_order, listed, number, percent, percentile, two_digits

_MOST_RANGES = 3
_NARROW = 0.02


def agreement(chosen: Candidates, every: dict[str, Ties], kept: tuple[str, ...]) -> Iterator[str]:
    """Whether one record will do, and which."""
    statistics = listed(list(every))
    if len(chosen.names) == 1:
        yield f"There is one record, {kept[0]}: nothing to choose from."
    elif len(kept) == 1:
        yield _sentence(f"{statistics} agree on {kept[0]}: it is within error of the best in each of them")
        others = set(_common(list(every.values()))) - set(kept)
        if others:
            yield f"Within error in each of them too: {in_order(list(others), chosen.names, 'and')}."
    else:
        *first, p95 = every.values()
        together = _common(first)
        if len(first) > 1 and together:
            names, where = listed([each.statistic for each in first]), in_order(together, chosen.names, "and")
            yield _sentence(
                f"{names} agree on {where}, but no record is within error of the best in {p95.statistic} too"
            )
        else:
            yield _sentence(
                f"{statistics} do not agree: no record is within error of the best in all of them"
            )
        yield f"Shortlist: {listed(kept)}."
        yield from (_held(chosen, every, name) for name in kept)


def _common(every: Sequence[Ties]) -> list[str]:
    """The records that are ties of each of some statistics."""
    return [name for name in every[0].names if all(name in each.names for each in every)]


def _held(chosen: Candidates, every: dict[str, Ties], name: str) -> str:
    """What a record of the shortlist stands for."""
    held = []
    for each in every.values():
        if name in each.names:
            best = f"the lowest is {_value(chosen, each.statistic, each.best)} at {each.best}"
            rank = "the lowest" if name == each.best else best
            held.append(f"{each.statistic} ({_value(chosen, each.statistic, name)}, {rank})")
    are = "is within error of its" if len(held) == 1 else "are within error of their"
    return f"At {name} {listed(held)} {are} best."


def change(change: Reshaping, bulk: str, *, in_nats: bool) -> Iterator[str]:
    """From the mean's pick to the bulk's: share, crossing, areas, and what is sure."""
    share, sides = percent(change.better_share), ""
    if change.crossing is not None:
        # The 199 do not see what lies beyond the last, or before the first.
        share = {0.0: "under 1 %", 1.0: "over 99 %"}.get(change.better_share, share)
        lower, higher = ("below", "above") if change.better_below else ("above", "below")
        sides = f", mostly those {lower} {percentile(change.crossing)}, while those {higher} it rise"
    yield (
        f"From {change.before}, the mean's pick, to {change.after}, the pick of {bulk}, "
        f"{share} of the percentiles fall{sides}."
    )
    gained, lost, unit = change.gained.total, change.lost.total, "nats a token" if in_nats else "a token"
    if math.isfinite(gained + lost):
        yield (
            f"What falls lowers the mean by {two_digits(gained)} {unit}, what rises raises it by "
            f"{two_digits(lost)}, {two_digits(change.lost.upper)} of that in the top 5 % of the tokens: "
            f"together {_together(lost, gained)}."
        )
    else:
        yield "Some tokens have an infinite value: by how much the mean changes cannot be said."
    if not bool(change.low.isnan().all()):
        surely = [
            f"surely {word}: {_ranges(ranges)}"
            for word, ranges in (("lower", change.better), ("higher", change.worse))
            if ranges
        ]
        yield _sentence("; ".join(surely) or "no percentile is surely lower or higher")


def _together(lost: float, gained: float) -> str:
    """The change of the mean with its sign; of equal areas there is only a rounding error."""
    together = lost - gained
    if abs(together) <= 1e-9 * (lost + gained):
        return "0"
    return f"{'+' if together > 0 else ''}{two_digits(together)}"


def saturation(saturated: tuple[str, ...], bulk: str | None, of: str) -> Iterator[str]:
    """Percentiles whose order says little, and what stands for the bulk."""
    limit = f"under {TOLERANCE} nats at best" + (", so that labels there have p > 0.99" if of == "ce" else "")
    if bulk is None:
        yield f"The bulk is saturated ({listed(BULK)} are {limit}): mean and p95 are left to compare."
    elif saturated:
        stands = "" if bulk == BULK[0] else f" {_sentence(f'{bulk} stands for the bulk')}"
        yield (
            f"Saturated: {listed(saturated)} ({limit}). Their order is about certainty, not about what is "
            f"known.{stands}"
        )


def tasks(
    chosen: Candidates, every: dict[str, Ties], kept: tuple[str, ...], task: Task | None
) -> Iterator[str]:
    """What the task metric was at each pick, and which statistics it contradicts."""
    if task is None or task.best is None:
        return
    by_pick: dict[str, list[str]] = {}
    for name, each in every.items():
        by_pick.setdefault(each.best, []).append(name)
    at = dict(zip(chosen.names, task.values.tolist(), strict=True))
    values = {name: "not known" if math.isnan(value) else number(value) for name, value in at.items()}
    said = [f"{values[pick]} at {pick} (picked by {listed(names)})" for pick, names in by_pick.items()]
    yield f"{task.name} is {listed(said)}; its best is {number(at[task.best])} at {task.best}."
    worse = 1 if task.higher_is_better else -1
    for name in every:
        r = pearson(chosen.values(name), task.values)
        if worse * r > 0:
            yield (
                f"Where {name} was lower {task.name} was worse (Pearson {r:+.2f}): the pick of {name} is not "
                "to be trusted."
            )
    known = [name for name in kept if not math.isnan(at[name])]
    if len(kept) > 1 and len(known) == len(kept):
        best = (max if task.higher_is_better else min)(known, key=lambda name: at[name])
        yield f"Of the shortlist {best} has the best {task.name}, {number(at[best])}."


def checkpoints(chosen: Candidates, kept: tuple[str, ...]) -> Iterator[str]:
    """Where the weights of the shortlist are; files that are deleted only where there is no other.

    What the command line has scored is named by the end of its path, which is not said twice.
    """
    saved = {item.name: item.record.checkpoints for item in chosen.items if item.record is not None}
    if any(saved.values()):
        said = []
        for name in kept:
            there = [each.path for each in saved[name] if not each.deleted]
            gone = [f"{each.path} (deleted)" for each in saved[name]][-1:]
            found = there or gone
            where = listed(found)
            if found:
                said.append(where if where.replace("\\", "/").endswith(name) else f"{name} in {where}")
            else:
                said.append(f"none of {name}")
        if said != list(kept):
            yield f"Checkpoints: {'; '.join(said)}."


def missing(chosen: Candidates, task: Task | None, kept: tuple[str, ...]) -> Iterator[str]:
    """What would make the verdict surer."""
    if chosen.reason is not None and len(chosen.names) > 1:
        limit = f"{TOLERANCE} nats" if chosen.in_nats else "0"
        yield (
            f"Error bars are missing ({chosen.reason}): any difference over {limit} counts, also one of "
            "chance."
        )
    if chosen.caution is not None:
        yield f"Error bars are rough: {chosen.caution}."
    if chosen.left_out:
        yield f"Left out: {listed([f'{name} ({why})' for name, why in chosen.left_out.items()])}."
    if not has_mean(chosen):
        yield "The mean is infinite at every record, as some token is: it cannot choose."
    if task is None and len(chosen.names) > 1:
        unknown = (
            "whether a task agrees" if len(kept) == 1 else "which record of the shortlist a task prefers"
        )
        yield f"A task metric is missing: losses cannot say {unknown}."
    elif task is not None and task.best is None:
        yield f"{task.name} has no value at any record."


def _value(chosen: Candidates, statistic: str, name: str) -> str:
    return number(chosen.value(statistic, name)) + (" nats" if chosen.in_nats else "")


def _ranges(ranges: Sequence[tuple[float, float]]) -> str:
    """The widest few, in order."""
    widest = sorted(ranges, key=lambda ends: ends[0] - ends[1])[:_MOST_RANGES]
    said = sorted(ends for ends in widest if ends in widest[:1] or ends[1] - ends[0] >= _NARROW)
    words = [
        percentile(low) if low == high else f"{percentile(low)} to {percentile(high)}" for low, high in said
    ]
    return listed(words) + (" (and smaller ranges)" if len(ranges) > len(said) else "")


def _sentence(words: str) -> str:
    """With a full stop, and a capital unless it begins with a percentile."""
    begins = words[0] if re.match(r"p\d", words) else words[0].upper()
    return f"{begins}{words[1:]}."
