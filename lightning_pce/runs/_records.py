"""One validation as a record, and the records that the lines of a history leave.

A run that was killed goes on from an earlier checkpoint and does again what came after it. So a start line
takes back what the run had behind that position, and of lines with one key the last is meant.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_pce.runs._headers import DOCUMENT_TOTALS, LABEL_TOTALS, NO_STATISTICS, TAIL, Payload
from lightning_pce.runs.tail import TailToken, tail_in

# Records are looked through without torch, which takes seconds to import; what is in _lines needs it.
if TYPE_CHECKING:
    from torch import Tensor

    from lightning_pce.runs.document_totals import DocumentTotals


# Functions of the command line.
SCORED = ("score", "import")


class Checkpoint(NamedTuple):
    """A file with the weights of a record."""

    path: str
    """Of the file, or a URL."""
    monitor: str | None
    """What it was chosen by."""
    deleted: bool
    """The path does not exist any more; False of a URL, which is not looked up."""


class Saved(NamedTuple):
    """A checkpoint as its line has it."""

    path: str
    """Of the file, or a URL."""
    monitor: str | None
    """What it was chosen by."""
    step: int | None
    """Steps of the optimizers until then."""
    batch: int | None
    """Batches of training until then."""


class Key(NamedTuple):
    """What tells a record from all others: of lines with one key the last is meant.

    All but ``checkpoint`` are those of the :class:`Record`.
    """

    run: str
    function: str
    name: str
    batch: int | None
    step: int | None
    checkpoint: str | None
    """The path of the checkpoint, only where the step is unknown."""
    fingerprint: str | None
    """Of the data: of two that were validated at one step none takes the place of the other."""


@dataclass(frozen=True, eq=False, slots=True)
class Record:
    """One validation of one dataloader.

    Args:
        run: the id of the run; what is resumed from a checkpoint is the same run.
        function: ``"fit"``, ``"validate"``, ``"evaluate"`` of transformers' Trainer, ``"score"`` of the
            command line, or ``"import"`` of log-probabilities that were made elsewhere.
        name: what logged names begin with: ``"val"``, or of several dataloaders ``"val_dl0"``.
        step: steps of the optimizers until then, ``trainer.global_step``; None: not known, as of a
            checkpoint that was validated by itself.
        epoch: the number of the epoch, from 0 on as Lightning counts them; None: not in training.
        batch: batches of training until then. Where gradients are accumulated several records share a step.
        values: what is known of the tokens, by name without ``"val_"``: ``"ce_mean"``, ``"ce_p50"``,
            ``"ce_web_p50"``, ``"entropy_p95"``, ``"ce_count"`` ..., in nats where they are losses.
        scalars: what else was logged in this validation, by its whole name.
        stale: what was logged earlier, and not again in this validation.
        fingerprint: of the data and of how it is scored; None: not known.
        metadata: what the user has noted.
        how: how the command line has scored it: ``data``, ``protocol``, ``context``, ``stride``, ``bos``,
            ``masking``, ``tokenizer`` ...; what is not there is not known.
        label: a short name, which no other record of the same :class:`History` has.
    """

    run: str
    function: str
    name: str
    step: int | None = None
    epoch: int | None = None
    batch: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    stale: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    how: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    saved: tuple[Saved, ...] = field(default=(), repr=False)
    payload: Payload | None = field(default=None, repr=False)

    @property
    def key(self) -> Key:
        """What tells it from others."""
        path = self.saved[0].path if self.step is None and self.saved else None
        return Key(self.run, self.function, self.name, self.batch, self.step, path, self.fingerprint)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The files with the weights of this step that are known, deleted ones too; looked up when asked.

        What the command line has scored is called as it was there, which may be the name of a model elsewhere
        or a path from another folder: it is not looked up.
        """
        return tuple(
            Checkpoint(
                each.path,
                each.monitor,
                self.function not in SCORED and "://" not in each.path and not os.path.exists(each.path),
            )
            for each in self.saved
        )

    @property
    def statistics(self) -> tuple[str, ...]:
        """What there is a digest of: ``"ce"`` and others."""
        return tuple(name for name in self._items() if name not in NO_STATISTICS)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of tokens that CE has a digest of, ``""`` of all."""
        return self.groups_of("ce")

    def groups_of(self, of: str) -> tuple[str, ...]:
        """The groups of tokens that a statistic has a digest of, ``""`` of all."""
        return () if of in NO_STATISTICS else tuple(self._items().get(of, ()))

    def digest(self, of: str = "ce", group: str = "") -> Tensor:
        """The digest ``[K + 3, 2]`` of a statistic and of a group, read from the file at each call.

        Raises:
            ValueError: if there is none, or the file has changed since it was loaded.
        """
        from lightning_pce.runs._lines import digest_in

        return digest_in(self._item(of, group))

    def documents(self, of: str = "ce", group: str = "") -> Tensor | None:
        """The counts by document ``[128, 97]``, read from the file at each call; None if none were kept.

        Raises:
            ValueError: as :meth:`digest`.
        """
        from lightning_pce.runs._lines import documents_in

        return documents_in(self._item(of, group))

    @property
    def label_totals(self) -> Mapping[str, Tensor]:
        """``[V, 2]`` of each :class:`lightning_pce.LabelTotals` by its name in the module, read at each call.

        Raises:
            ValueError: as :meth:`digest`.
        """
        from lightning_pce.runs._lines import label_totals_in

        items = self._items().get(LABEL_TOTALS, {})
        return {name: label_totals_in(item) for name, item in items.items()}

    @property
    def label_texts(self) -> Mapping[int, str]:
        """The text of each label that has tokens, read at each call; empty if it was not kept.

        Raises:
            ValueError: as :meth:`digest`.
        """
        from lightning_pce.runs._lines import label_texts_in

        found: dict[int, str] = {}
        for item in self._items().get(LABEL_TOTALS, {}).values():
            found |= label_texts_in(item)
        return found

    @property
    def document_totals(self) -> DocumentTotals | None:
        """What each document has cost, read at each call; None if it was not kept.

        Raises:
            ValueError: as :meth:`digest`.
        """
        from lightning_pce.runs._lines import document_totals_in

        item = self._items().get(DOCUMENT_TOTALS, {}).get("")
        return None if item is None else document_totals_in(item)

    @property
    def tail(self) -> tuple[TailToken, ...]:
        """The tokens of highest cross-entropy, read at each call; none if they were not kept.

        Raises:
            ValueError: as :meth:`digest`.
        """
        item = self._items().get(TAIL, {}).get("ce")
        return () if item is None else tail_in(item)

    def _items(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        return {} if self.payload is None else self.payload.read()

    def _item(self, of: str, group: str) -> Mapping[str, Any]:
        items = self._items()
        if of in NO_STATISTICS or group not in items.get(of, {}):
            there = [f"of={name!r}, group={each!r}" for name in self.statistics for each in items[name]]
            raise ValueError(
                f"Record {self.label or self.key} has no digest of={of!r}, group={group!r}: "
                f"{'it has ' + '; '.join(there) if there else 'it was kept without digests'}."
            )
        return items[of][group]


class Records:
    """Records as line after line leaves them, in order."""

    def __init__(self) -> None:
        self._by_run: dict[str, dict[Key, tuple[int, Record]]] = {}  # with the number of the line
        self._saved: dict[str, tuple[str, Saved]] = {}  # by path, with the run: a file holds what came last
        self._lines = 0

    def start(self, run: str, step: int | None, batch: int | None) -> None:
        """Training begins or goes on here: what the run had behind this position is taken back."""
        records = self._by_run.get(run, {})
        for key in [key for key in records if _behind(key, step, batch)]:
            del records[key]
        for path in [path for path, (of, saved) in self._saved.items() if of == run]:
            if _behind(self._saved[path][1], step, batch):
                del self._saved[path]

    def add(self, record: Record) -> None:
        """A validation; an earlier one of the same key is replaced."""
        self._lines += 1
        self._by_run.setdefault(record.run, {})[record.key] = self._lines, record

    def save(self, run: str, saved: Saved) -> None:
        """A checkpoint was written."""
        self._saved[saved.path] = run, saved

    def all(self) -> list[Record]:
        """What is left, each with the checkpoints of its run and step."""
        found: dict[tuple[str, int | None], tuple[Saved, ...]] = {}
        for run, saved in self._saved.values():
            found[run, saved.step] = (*found.get((run, saved.step), ()), saved)
        numbered = sorted(
            (each for records in self._by_run.values() for each in records.values()), key=lambda pair: pair[0]
        )
        return [
            replace(record, saved=found[record.run, record.step])
            if record.step is not None and (record.run, record.step) in found
            else record
            for _, record in numbered
        ]


def _behind(what: Key | Saved, step: int | None, batch: int | None) -> bool:
    """Whether something lies behind a position, by batches of training if both are known."""
    if what.batch is not None and batch is not None:
        return what.batch > batch
    return what.step is not None and step is not None and what.step > step
