"""Text as it stands in a file: strictly UTF-8, and its blocks between blank lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_pce._errors import UserError

_BOM = b"\xef\xbb\xbf"


def text_of(path: Path) -> str:
    """The text of a file, every character of it but a byte order mark.

    Raises:
        UserError: if it is not UTF-8 or holds NUL bytes; it names the byte and the line.
    """
    raw = path.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8).")
    nul = raw.find(b"\0")
    if nul >= 0:
        raise UserError(
            f"{path} holds a NUL byte at byte {nul} (line {_line(raw, nul)}): it is not a text file."
        )
    skipped = len(_BOM) if raw.startswith(_BOM) else 0
    try:
        return raw[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start + skipped
        raise UserError(
            f"{path} is not UTF-8 at byte {at} (line {_line(raw, at)}), which is 0x{raw[at]:02x}: convert it "
            "(iconv -t UTF-8)."
        ) from None


def _line(raw: bytes, at: int) -> int:
    return raw.count(b"\n", 0, at) + 1


def blocks(text: str) -> Iterator[str]:
    r"""The stretches of lines between lines of whitespace alone, as they stand, without their last newline.

    Example:
        >>> list(blocks("one\r\n  two\r\n\r\n \n\nthree "))
        ['one\r\n  two', 'three ']
    """
    begin, end, at = -1, 0, 0
    # Lines end with \n: splitlines would also end them in the middle of a sentence, at U+2028 or \f.
    for line in text.split("\n"):
        if line.strip():
            begin = at if begin < 0 else begin
            end = at + len(line)
        elif begin >= 0:
            yield text[begin:end].removesuffix("\r")
            begin = -1
        at += len(line) + 1
    if begin >= 0:
        yield text[begin:end].removesuffix("\r")
