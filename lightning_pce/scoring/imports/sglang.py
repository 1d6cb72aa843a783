"""SGLang's ``input_token_logprobs``: answers of its ``/generate``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from lightning_pce._errors import UserError
from lightning_pce.scoring.imports._documents import ScoredDocument, losses, token_ids
from lightning_pce.scoring.imports._json_files import answers
from lightning_pce.scoring.imports._options import Options, Source

_MOST = 1 << 31
_ASK = "ask /generate with return_logprob=true and logprob_start_len=0"


def documents(path: Path, options: Options, source: Source) -> Iterator[ScoredDocument]:
    """The prompts of a file, a document each, from ``logprob_start_len`` on.

    Raises:
        UserError: if there are no log-probabilities, or fewer than the prompt has tokens.
    """
    for (where, body), name in answers(path):
        about = body.get("meta_info")
        about = about if isinstance(about, Mapping) else {}
        rows = about.get("input_token_logprobs")
        if not isinstance(rows, list) or not rows:
            raise UserError(f"{where} has no meta_info.input_token_logprobs: {_ASK}.")
        odd = next((at for at, row in enumerate(rows) if not isinstance(row, list) or len(row) < 2), None)
        if odd is not None:
            raise UserError(
                f"{where}, token {odd}: expected [log-probability, id, text] but got {str(rows[odd])[:40]!r}."
            )
        start = _start(about.get("prompt_tokens"), len(rows), where)
        if start:
            source.note("the beginning of each prompt is not scored (logprob_start_len)")
        first = 1 if rows[0][0] is None else 0
        texts = [str(row[2]) for row in rows if len(row) > 2 and row[2] is not None]
        yield ScoredDocument(
            name,
            losses([row[0] for row in rows[first:]], where),
            where,
            first=start + first,
            ids=token_ids([row[1] for row in rows[first:]], where),
            texts=[""] * start + texts if len(texts) == len(rows) else None,
        )


def _start(told: object, rows: int, where: str) -> int:
    """Which token of the prompt the first row is of."""
    if type(told) is not int:
        return 0
    if not rows <= told < _MOST:
        raise UserError(
            f"{where} has {rows} input_token_logprobs, but its prompt has {told} tokens: is it one answer?"
        )
    return told - rows
