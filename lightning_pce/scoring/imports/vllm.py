"""vLLM's ``prompt_logprobs``: answers of its server, or its ``RequestOutput`` written as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_pce._errors import UserError
from lightning_pce.scoring.imports._documents import ScoredDocument, dicts, losses, token_ids
from lightning_pce.scoring.imports._json_files import answers
from lightning_pce.scoring.imports._options import Options, Source

_NOTE_ON_RANKS = "ranks are vLLM's: of tokens with equal log-probabilities each has the last one's rank"


def documents(path: Path, options: Options, source: Source) -> Iterator[ScoredDocument]:
    """The prompts of a file, a document each.

    Raises:
        UserError: if a prompt has no log-probabilities, or it can't be told which of several are its own.
    """
    for (where, body), name in answers(path):
        source.see_model(body.get("model"), where)
        if (
            body.get("choices") is None or "prompt_logprobs" in body
        ):  # of a chat, or a RequestOutput: beside the choices
            _check_tokens([body], body, where)
            yield _document(body, where, name, source)
            continue
        choices = dicts(body["choices"], where, "choices")
        _check_tokens(choices, body, where)
        for number, choice in enumerate(choices):
            several = name is not None and len(choices) > 1
            yield _document(choice, where, f"{name}/{number}" if several else name, source)


def _document(values: Mapping[str, Any], where: str, name: str | None, source: Source) -> ScoredDocument:
    entries, ids = values.get("prompt_logprobs"), values.get("prompt_token_ids")
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"{where} has no prompt_logprobs: ask vLLM with prompt_logprobs=0 and return_token_ids=true."
        )
    if ids is not None:
        ids = token_ids(ids, where)
        if len(ids) != len(entries):
            raise UserError(
                f"{where} has {len(entries)} prompt_logprobs of {len(ids)} tokens: it is cut short; ask "
                "again."
            )
    first = 0 if entries[0] is not None else 1
    chosen = [
        _own(entry, None if ids is None else int(ids[at]), f"{where}, token {at}")
        for at, entry in enumerate(entries[first:], first)
    ]
    found = [entry if isinstance(entry, Mapping) else {"logprob": entry} for _, entry in chosen]
    texts = [str(each.get("decoded_token") or "") for each in found]
    ranks = [each.get("rank") for each in found]
    ranked = all(type(rank) is int and rank > 0 for rank in ranks) and bool(ranks)
    if ranked:
        source.note(_NOTE_ON_RANKS)
    return ScoredDocument(
        name,
        losses([each.get("logprob") for each in found], where),
        where,
        first=first,
        ids=np.array([own for own, _ in chosen], dtype=np.int64),
        ranks=np.array(ranks, dtype=np.float64) if ranked else None,
        texts=[""] * first + texts if any(texts) else None,
    )


def _own(entry: Any, own: int | None, where: str) -> tuple[int, Any]:
    """The id of the token that stands in the text, and its entry among the candidates."""
    if not isinstance(entry, Mapping) or not entry:
        raise UserError(
            f"{where} has no candidates but {str(entry)[:40]!r}: only the first token may have none; ask "
            "again."
        )
    if own is not None:
        if str(own) not in entry:
            raise UserError(
                f"{where}: the text's token {own} is not among the candidates {', '.join(entry)[:60]}: ids "
                "and log-probabilities are not of one text."
            )
        return own, entry[str(own)]
    if len(entry) > 1:
        raise UserError(
            f"{where} has {len(entry)} candidates and no prompt_token_ids, so that it is not known which one "
            "the text has: ask with return_token_ids=true, or prompt_logprobs=0."
        )
    ((key, value),) = entry.items()
    if not key.lstrip("-").isdigit():
        raise UserError(f"{where}: expected a token's id as the key of a candidate but got {key!r}.")
    return int(key), value


def _check_tokens(parts: Sequence[Mapping[str, Any]], body: Mapping[str, Any], where: str) -> None:
    """Refuse prompts that were cut, or that several answers (n > 1) repeat."""
    usage = body.get("usage")
    told = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    entries = [part.get("prompt_logprobs") for part in parts]
    there = sum(len(each) for each in entries if isinstance(each, list))
    if type(told) is not int or there in (told, 0):
        return
    if there > told > 0 and there % told == 0 and len(parts) % (there // told) == 0:
        raise UserError(
            f"{where}: {len(parts)} choices repeat the same prompts ({there} prompt_logprobs for {told} "
            "tokens): ask with n=1."
        )
    raise UserError(
        f"{where} has {there} prompt_logprobs, but usage tells of {told} tokens: it is cut short; ask again."
    )
