"""A tail that becomes worse while mean and bulk agree."""

from __future__ import annotations

from lightning_pce.runs._candidates import Candidates
from lightning_pce.runs._ties import Ties, allowed_costs, best_of
from lightning_pce.runs._words import number

_SURE = 0.99
_SURE_Z = 2.33  # of a normal distribution, one side


def alarm_of(chosen: Candidates, every: dict[str, Ties], bulk: str | None) -> str | None:
    """On p95 at what mean and bulk pick, or at the last record."""
    if bulk is None or chosen.reason is not None:
        return None
    if set(every["mean"].names).isdisjoint(every[bulk].names):
        return None
    best, costs = best_of(chosen.values("p95"))
    worse = costs > allowed_costs(chosen, "p95", best, _SURE)
    last = chosen.names[-1]
    places = {
        every[statistic].best: pick
        for statistic, pick in ((bulk, f"the pick of {bulk}"), ("mean", "the mean's pick"))
        # Of equal ones the pick is the first by chance: each must be worse.
        if all(bool(worse[chosen.names.index(name)]) for name in _lowest(every[statistic]))
    }
    if last in every[bulk].names and _rises_more(chosen, bulk, best, len(chosen.names) - 1):
        places.setdefault(last, f"the last record, where {bulk} is within error of its best")
    for name, what in places.items():
        if bool(worse[chosen.names.index(name)]):
            values = [_value(chosen, each) for each in (name, chosen.names[best])]
            return (
                f"Alarm: mean and {bulk} agree, but the tail has become worse. At {name}, {what}, p95 is "
                f"{values[0]}, surely more than {values[1]} at {chosen.names[best]}."
            )
    return None


def _lowest(ties: Ties) -> list[str]:
    return [name for name, cost in ties.costs.items() if cost == 0]


def _rises_more(chosen: Candidates, bulk: str, start: int, stop: int) -> bool:
    """Whether p95 has risen by surely more than the bulk from one record to a later one, as a factor."""
    drawn = chosen.replicates("p95", bulk)
    if drawn is None or start >= stop:
        return False
    factors, values = [], []
    for statistic, resampled in zip(("p95", bulk), drawn, strict=True):
        own = chosen.values(statistic)
        if not bool((own[[start, stop]] > 0).all()):
            return False
        values.append(own[stop].log() - own[start].log())
        factors.append(resampled[stop].log() - resampled[start].log())
    return bool(values[0] - values[1] > _SURE_Z * (factors[0] - factors[1]).std())


def _value(chosen: Candidates, name: str) -> str:
    return number(chosen.value("p95", name)) + (" nats" if chosen.in_nats else "")
