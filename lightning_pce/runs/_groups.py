"""Whether groups of tokens, such as prompts and completions, choose other records by their means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lightning_pce._errors import UserError
from lightning_pce.runs._candidates import Candidates, item_of_record
from lightning_pce.runs._records import Record
from lightning_pce.runs._ties import Ties, has_mean, tied
from lightning_pce.runs._words import listed

_CHANCE = 0.05


def ties_by_group(chosen: Candidates) -> dict[str, Ties]:
    """The ties of the mean in each group that has tokens and error bars.

    A group of G is judged at 1 - 0.05 / G: one of many would choose another record by chance. None are looked
    at if the candidates are of one group themselves, or not of records. A group that some record does not
    have, has damaged, or has with other tokens is left out.
    """
    records = [item.record for item in chosen.items if item.record is not None and item.group == ""]
    if chosen.reason is not None or len(records) < len(chosen.items):
        return {}
    names = [name for name in records[0].groups_of(chosen.of) if name]
    every = {name: _of_group(chosen, records, name) for name in names}
    known = {name: group for name, group in every.items() if group is not None}
    return {name: tied(group, "mean", 1 - _CHANCE / len(known)) for name, group in known.items()}


def _of_group(chosen: Candidates, records: list[Record], group: str) -> Candidates | None:
    """The same records by a group of their tokens; None if they cannot be compared by it."""
    if any(group not in record.groups_of(chosen.of) for record in records):
        return None
    try:
        items = [item_of_record(each, chosen.of, group) for each in records]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None  # damaged, which is no reason to say nothing of all tokens
    try:
        found = Candidates(items, chosen.of)
    except UserError:  # no tokens, or not equally many
        return None
    return found if found.reason is None and not found.left_out and has_mean(found) else None


def part(groups: Mapping[str, Ties]) -> bool:
    """Whether no record is within error of the best in every group."""
    ties = [set(each.names) for each in groups.values()]
    return len(ties) > 1 and not set.intersection(*ties)


def parting(chosen: Candidates, groups: Mapping[str, Ties]) -> Iterator[str]:
    """What the groups would choose, if they part."""
    if not part(groups):
        return
    by_pick: dict[str, list[str]] = {}
    for name, each in groups.items():
        by_pick.setdefault(each.best, []).append(name)
    lowest = [f"in {listed(by_pick[name])} at {name}" for name in chosen.names if name in by_pick]
    yield (
        f"Groups of tokens part: the mean is lowest {listed(lowest)}, and no record is within error of the "
        "lowest in each group. All tokens together mix them: look at the group that matters, by "
        "history.select(group=) or --group."
    )
