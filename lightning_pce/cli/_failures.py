"""What goes wrong, as one line of standard error and an exit status."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable

from lightning_pce._errors import UserError

OURS, USERS, INTERRUPTED = 1, 2, 130
# A file system, or what reads from a pipe, that takes no more; such an error often names no file.
_NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def failures_as_lines(work: Callable[[], int]) -> int:
    """What ``work`` gives, or the status of what it raises after a line about that."""
    _escape_what_a_terminal_cannot_show()
    try:
        status = work()
        if sys.stdout is not None:
            sys.stdout.flush()  # at the end of the process a full disk would be a riddle
        return status
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to go on.")
        return INTERRUPTED
    except BrokenPipeError:
        _close_stdout()  # `| head` has read enough
        return USERS
    except OSError as error:
        if error.filename is None and error.errno not in _NO_MORE:
            traceback.print_exc()
            return OURS
        if error.filename is None:
            _close_stdout()
        _say(_of_file(error))
        return USERS
    except Exception as error:
        line = _of_arguments(error)
        if line is None:
            traceback.print_exc()
            return OURS
        _say(line)
        return USERS


def _of_arguments(error: Exception) -> str | None:
    """The line of what the user can mend, None of a mistake of ours."""
    if isinstance(error, UserError):
        return str(error)
    # Not by its class: Typer brings a copy of click in some versions and imports it in others.
    formatted = getattr(error, "format_message", None)
    if formatted is None:
        return None
    context = getattr(error, "ctx", None)
    command = "lightning-pce" if context is None else context.command_path
    return f"{formatted().rstrip('.')}. See: {command} --help"


def _of_file(error: OSError) -> str:
    words = error.strerror or type(error).__name__
    if error.filename is None:
        return f"cannot write: {words}. Make room, or write elsewhere, and run the same command again."
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{names}: {words}."


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # where standard error is full too there is nobody to tell
        print(f"lightning-pce: {printable(line.replace(chr(10), ' '))}", file=sys.stderr)


def printable(text: str) -> str:
    """A text whose controls are written out: names and texts of strangers may hold those of a terminal."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text
    )


def _escape_what_a_terminal_cannot_show() -> None:
    """A label in Chinese on a terminal of cp1252 is escaped, and no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _close_stdout() -> None:
    """Let what is still to be written go nowhere, or Python would complain of it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
