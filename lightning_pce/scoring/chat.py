"""Chats as text: rendered by the tokenizer's own template, and which of it the assistant has written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_pce._errors import UserError
from lightning_pce.scoring.documents import ROLES, Document, Part

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_Messages = Sequence[Mapping[str, Any]]


def render(document: Document, tokenizer: Any) -> tuple[Part, ...]:
    """A chat as text, special tokens and all, in parts: prompt and completion.

    The completion is what the template marks by ``{% generation %}``. If it marks nothing, it is of each turn
    of the assistant the difference of the renderings before it, generation prompt and all, and after it: what
    the model is to write, with what ends the turn. Of a prompt and a completion of messages it is all of the
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
        return (Part(text, document.group),)
    if document.completion_from is not None:
        begin, _ = _turn(document, document.completion_from, len(messages), text, tokenizer)
        return _parts(text, [(begin, len(text))])
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if _GENERATION.search(template):
        return _parts(text, _marked(document, text, tokenizer, template))
    return _parts(text, [_turn(document, i, i + 1, text, tokenizer) for i in turns])


def _parts(text: str, turns: list[tuple[int, int]]) -> tuple[Part, ...]:
    """A text cut into prompts and completions, which are at the characters of ``turns``."""
    prompt, completion = ROLES
    parts, done = [], 0
    for begin, end in turns:
        parts += [Part(text[done:begin], prompt), Part(text[begin:end], completion)]
        done = end
    return (*parts, Part(text[done:], prompt))


def _marked(document: Document, text: str, tokenizer: Any, template: str) -> list[tuple[int, int]]:
    """The characters that the template marks.

    Not by ``return_assistant_tokens_mask``, which finds tokens for them: where offsets leave out whitespace
    it drops a turn that begins with a space, and all that follow, and says nothing.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    found: Any = render_jinja_template(  # annotated as a string, but there are two lists
        [[dict(message) for message in document.messages or ()]],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    rendered, marked = found
    assert rendered == [text], "the template renders the same messages as another text"
    return [(begin, end) for begin, end in marked[0]]


def _turn(document: Document, first: int, after: int, text: str, tokenizer: Any) -> tuple[int, int]:
    """The characters of messages ``first`` to ``after``, without the prompt that asks for them."""
    messages = document.messages
    assert messages is not None
    if first == 0:
        raise UserError(
            f"Document {document.id!r} begins with its completion, and only what comes before it could tell "
            "where: take a template with {% generation %}, or put a message in front."
        )
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
        said = (str(error).splitlines() or [""])[0].rstrip(".")
        raise UserError(
            f"Document {document.id!r}: the chat template refuses its messages 1 to {len(messages)}: "
            f"{said or type(error).__name__}."
        ) from error
    assert isinstance(text, str)
    return text
