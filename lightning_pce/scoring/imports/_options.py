"""What a user says of a file, and what a reader finds out about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning_pce._errors import UserError


@dataclass(frozen=True)
class Options:
    """How the columns of a file are to be read; other formats have no options.

    Args:
        column: where the numbers are.
        kind: ``"logprob"`` or ``"loss"``, in nats.
        document: the column with the id of the document.
        group: the column with the name of the tokens' group.
    """

    column: str | None = None
    kind: str = "logprob"
    document: str | None = None
    group: str | None = None


@dataclass
class Source:
    """What a reader finds out beside the documents.

    Args:
        model: the name of the model, if the file has one.
        name: a name for the data, if the file has one.
        how: what the record says of how it was scored.
        notes: what is to be said of the numbers.
    """

    model: str | None = None
    name: str | None = None
    how: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def see_model(self, model: Any, where: str) -> None:
        """Refuse a second model: a record is of one."""
        if not isinstance(model, str):
            return
        if self.model not in (None, model):
            raise UserError(
                f"{where} is of the model {model!r} and those before of {self.model!r}: give a file to each."
            )
        self.model = model

    def note(self, text: str) -> None:
        """Say something of the numbers, once."""
        if text not in self.notes:
            self.notes.append(text)
