"""How well a way of ranking models does on tasks, and models, that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, cycle, islice
from typing import Literal, NamedTuple, get_args

import numpy as np

from lightning_pce._errors import UserError
from lightning_pce.runs._population import FEWEST_MODELS, Population, population_of
from lightning_pce.runs._rank_correlation import Floats, Ints, spearman, z_scored
from lightning_pce.runs._rank_svm import Kernel
from lightning_pce.runs._rankers import Fit, Method, check_method
from lightning_pce.runs._ranking_report import Baseline, CrossValidation, TaskSplit
from lightning_pce.runs._resampling import random_halves, resampled
from lightning_pce.runs._seeds import checked_seed
from lightning_pce.runs._styles import EXPERT_CE
from lightning_pce.runs.proxy_table import ProxyTable

HoldOut = Literal["tasks", "models_and_tasks"]

_TASKS_HELD_OUT = 2
_DRAWS = 5  # of two halves of the models, each the training of the other
_PAIRS = 45  # of tasks, all of 10
_SHUFFLES = 20  # without any signal the true order is the best of 21 in one population of 21
_SHUFFLED_FITS = 300  # all of 15 splits


class Split(NamedTuple):
    """What is fitted, and what is ranked then; numbers of rows."""

    held_out: tuple[int, ...]
    """Places of tasks."""
    training: Ints
    tests: tuple[Ints, ...]
    """Of each task that is held out."""


def cross_validate(
    table: ProxyTable,
    method: Method = "rank_svm",
    hold_out: HoldOut = "tasks",
    kernel: Kernel = "linear",
    seed: int = 0,
) -> CrossValidation:
    """How well proxies rank models on tasks that are not fitted to, beside simpler ways.

    Two tasks at a time (one of three tasks) are held out: all pairs in turn, of more than 10 tasks 45 pairs.
    What is fitted to the others ranks the models on each of these, by proxies as z-scores over the models
    that are ranked. What is reported is Spearman's correlation with the truth, its mean over tasks and
    splits. Rows without truth are left out, and a model may lack tasks. The intervals are over models; the
    fits stay as they are in them.

    Args:
        table: with the truth; one row for each model and task.
        method: ``"single"``: the proxy, or its negative, of the highest mean correlation; ``"sparse"``: the
            three of the least squares to ranks of the truth; ``"rank_svm"``: a RankSVM on all.
        hold_out: ``"tasks"``: the models that are ranked were in the training, on the other tasks;
            ``"models_and_tasks"``: they were not. Half of the models then train and half are ranked, and the
            other way round, in five random draws.
        kernel: ``"linear"`` or ``"rbf"``, of ``"rank_svm"``.
        seed: of the draws.

    Returns:
        :class:`CrossValidation`; ``print`` shows it.

    Raises:
        UserError: if an argument is none of these, or a model has several rows of a task.
        TooFewError: with fewer than 3 tasks or 5 models (10 for ``"models_and_tasks"``) whose truth is known.

    Example:
        >>> random = np.random.default_rng(0)
        >>> skill = np.repeat(random.normal(size=12), 4)
        >>> table = ProxyTable(
        ...     [f"model {m}" for m in range(12) for _ in range(4)],
        ...     [f"task {t}" for t in range(4)] * 12,
        ...     ["ce_uniform", "top1_uniform"],
        ...     np.stack([random.normal(size=48), skill + 0.3 * random.normal(size=48)], axis=1),
        ...     truth=skill,
        ... )
        >>> report = cross_validate(table, "single")
        >>> report.rho.value > 0.8, report.baselines["expert_ce"].rho.value < 0.5
        (True, True)
    """
    check_method(method, kernel)
    if hold_out not in get_args(HoldOut):
        choice = " or ".join(map(repr, get_args(HoldOut)))
        raise UserError(f"Expected argument `hold_out` to be {choice} but got {hold_out!r}.")
    random = np.random.default_rng(checked_seed(seed))
    unseen = hold_out == "models_and_tasks"
    population = population_of(table, 2 * FEWEST_MODELS if unseen else FEWEST_MODELS)
    draws = [random.permutation(len(population.models)) for _ in range(_DRAWS if unseen else 0)]
    splits = _splits(population, draws, random)
    halves = random_halves(len(population.models), random)
    measured = _Measured(population, splits, halves)

    exchanged = [_exchanged(population, random) for _ in range(_SHUFFLES)]
    scores, null, highest = _fitted(population, splits, exchanged, method, kernel)
    rho, rho_of_halves = measured.of(scores)
    baselines, notes = _baselines(population, splits, unseen)
    found = {}
    for name, by_split in baselines.items():
        other, other_of_halves = measured.of(by_split)
        difference = resampled(rho - other, rho_of_halves - other_of_halves, -2.0, 2.0)
        found[name] = Baseline(resampled(other, other_of_halves, -1.0, 1.0), difference)
    return CrossValidation(
        method=method,
        kernel=kernel if method == "rank_svm" else None,
        hold_out=hold_out,
        seed=seed,
        rho=resampled(rho, rho_of_halves, -1.0, 1.0),
        splits=measured.by_tasks(scores),
        baselines=found,
        null=null,
        null_highest=highest,
        models=population.models,
        tasks=population.tasks,
        proxies=population.proxies,
        notes=(*population.notes, *notes),
    )


def _splits(population: Population, draws: Sequence[Ints], random: np.random.Generator) -> list[Split]:
    number = len(population.tasks)
    held_out = list(combinations(range(number), _TASKS_HELD_OUT if number > 3 else 1))
    if len(held_out) > _PAIRS:
        held_out = [held_out[place] for place in sorted(random.permutation(len(held_out))[:_PAIRS])]
    every = np.full(len(population.models), True)
    sides = [(every, every)]
    if draws:
        first = [np.isin(np.arange(len(every)), draw[: len(every) // 2]) for draw in draws]
        sides = [pair for half in first for pair in ((half, ~half), (~half, half))]
    splits = []
    for tasks in held_out:
        outside = np.isin(population.task, tasks)
        for seen, ranked in sides:
            tests = tuple(
                np.flatnonzero((population.task == task) & ranked[population.model]) for task in tasks
            )
            training = np.flatnonzero(~outside & seen[population.model])
            splits.append(Split(tasks, training, tests))
    return splits


# The scores of rows, for each split and each of its tasks.
Scores = list[list[Floats]]


def _fitted(
    population: Population,
    splits: Sequence[Split],
    exchanged: Sequence[Floats],
    method: Method,
    kernel: Kernel,
) -> tuple[Scores, float, float]:
    """The scores of all splits, and the correlation of exchanged truths: the mean, and the highest of one."""
    found: Scores = []
    null: list[list[Floats]] = [[] for _ in exchanged]
    # All exchanges in each split if there are few, else some of them, in turn.
    number = min(len(exchanged), -(-_SHUFFLED_FITS // len(splits)))
    turn = cycle(zip(exchanged, null, strict=True))
    for split in splits:
        tasks = population.task[split.training]
        fit = Fit(method, kernel, z_scored(population.x[split.training], tasks), tasks)
        tests = [z_scored(population.x[rows], population.task[rows]) for rows in split.tests]
        score = fit.score(population.table.truth[split.training])
        found.append([score(test) for test in tests])
        for truth, own in islice(turn, number):
            score = fit.score(truth[split.training])
            for rows, test in zip(split.tests, tests, strict=True):
                known = np.isfinite(truth[rows])
                own.append(spearman(score(test)[known], truth[rows][known]))
    means = np.array([_mean(np.array(own))[0] for own in null if own])
    mean = float(_mean(np.concatenate([np.array(own) for own in null if own]))[0])
    return found, mean, float(np.max(means, initial=-np.inf, where=~np.isnan(means)))


def _exchanged(population: Population, random: np.random.Generator) -> Floats:
    """The truth if models exchange theirs, each all of its tasks; NaN of a task that the other lacks."""
    row_of = np.full((len(population.models), len(population.tasks)), -1)
    row_of[population.model, population.task] = np.arange(len(population.model))
    rows = row_of[random.permutation(len(population.models))[population.model], population.task]
    return np.where(rows >= 0, population.table.truth[rows], np.nan)


class _Measured:
    """Spearman's correlations of scores with the truth, of all models and of halves of them."""

    def __init__(self, population: Population, splits: Sequence[Split], halves: Floats) -> None:
        self.population, self.splits, self.halves = population, splits, halves

    def of(self, scores: Scores) -> tuple[float, Floats]:
        """The mean over splits and tasks, and that of each half of the models."""
        truth, model = self.population.table.truth, self.population.model
        all_models, halves = [], []
        for split, by_task in zip(self.splits, scores, strict=True):
            for rows, score in zip(split.tests, by_task, strict=True):
                all_models.append(spearman(score, truth[rows]))
                halves.append(spearman(score, truth[rows], self.halves[:, model[rows]]))
        return float(_mean(np.array(all_models))[0]), _mean(np.array(halves))

    def by_tasks(self, scores: Scores) -> tuple[TaskSplit, ...]:
        """The mean over all splits that hold out the same tasks."""
        truth = self.population.table.truth
        found: dict[tuple[int, ...], list[float]] = {}
        for split, by_task in zip(self.splits, scores, strict=True):
            for rows, score in zip(split.tests, by_task, strict=True):
                found.setdefault(split.held_out, []).append(float(spearman(score, truth[rows])[0]))
        return tuple(
            TaskSplit(
                tuple(self.population.tasks[task] for task in tasks),
                float(_mean(np.array(values)[:, None])[0]),
            )
            for tasks, values in found.items()
        )


