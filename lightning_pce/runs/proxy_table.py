"""Proxies of many models on many tasks, one row of a table each; NumPy alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_pce._errors import UserError
from lightning_pce.runs._proxy_reading import in_style, read_rows
from lightning_pce.runs._truth import TruthLike
from lightning_pce.runs.proxy_files import check_baselines
from lightning_pce.runs.task_values import some

Floats = NDArray[np.float64]


class ProxyTable:
    """Proxies of models on tasks, a row for each model and task; :meth:`read` reads it from files.

    A model need not have all tasks. Of several styles of expert solutions each has its row, until
    :func:`best_style` has chosen. Arrays are float64 and cannot be written to.

    Args:
        models: ``[R]`` the model of each row.
        tasks: ``[R]`` its task.
        names: ``[P]`` of the proxies.
        values: ``[R, P]``; NaN where one is not known.
        errors: ``[R, P]`` standard errors; left out: NaN.
        truth: ``[R]`` how good the model is at the task, where higher is better; NaN, or left out: not known.
            Rows of several styles share it.
        styles: ``[R]`` of which of several expert solutions; None: there is one.
        baselines: ``[R]`` losses, lower is better, by name: the model's cross-entropy on some text.
        best_of: of how many styles each row is the likeliest; 1: nobody has chosen.
        notes: sentences on what should be known of it.

    Raises:
        UserError: if lengths do not fit, a row is there twice, the truth is infinite, or another in another
            style.

    Example:
        >>> table = ProxyTable(["a", "b"], ["sums", "sums"], ["ce_uniform"], [[2.0], [1.0]], truth=[0.1, 0.3])
        >>> table
        ProxyTable(2 models x 1 task, 1 proxy; truth of 2 of 2 rows)
        >>> table.select(models=["b"]).column("ce_uniform")
        array([1.])
    """

    def __init__(
        self,
        models: Sequence[str],
        tasks: Sequence[str],
        names: Sequence[str],
        values: ArrayLike,
        *,
        errors: ArrayLike | None = None,
        truth: ArrayLike | None = None,
        styles: Sequence[str | None] | None = None,
        baselines: Mapping[str, ArrayLike] | None = None,
        best_of: int = 1,
        notes: Sequence[str] = (),
    ) -> None:
        rows, shape = len(models), (len(models), len(names))
        self.models, self.tasks, self.names = tuple(models), tuple(tasks), tuple(names)
        self.styles = (None,) * rows if styles is None else tuple(styles)
        for name, column in (("tasks", self.tasks), ("styles", self.styles)):
            if len(column) != rows:
                raise UserError(f"Expected {rows} {name}, one for each row, but got {len(column)}.")
        self.values = _array("values", values, shape)
        self.errors = _array("errors", np.full(shape, np.nan) if errors is None else errors, shape)
        self.truth = _array("truth", np.full(rows, np.nan) if truth is None else truth, (rows,))
        self.baselines = {name: _array(name, each, (rows,)) for name, each in (baselines or {}).items()}
        check_baselines(self.baselines, self.names)
        self.best_of, self.notes = best_of, tuple(notes)
        if np.isinf(self.truth).any():
            raise UserError("Expected argument `truth` to be finite, or NaN where it is not known.")
        _check_names(self)
        self.truth = _of_all_styles(self)

    @classmethod
    def read(cls, *paths: str | os.PathLike[str], truth: TruthLike | None = None) -> ProxyTable:
        """Read what :func:`save_proxies` and ``lightning-pce evaluate --proxies`` have written.

        Records of the same models without proxies become baselines: their mean cross-entropy, called
        ``{data}_ce``; of models with other tokenizers ``{data}_bits_per_byte``.

        Args:
            paths: files, or patterns such as ``"results/*.json"``.
            truth: ``{(model, task): value}``, or the path of a CSV file of these three columns. It takes the
                place of what files of proxies say. A model is meant by its name, its path or the end of it.

        Raises:
            OSError: if a file can't be read.
            UserError: if there is no such file, it is of another kind, one model has a task twice, or proxies
                of one task were made in other ways.

        Example:
            >>> import tempfile
            >>> from lightning_pce.runs.ranking import save_proxies
            >>> folder = tempfile.mkdtemp()
            >>> for model, ce in (("small", 1.5), ("large", 1.2)):
            ...     result = {"ce_uniform": ce, "ce_uniform_se": 0.1}
            ...     save_proxies(f"{folder}/{model}.json", model=model, task="sums", result=result)
            >>> ProxyTable.read(f"{folder}/*.json", truth={("small", "sums"): 0.2})
            ProxyTable(2 models x 1 task, 1 proxy; truth of 1 of 2 rows)
        """
        rows, baselines, notes = read_rows(paths, truth)
        names = tuple(dict.fromkeys(name for row in rows for name in row.values))
        losses = dict.fromkeys([*(name for row in rows for name in row.baselines), *baselines])
        nan = float("nan")
        return cls(
            [row.model for row in rows],
            [row.task for row in rows],
            names,
            [[row.values.get(name, nan) for name in names] for row in rows],
            errors=[[row.errors.get(name, nan) for name in names] for row in rows],
            truth=[row.truth for row in rows],
            styles=[row.style for row in rows],
            baselines={
                name: [row.baselines.get(name, baselines.get(name, {}).get(row.model, nan)) for row in rows]
                for name in losses
            },
            notes=notes,
        )

    def select(
        self,
        models: Iterable[str] | None = None,
        tasks: Iterable[str] | None = None,
        styles: Iterable[str] | None = None,
    ) -> ProxyTable:
        """The rows of some models, tasks or styles: one name, or several.

        Raises:
            UserError: if there is no such name.
        """
        where = np.full(len(self), True)
        for what, column, chosen in (
            ("model", self.models, models),
            ("task", self.tasks, tasks),
            ("style", self.styles, styles),
        ):
            if chosen is None:
                continue
            wanted = {chosen} if isinstance(chosen, str) else set(chosen)
            if strange := sorted(wanted - set(column)):
                there = some([str(each) for each in dict.fromkeys(column)])
                raise UserError(f"There is no {what} {strange[0]!r}: there are {there}.")
            where &= [each in wanted for each in column]
        return self.rows(where)

    def rows(self, where: NDArray[Any]) -> ProxyTable:
        """Some rows, by numbers or a mask ``[R]``."""
        chosen = np.arange(len(self))[where]
        return ProxyTable(
            [self.models[row] for row in chosen],
            [self.tasks[row] for row in chosen],
            self.names,
            self.values[chosen],
            errors=self.errors[chosen],
            truth=self.truth[chosen],
            styles=[self.styles[row] for row in chosen],
            baselines={name: each[chosen] for name, each in self.baselines.items()},
            best_of=self.best_of,
            notes=self.notes,
        )

    def column(self, name: str) -> Floats:
        """The values ``[R]`` of a proxy.

        Raises:
            UserError: if there is none of this name.
        """
        return self.values[:, self.place(name)]

    def place(self, name: str) -> int:
        """Which column of ``values`` a proxy is; raises as :meth:`column`."""
        if name not in self.names:
            raise UserError(f"The table has no proxy {name!r}: it has {some(self.names)}.")
        return self.names.index(name)

    def __len__(self) -> int:
        return len(self.models)

    def __repr__(self) -> str:
        sizes = [
            f"{len(found)} {what}{'s' * (len(found) != 1)}"
            for what, found in (("model", set(self.models)), ("task", set(self.tasks)))
        ]
        styles = {style for style in self.styles if style is not None}
        sizes += [f"{len(styles)} styles"] if len(styles) > 1 and self.best_of == 1 else []
        proxies = f"{len(self.names)} prox{'y' if len(self.names) == 1 else 'ies'}"
        known = f"truth of {int(np.isfinite(self.truth).sum())} of {len(self)} rows"
        losses = f"; baselines: {', '.join(self.baselines)}" if self.baselines else ""
        return f"ProxyTable({' x '.join(sizes)}, {proxies}; {known}{losses})"


def _array(name: str, given: ArrayLike, shape: tuple[int, ...]) -> Floats:
    try:
        found = np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"Expected `{name}` to be numbers of shape {shape} ({error}).") from error
    if not found.size and not np.prod(shape):
        found = found.reshape(shape)
    if found.shape != shape:
        raise UserError(f"Expected `{name}` to be of shape {shape} but got {found.shape}.")
    found.setflags(write=False)
    return found


def _of_all_styles(table: ProxyTable) -> Floats:
    """The truth ``[R]``, where it is known for one style of solutions for all of them."""
    keys = list(zip(table.models, table.tasks, strict=True))
    known: dict[tuple[str, str], float] = {}
    for key, value in zip(keys, table.truth.tolist(), strict=True):
        if not np.isnan(value) and known.setdefault(key, value) != value:
            raise UserError(
                f"The truth of {key[0]!r} on {key[1]!r} is {known[key]:g} in one style and {value:g} in "
                "another: it is that of the model, whatever the style of the solutions."
            )
    return _array("truth", [known.get(key, np.nan) for key in keys], (len(keys),))


def _check_names(table: ProxyTable) -> None:
    for what, names in (("model", table.models), ("task", table.tasks), ("proxy", table.names)):
        for name in names:
            if not isinstance(name, str):
                raise UserError(f"Expected the name of a {what} to be text but got {name!r:.60}.")
    keys = list(zip(table.models, table.tasks, table.styles, strict=True))
    if len(set(keys)) < len(keys):
        model, task, style = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{model!r} on {task!r}{in_style(style)} is there twice.")
    if not table.names:
        raise UserError("Expected names of proxies but got none.")
    twice = [name for name in table.names if table.names.count(name) > 1]
    if twice:
        raise UserError(f"Expected names of proxies, each once, but {twice[0]!r} is there twice.")
