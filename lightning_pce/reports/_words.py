"""Words of strangers on a page: what cannot be printed is written out, what is long is cut."""

from __future__ import annotations

# They join what belongs together, in emoji and in Arabic or Indic script.
_JOINERS = "\u200c\u200d"
_SIGNS = {"\n": "⏎", "\t": "⇥"}


def visible(text: str) -> str:
    r"""A text in which every character is seen: signs for line ends and tabs, escapes for controls.

    A page cannot hold NUL or half of a surrogate pair, and a control of direction would turn what follows.

    Example:
        >>> visible("a\nb\x00 \u202e <b>")
        'a⏎b\\x00 \\u202e <b>'
    """
    return "".join(map(_visible, text))


def cut(text: str, most: int) -> str:
    """A text without its end, where that is too long."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def end_of(text: str, most: int) -> str:
    """A text without its beginning, where that is too long."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _visible(char: str) -> str:
    if char.isprintable() or char in _JOINERS:
        return char
    # Spaces of other widths, as in Chinese text, are no harm; ends of lines and paragraphs are.
    return _SIGNS.get(char) or (char if char.isspace() and char > "\x9f" else _escaped(char))


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()