def _mean(rho: Floats) -> Floats:
    """The mean over the first axis of what is known; NaN where nothing is."""
    known = ~np.isnan(rho)
    number = known.sum(0)
    total = np.where(known, rho, 0.0).sum(0)
    return np.asarray(np.divide(total, number, out=np.full(rho.shape[1], np.nan), where=number > 0))


def _baselines(
    population: Population, splits: Sequence[Split], unseen: bool
) -> tuple[dict[str, Scores], list[str]]:
    """What needs no proxies, or one and no fit."""
    table = population.table
    losses = {**table.baselines}
    if EXPERT_CE in table.names:
        losses["expert_ce"] = table.column(EXPERT_CE)
    found: dict[str, Scores] = {}
    notes = []
    for name, loss in losses.items():
        if np.isnan(loss).any():
            row = int(np.isnan(loss).argmax())
            notes.append(
                f"No baseline {name}: it is not known of {table.models[row]!r} on {table.tasks[row]!r}."
            )
        else:
            found[name] = [[-loss[rows] for rows in split.tests] for split in splits]
    if unseen:
        return found, notes
    known = _known_tasks(population)
    by_split = [[known(split, rows) for rows in split.tests] for split in splits]
    if any(np.isnan(each).any() for scores in by_split for each in scores):
        notes.append("No baseline known_tasks: a model has no other task.")
    else:
        found["known_tasks"] = by_split
    return found, notes


def _known_tasks(population: Population) -> Callable[[Split, Ints], Floats]:
    """How good models were on the tasks of the training, beside the others on each of them.

    If all models have all tasks that orders them as their mean does.
    """
    centred = population.table.truth.copy()
    for task in range(len(population.tasks)):
        centred[population.task == task] -= centred[population.task == task].mean()

    def mean(split: Split, rows: Ints) -> Floats:
        number = len(population.models)
        models = population.model[split.training]
        count = np.bincount(models, minlength=number)
        total = np.bincount(models, centred[split.training], minlength=number)
        mean_of = np.divide(total, count, out=np.full(number, np.nan), where=count > 0)
        return np.asarray(mean_of[population.model[rows]])

    return mean
