"""Files of proxies: one model on one task, as a JSON object; without torch."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_pce._errors import UserError
from lightning_pce._version import __version__
from lightning_pce.runs._headers import numbers_of, plain
from lightning_pce.runs._words import listed

KIND, SCHEMA = "proxies", 1
COUNTERS = ("sequences", "tokens", "nan", "invalid")
_MOST_BYTES = 4_000_000  # of one model on one task are 5,000; longer files are histories


class Row(NamedTuple):
    """What is known of one model on one task."""

    model: str
    path: str
    """What else the model may be called: the path of its files."""
    task: str
    style: str | None
    values: Mapping[str, float]
    errors: Mapping[str, float]
    truth: float
    baselines: Mapping[str, float]
    source: str
    """The file."""


def save_proxies(
    path: str | os.PathLike[str],
    *,
    model: str,
    task: str,
    result: Mapping[str, Any],
    truth: float | None = None,
    baselines: Mapping[str, Any] | None = None,
    style: str | None = None,
) -> None:
    """Write the proxies of one model on one task, for :meth:`ProxyTable.read`.

    Args:
        path: the file, complete or not there at all; its folders are made.
        model: a name, the same in all files of this model.
        task: a name of the task, the same for all models.
        result: what ``TokenProxies.compute`` gives, or a part of it: for each proxy ``{name}`` and
            ``{name}_se``, 0-d tensors or numbers, and the counts ``sequences``, ``tokens``, ``nan``,
            ``invalid``.
        truth: how good the model is at the task, where higher is better; None: not known.
        baselines: losses of the same model, such as ``{"fineweb_ce": 3.1}``, nats; lower is better.
        style: which of several expert solutions the proxies are of.

    Raises:
        OSError: if the file can't be written.
        UserError: if an argument is none of these, or the path is that of another kind of file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "results" / "small on sums.json"
        >>> result = {"ce_uniform": 1.5, "ce_uniform_se": 0.1, "sequences": 20}
        >>> save_proxies(path, model="small", task="sums", result=result, truth=0.4)
        >>> read_proxies(path).values
        {'ce_uniform': 1.5}
    """
    for name, text in (("model", model), ("task", task), *([] if style is None else [("style", style)])):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"Expected argument `{name}` to be a name but got {text!r}.")
    known = {name: _number("result", name, value) for name, value in _mapping("result", result).items()}
    names = check_names(known, "Argument `result`")
    losses = {
        name: _number("baselines", name, value)
        for name, value in _mapping("baselines", baselines or {}).items()
    }
    check_baselines(losses, names)
    if truth is not None:
        truth = _number("truth", "truth", truth)
        if math.isinf(truth):
            raise UserError(f"Expected argument `truth` to be finite but got {truth}.")
    content = {
        "kind": KIND,
        "schema": SCHEMA,
        "model": model,
        "task": task,
        "style": style,
        "truth": None if truth is None else plain(truth),
        "baselines": {name: plain(value) for name, value in losses.items()},
        "values": {name: plain(value) for name, value in known.items()},
    }
    _write(Path(os.path.expanduser(path)), json.dumps(content, indent=1, allow_nan=False) + "\n")


def check_names(values: Iterable[str], what: str) -> tuple[str, ...]:
    """The names of proxies, those with a standard error, in order.

    Raises:
        UserError: if there are none, or there is something else.
    """
    found = list(values)
    names = tuple(name for name in found if f"{name}_se" in found)
    others = [
        name for name in found if name not in names and name.removesuffix("_se") not in names + COUNTERS
    ]
    if not names or others:
        has = f"has {listed([repr(name) for name in others[:3]])}" if others else "has no proxy"
        raise UserError(
            f"{what} {has}: expected what TokenProxies.compute() gives, {{name}} and {{name}}_se of each "
            "proxy, and its counts."
        )
    return names


def check_baselines(names: Iterable[str], proxies: Iterable[str]) -> None:
    """Raise a ``UserError`` if a baseline has a name that means something else in a report."""
    taken = {*proxies, "expert_ce", "known_tasks"}
    for name in names:
        if name in taken or not name:
            raise UserError(
                f"The baseline {name!r} would be mistaken for something else of a report: call it otherwise."
            )


def read_proxies(path: Path) -> Row | None:
    """What :func:`save_proxies` has written; None if the file is something else.

    Raises:
        OSError: if it can't be read.
        UserError: if it is damaged, or of a later version of this package.
    """
    if os.path.getsize(path) > _MOST_BYTES:
        return None
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # several lines, no text, or brackets a thousand deep
        return None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        return None
    schema = content.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise UserError(
            f"{path} has schema {schema}, and lightning-pce {__version__} reads none above {SCHEMA}: upgrade "
            "lightning-pce where you read it."
        )
    try:
        return _row(path, content)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}): write it again with save_proxies."
        ) from error


def _row(path: Path, content: Mapping[str, Any]) -> Row:
    model, task, style = content["model"], content["task"], content["style"]
    if not (isinstance(model, str) and isinstance(task, str) and isinstance(style, str | None)):
        raise TypeError("model, task or style is no text")
    values = numbers_of(content["values"])
    names = check_names(values, str(path))
    truth, baselines = numbers_of({"truth": content["truth"]})["truth"], numbers_of(content["baselines"])
    check_baselines(baselines, names)
    if math.isinf(truth):
        raise ValueError("its truth is infinite")
    return Row(
        model,
        model,
        task,
        style,
        {name: values[name] for name in names},
        {name: values[f"{name}_se"] for name in names},
        truth,
        baselines,
        str(path),
    )


def _mapping(argument: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise UserError(f"Expected argument `{argument}` to be a mapping of names but got {given!r:.60}.")
    return given


def _number(argument: str, name: str, value: Any) -> float:
    try:
        if isinstance(value, str | bool | None):  # float("3") is no result of a metric
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last: of several numbers
        where = "" if name == argument else f" to have a number as {name!r}"
        expected = where or " to be a number"
        raise UserError(f"Expected argument `{argument}`{expected} but got {value!r:.60}.") from error


def _write(path: Path, text: str) -> None:
    """Write a file that takes the place of an older one of its kind once it is complete."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file in it.")
    if path.exists() and (not path.is_file() or (os.path.getsize(path) and read_proxies(path) is None)):
        raise UserError(f"{path} is no file of proxies: it is left as it is; give another path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        waiting.write_text(text, encoding="utf-8", newline="\n")
        os.replace(waiting, path)
    finally:
        with contextlib.suppress(OSError):
            waiting.unlink(missing_ok=True)
