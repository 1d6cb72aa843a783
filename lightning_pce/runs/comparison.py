"""Records compared with error bars: what each statistic is, what it picks, and what lies between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_pce._errors import UserError
from lightning_pce.intervals import Interval
from lightning_pce.runs._candidates import Candidates, item_of_record
from lightning_pce.runs._comparison import Comparison
from lightning_pce.runs._documents_compared import bits_per_byte, by_bytes, by_documents
from lightning_pce.runs._records import Record
from lightning_pce.runs._table import STATISTICS, table_of
from lightning_pce.runs._task import Task, TaskLike, task_of
from lightning_pce.runs._ties import tied
from lightning_pce.runs._verdict import Verdict, verdict_of
from lightning_pce.runs.comparable import Basis, basis_of, reference_in
from lightning_pce.runs.history import History
from lightning_pce.runs.task_values import TaskFile, TaskValues
from lightning_pce.runs.what_moved import Moved, moved

__all__ = ["Comparison", "Task", "compare"]

_IN_WORDS = {"tokens": "nats a token", "bytes": "bits a byte", "documents": "nats a document"}


def compare(
    history: History,
    *,
    reference: str | int | None = None,
    task: TaskLike | TaskFile | None = None,
    higher_is_better: bool = True,
) -> Comparison:
    """Compare the records of a history, which may be of several runs, with error bars by document.

    Records of one tokenizer are compared by their tokens. Of several tokenizers bits per byte are compared,
    over the bytes that all have scored, and percentiles are those of documents. Of records that hold sums of
    documents only it is the mean a document. The statistic is ``history.of``, cross-entropy if there is a
    choice.

    Args:
        history: its records are of the same data, see :func:`lightning_pce.runs.comparable.sections`.
        reference: what differences are from: a label, the path of a model or a place; None: the first record.
        task: as for :func:`lightning_pce.runs.table`, or a file.
        higher_is_better: of the task metric.

    Returns:
        :class:`Comparison`; ``print`` shows it.

    Raises:
        UserError: if there are no records, or they may not be compared; it says which, why, and what to do.

    Example:
        >>> import tempfile
        >>> from lightning_pce.digest import from_values
        >>> from lightning_pce.runs.history import write_validation
        >>> path = tempfile.mkdtemp() + "/records.jsonl"
        >>> for name, shift in (("step-1", 0.0), ("step-2", -0.5)):
        ...     digests = {"ce": {"": from_values(torch.linspace(1, 3, 101) + shift)}}
        ...     write_validation(
        ...         path, run=name, name="web", step=None, function="score", checkpoint=name, digests=digests
        ...     )
        >>> found = compare(History.load(path))
        >>> round(found.differences["step-2"]["mean"].value, 6), found.verdict.shortlist
        (-0.5, ('step-2',))
    """
    records = tuple(history)
    if not records:
        raise UserError("There are no records to compare: score a model with evaluate.")
    basis = basis_of(history)
    chosen, notes = _candidates(records, basis, history.group)
    base = _kept(reference_in(records, reference), chosen, given=reference is not None)
    found, said = _task(task, chosen, records, higher_is_better)
    statistics = ("mean",) if basis.by == "documents" else STATISTICS
    table, verdict = None, None
    if basis.by != "documents":
        table = table_of(chosen, found)
        verdict = verdict_of(chosen, found, of_tokens=basis.by == "tokens")
    pair = _pair(verdict, base, chosen.names)
    change = None
    if pair is not None and (basis.by, basis.of, history.group) == ("tokens", "ce", ""):
        change = _moved(*(_record(records, label) for label in pair))
    return Comparison(
        records=records,
        by=basis.by,
        of=basis.of,
        group=history.group,
        unit="" if basis.of not in ("ce", "entropy") else _IN_WORDS[basis.by],
        reference=base,
        values={name: chosen.error_bars(name, statistics) for name in chosen.names},
        differences={
            name: chosen.differences(base, name, statistics) for name in chosen.names if name != base
        },
        bits_per_byte=_bits_per_byte(records, chosen, basis.by),
        table=table,
        verdict=verdict,
        mean=tied(chosen, "mean"),
        task=found,
        moved=None if change is None else change[0],
        moved_pair=None if change is None else pair,
        label_texts={} if change is None else change[1],
        no_intervals=chosen.reason,
        notes=(*_torn(history), *notes, *basis.notes, *said),
    )


def _candidates(records: Sequence[Record], basis: Basis, group: str) -> tuple[Candidates, tuple[str, ...]]:
    try:
        if basis.by == "bytes":
            return by_bytes(records)
        if basis.by == "documents":
            return by_documents(records)
        items = [item_of_record(record, basis.of, group)._replace(fingerprint=None) for record in records]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        # A line that somebody has edited: what it holds may be anything.
        raise UserError(
            f"A record cannot be read ({type(error).__name__}: {error}): evaluate or import it again."
        ) from error
    return Candidates(items, basis.of), ()


def _kept(reference: Record, chosen: Candidates, *, given: bool) -> str:
    """The label of the reference; that of the first record if it was left out and nobody has asked for it."""
    if reference.label in chosen.names:
        return reference.label
    if given:
        why = chosen.left_out[reference.label]
        raise UserError(f"The reference {reference.label!r} has {why}: choose another one.")
    return chosen.names[0]


def _task(
    task: TaskLike | TaskFile | None, chosen: Candidates, records: Sequence[Record], higher_is_better: bool
) -> tuple[Task | None, tuple[str, ...]]:
    if isinstance(task, TaskFile):
        task = task.matched(records)
    notes = task.notes if isinstance(task, TaskValues) else ()
    return task_of(chosen, task, higher_is_better), notes


def _pair(verdict: Verdict | None, base: str, names: Sequence[str]) -> tuple[str, str] | None:
    """Where labels are looked at: from the mean's pick to the bulk's, or from the reference to the last."""
    if verdict is not None and verdict.bulk is not None:
        picks = verdict.picks["mean"], verdict.picks[verdict.bulk]
        if picks[0] != picks[1]:
            return picks
    others = [name for name in names if name != base]
    return (base, others[-1]) if others else None


def _moved(before: Record, after: Record) -> tuple[Moved, dict[int, str]] | None:
    """The labels that have moved the mean, and their texts; None if not both records have label totals."""
    totals = [record.label_totals for record in (before, after)]
    name = next((name for name in totals[0] if name in totals[1]), None)
    if name is None:
        return None
    pair = [each[name] for each in totals]
    size = max(map(len, pair))  # a model with added tokens has a larger vocabulary
    padded = [torch.nn.functional.pad(each, (0, 0, 0, size - len(each))) for each in pair]
    if not all(bool(each[:, 0].sum() > 0) for each in padded):
        return None
    return moved(padded[0], padded[1]), {**before.label_texts, **after.label_texts}


def _bits_per_byte(records: Sequence[Record], chosen: Candidates, by: str) -> dict[str, Interval]:
    if by == "bytes":
        return {name: chosen.error_bars(name, ["mean"])["mean"] for name in chosen.names}
    found = {}
    for record in records:
        totals = record.document_totals
        bits = None if totals is None else bits_per_byte(totals)
        if bits is not None:
            found[record.label] = bits
    return found


def _record(records: Sequence[Record], label: str) -> Record:
    return next(record for record in records if record.label == label)


def _torn(history: History) -> list[str]:
    if not history.torn:
        return []
    lines = "1 line was" if history.torn == 1 else f"{history.torn} lines were"
    return [f"{lines} torn, because what wrote them was killed, and skipped."]
