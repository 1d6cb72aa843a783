"""``samples_<task>_<date>.jsonl`` of lm-evaluation-harness (``--log_samples``): sums of documents only."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_pce._errors import UserError
from lightning_pce.scoring.imports._documents import losses
from lightning_pce.scoring.imports._json_files import Item, objects
from lightning_pce.scoring.imports._options import Source

# What the harness puts between the name of a task and the end of the file's name.
_FILE = re.compile(r"samples_(.+)_\d{4}-\d{2}-\d{2}T.*")


class DocumentSum(NamedTuple):
    """A document that was scored as a whole."""

    name: str
    nats: float
    bytes: int
    """UTF-8, of the text that was scored."""


def document_sums(path: Path, source: Source) -> Iterator[DocumentSum]:
    """The documents of a file; of multiple choice the right answer.

    Raises:
        UserError: if these are no samples, or text was generated and not scored.
    """
    matched = _FILE.fullmatch(path.stem)
    source.name = matched[1] if matched else None
    data, kept, kinds = hashlib.sha256(), None, set()
    for item in objects(path):
        where, values = item
        kept = str(values.get("filter")) if kept is None else kept
        if str(values.get("filter")) != kept:
            continue  # the same answers once more
        kind, nats, text = _of_sample(item)
        kinds.add(kind)
        if len(kinds) > 1:
            raise UserError(f"{where} is a sample of {kind}, unlike those before: give a file to each task.")
        for key in ("doc_hash", "prompt_hash", "target_hash"):
            data.update(str(values.get(key)).encode(errors="surrogatepass"))
        name = values.get("doc_hash", values.get("doc_id"))
        yield DocumentSum(str(name), nats, len(text.encode(errors="surrogatepass")))
    source.how |= {"data": data.hexdigest()[:16], "protocol": f"lm-eval {next(iter(kinds))}"}
    source.note("sums of documents only: there are no percentiles of tokens")


def _of_sample(item: Item) -> tuple[str, float, str]:
    """What kind of request it was, the nats of the text that was scored, and that text."""
    where, values = item
    requests, answers = values.get("arguments"), values.get("resps")
    requests = list(requests.values()) if isinstance(requests, Mapping) else requests
    if not isinstance(answers, list) or not isinstance(requests, list) or not requests or "doc" not in values:
        raise UserError(
            f"{where} is no sample of lm-eval (with doc, arguments, resps): run it with --log_samples, and "
            "give a file samples_<task>_<date>.jsonl."
        )
    # Older files have a list for each request.
    asked = [list(each.values()) if isinstance(each, Mapping) else each for each in requests]
    if any(not isinstance(each, list) or len(each) != len(asked[0]) for each in asked):
        raise UserError(f"{where} has requests of different kinds: it is damaged.")
    if any(not isinstance(each, str) for request in asked for each in request):
        raise UserError(f"{where} is of generated text, which has no log-likelihood: choose another task.")
    if len(asked) != len(answers):
        raise UserError(f"{where} has {len(answers)} answers to {len(asked)} requests: it is damaged.")
    if len(asked[0]) not in (1, 2):
        raise UserError(f"{where} has requests of {len(asked[0])} arguments: that is no log-likelihood.")
    if len(asked[0]) == 1:
        return "loglikelihood_rolling", _nats(answers[0], where), asked[0][0]
    if len(asked) == 1:
        return "loglikelihood", _nats(answers[0], where), asked[0][1]
    right = _right_choice(values.get("target"), asked, where)
    return "multiple_choice", _nats(answers[right], where), asked[right][1]


def _nats(answer: Any, where: str) -> float:
    """Of an answer as the harness writes it: ``["-1.5"]``, or ``[["-1.5", "True"]]``."""
    while isinstance(answer, list) and answer:
        answer = answer[0]
    try:
        number = float(answer)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: expected a log-likelihood but got {str(answer)[:40]!r}: only tasks that have "
            "log-likelihoods can be imported."
        ) from error
    return float(losses([number], where)[0])


def _right_choice(target: Any, asked: list[list[Any]], where: str) -> int:
    """Which request was of the right answer: the target is its number, or its text."""
    text = str(target).strip()
    same = {at for at, request in enumerate(asked) if str(request[1]).strip() == text}
    if text.isdigit() and int(text) < len(asked):
        same.add(int(text))
    if len(same) != 1:
        raise UserError(
            f"{where}: the target {text[:40]!r} is {'none' if not same else 'several'} of the {len(asked)} "
            "choices, by number or text: this task can't be imported."
        )
    return same.pop()
