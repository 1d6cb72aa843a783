"""Chats as text: rendered by the tokenizer's own template, and which of it the assistant has written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_pce._errors import UserError
from lightning_pce.scoring.documents import ROLES, Document, Part

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_Messages = Sequence[Mapping[str, Any]]


class Rendering(NamedTuple):
    """A chat as text.

    Attributes:
        parts: the text as the template renders it, special tokens and all, with its groups.
        mask: by token, 1 for those of the completion; None: the parts tell.
    """

    parts: tuple[Part, ...]
    mask: tuple[int, ...] | None = None


def render(document: Document, tokenizer: Any) -> Rendering:
    """Render a chat and find its completion.

    That is what the template marks by ``{% generation %}``. If it marks nothing, it is of each turn of the
    assistant the difference of the renderings before it, generation prompt and all, and after it: what the
    model is to write, with what ends the turn. Of a prompt and a completion of messages it is all of the
    completion. A chat with a group of its own is rendered only.

    Raises:
        UserError: if there is no template, it refuses the messages, or it renders the beginning of a chat
            differently when more follows, so that no difference can be taken.
    """
    messages = document.messages
    assert messages is not None
    try:
        template = tokenizer.get_chat_template()
    except ValueError:  # its own sentence runs over a paragraph
        raise UserError(
            "The tokenizer has no chat template: take data with `text`, or a model whose tokenizer has one."
        ) from None
    text = _text(document, messages, tokenizer)
    if document.group is not None:
        return Rendering((Part(text, document.group),))
    if document.completion_from is not None:
        begin, _ = _turn(document, document.completion_from, len(messages), text, tokenizer)
        return Rendering(_parts(text, [(begin, len(text))]))
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if _GENERATION.search(template):
        mask = _mask(messages, tokenizer)
        # transformers stops at the first turn that begins with a character of no token, and says nothing.
        if sum(map(_begins_stretch, (0, *mask), mask)) == len(turns):
            return Rendering((Part(text),), mask)
    return Rendering(_parts(text, [_turn(document, i, i + 1, text, tokenizer) for i in turns]))


def _parts(text: str, turns: list[tuple[int, int]]) -> tuple[Part, ...]:
    """A text cut into prompts and completions, which are at the characters of ``turns``."""
    prompt, completion = ROLES
    parts, done = [], 0
    for begin, end in turns:
        parts += [Part(text[done:begin], prompt), Part(text[begin:end], completion)]
        done = end
    return (*parts, Part(text[done:], prompt))


def _begins_stretch(before: int, here: int) -> bool:
    return here == 1 and before == 0


def _mask(messages: _Messages, tokenizer: Any) -> tuple[int, ...]:
    found = tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return tuple(found["assistant_masks"])


def _turn(document: Document, first: int, after: int, text: str, tokenizer: Any) -> tuple[int, int]:
    """The characters of messages ``first`` to ``after``, without the prompt that asks for them."""
    messages = document.messages
    assert messages is not None
    asks = messages[first]["role"] == "assistant" if first < len(messages) else False
    before = _text(document, messages[:first], tokenizer, asks)
    until = _text(document, messages[:after], tokenizer)
    if not (until.startswith(before) and text.startswith(until)):
        raise UserError(
            f"Document {document.id!r}: the chat template renders messages 1 to {first} differently when "
            f"message {first + 1} follows, so its completion has no beginning: take a template with "
            "{% generation %}, or data with `prompt` and `completion` as text."
        )
    return len(before), len(until)


def _text(document: Document, messages: _Messages, tokenizer: Any, asks: bool = False) -> str:
    import jinja2  # here, as transformers has it where it renders

    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks)
    except (jinja2.TemplateError, TypeError, ValueError, IndexError, KeyError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"Document {document.id!r}: the chat template refuses its messages 1 to {len(messages)}: "
            f"{said or type(error).__name__}."
        ) from error
    assert isinstance(text, str)
    return text
