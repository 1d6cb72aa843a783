"""Completions in OpenAI's style that repeat the prompt: ``echo`` with ``logprobs``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_pce._errors import UserError
from lightning_pce.scoring.imports._documents import ScoredDocument, dicts, losses
from lightning_pce.scoring.imports._json_files import answers
from lightning_pce.scoring.imports._options import Options, Source

_ASK = "ask /v1/completions with echo=true, logprobs=1 and max_tokens=0"
_ID = "token_id:"  # what vLLM writes for a token's text where it was asked for ids


def documents(path: Path, options: Options, source: Source) -> Iterator[ScoredDocument]:
    """The prompts of a file, a document each; tokens that the model has generated are left out.

    Raises:
        UserError: if an answer does not repeat the prompt, or it can't be told where the prompt ends.
    """
    for (where, body), name in answers(path):
        source.see_model(body.get("model"), where)
        choices = dicts(body.get("choices"), where, "choices")
        for number, choice in enumerate(choices):
            several = name is not None and len(choices) > 1
            at = f"{where}, choice {number}" if len(choices) > 1 else where
            yield _document(body, choice, at, f"{name}/{number}" if several else name, source)


def _document(
    body: Mapping[str, Any], choice: Mapping[str, Any], where: str, name: str | None, source: Source
) -> ScoredDocument:
    found = choice.get("logprobs")
    if isinstance(found, Mapping) and "content" in found:
        raise UserError(
            f"{where} is a chat, whose logprobs are of generated tokens only, and no two models generate the "
            f"same: {_ASK}, or vLLM's chat with prompt_logprobs (--format vllm)."
        )
    if not isinstance(found, Mapping) or not isinstance(found.get("token_logprobs"), list):
        raise UserError(f"{where} has no logprobs.token_logprobs: {_ASK}.")
    numbers, tokens = found["token_logprobs"], found.get("tokens")
    tokens = tokens if isinstance(tokens, list) else []
    if len(tokens) != len(numbers):
        raise UserError(
            f"{where} has {len(numbers)} token_logprobs of {len(tokens)} tokens: it is cut short; ask again."
        )
    if not numbers or numbers[0] is not None:
        raise UserError(
            f"{where} does not repeat the prompt, since its first token has a log-probability, so these are "
            f"generated tokens, and no two models generate the same: {_ASK}."
        )
    end = _end_of_prompt(body, choice, len(numbers), where, source)
    texts = [str(token) for token in tokens[:end]]
    return ScoredDocument(
        name, losses(numbers[1:end], where), where, first=1, ids=_ids(texts), texts=_texts(texts)
    )


def _end_of_prompt(
    body: Mapping[str, Any], choice: Mapping[str, Any], tokens: int, where: str, source: Source
) -> int:
    """How many of the tokens are the prompt's."""
    if isinstance(choice.get("prompt_token_ids"), list):
        told = len(choice["prompt_token_ids"])
        if told > tokens:
            raise UserError(f"{where} has {tokens} tokens of a prompt of {told}: it is cut short; ask again.")
        return told
    usage = body.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    prompt, generated = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if type(prompt) is not int or type(generated) is not int:
        source.note("the answers do not tell how many tokens were generated: these, if any, are counted too")
        return tokens
    choices = body["choices"]
    there = sum(map(_number_of_tokens, choices))
    if there == prompt:  # vLLM tells of one generated token, which it leaves out, where none was asked for
        return tokens
    if len(choices) == 1 and there == prompt + generated:
        return prompt
    if len(choices) == 1 and there < prompt:
        raise UserError(f"{where} has {there} tokens of a prompt of {prompt}: it is cut short; ask again.")
    raise UserError(
        f"{where}: usage tells of {prompt} tokens of prompts and {generated} generated ones, and the answer "
        f"has {there} in {len(choices)} choices: which are the prompt's is not known; {_ASK} and n=1."
    )


def _number_of_tokens(choice: Mapping[str, Any]) -> int:
    found = choice.get("logprobs")
    numbers = found.get("token_logprobs") if isinstance(found, Mapping) else None
    return len(numbers) if isinstance(numbers, list) else 0


def _ids(texts: list[str]) -> NDArray[np.int64] | None:
    if not texts or not all(text.startswith(_ID) and text[len(_ID) :].isdigit() for text in texts):
        return None
    return np.array([int(text[len(_ID) :]) for text in texts[1:]], dtype=np.int64)


def _texts(texts: list[str]) -> list[str] | None:
    return None if texts and texts[0].startswith(_ID) else texts
