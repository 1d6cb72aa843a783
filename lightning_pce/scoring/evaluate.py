"""Checkpoints over files of text: a record for each pair, made in steps that survive a kill."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_pce._errors import UserError
from lightning_pce.runs._headers import header_of
from lightning_pce.runs.history import History
from lightning_pce.scoring.chunks import folder_of, lines_since, moment_of
from lightning_pce.scoring.data import Dataset, read_all
from lightning_pce.scoring.models import ModelSource, choose_device, content_key, find_models
from lightning_pce.scoring.processes import Together, place_here, run_on, together
from lightning_pce.scoring.records_file import check_records, replace_lines
from lightning_pce.scoring.settings import (
    WITHIN,
    Settings,
    bytes_of,
    check_completions,
    check_proxies,
    check_settings,
    piece_bytes_on,
)
from lightning_pce.scoring.token_counts import TokenCounts
from lightning_pce.scoring.tokens_file import check_tokens_file

if TYPE_CHECKING:
    from lightning_pce.scoring.scored_dataset import ScoredDataset

__all__ = ["evaluate"]

_TRIES = 20
# Before a command began another one may have finished a record and not yet put it into the file.
_MARGIN = 60.0  # seconds


def evaluate(
    models: Sequence[str | os.PathLike[str]],
    data: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    protocol: str = "windows",
    context: int | None = None,
    stride: int | None = None,
    bos: int | None = None,
    dtype: str = "auto",
    batch_tokens: int | None = None,
    memory: str | int = "1GiB",
    group: str | None = None,
    step: int | None = None,
    devices: int = 1,
    save_tokens: str | os.PathLike[str] | None = None,
    text: bool = True,
    trust: bool = False,
    proxies: bool = False,
    token_counts: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Score causal language models on data, and write a record of each model and each file.

    Work is kept in the folder ``out`` + ``.work``: the same call goes on where one was ended, with as many
    processes as it now has, and gives the same bytes on the same hardware and library versions. A record that
    stands in ``out`` already is not made again.

    Args:
        models: folders, ``.gguf``, Lightning's ``.ckpt``, adapters of PEFT, names of the hub (``owner/name``,
            ``owner/name@revision``), or patterns of these (``run/checkpoint-*``).
        data: files or folders; see :func:`~lightning_pce.scoring.data.read_data`.
        out: the file of records, new or with others in it; :class:`lightning_pce.runs.history.History` reads
            it.
        base: the model that a ``.ckpt`` or an adapter belongs to.
        protocol: ``"windows"``: each token once; ``"llama.cpp"``: as that tool scores.
        context: how many tokens a model sees at most; None: as many as it can, up to 2,048.
        stride: tokens from one window to the next; None: half of the context.
        bos: a token to put in front of every document; None: the tokenizer's own, if it puts one there.
        dtype: of the weights; ``"auto"``: the checkpoint's.
        batch_tokens: that go through a model together; None: 1,024 on a CPU, where each thread has a batch,
            and 8,192 elsewhere.
        memory: for logits and what is made of them, as ``"512MiB"`` or a number of bytes.
        group: the column of the data that says of which group a document's tokens are.
        step: of the training of a single model; None: what its name says.
        devices: how many processes to start on this machine, each on a device of its own or a share of the
            CPU.
        save_tokens: a parquet file for every token's document, position, id, cross-entropy and rank.
        text: whether the record keeps the texts of its worst tokens and of labels.
        trust: whether code that comes with a model may run.
        proxies: whether records also hold the proxies of :class:`lightning_pce.TokenProxies`, of data with
            completions: each document is a solution.
        token_counts: in what proxies that are weighted by frequency count tokens: a ``.npy`` with a number
            for each id, or data; None: each solution by itself.

    Returns:
        The keys of the records, data after data for each model; a record's ``run`` is its key.

    Raises:
        UserError: for what the user can mend: one line that says what.
    """
    check_settings(
        protocol=protocol, context=context, stride=stride, dtype=dtype, batch_tokens=batch_tokens, step=step
    )
    check_proxies(proxies, token_counts, group=group, protocol=protocol)
    limit = bytes_of(memory)
    place = place_here()
    if devices < 1:
        raise UserError(f"--devices {devices}: take 1 or more.")
    if devices > 1 and place.world > 1:
        raise UserError("--devices starts processes on one machine: leave it out under torchrun or SLURM.")
    check_records(out)
    if save_tokens is not None:
        check_tokens_file(save_tokens, keep=[out, *data, *([] if token_counts is None else [token_counts])])
    sources = find_models(models, base=base)
    if step is not None and len(sources) > 1:
        raise UserError(f"--step {step} is that of one model but {len(sources)} are to be scored.")
    datasets = read_all(data, group=group, protocol=protocol)
    if proxies:
        check_completions(datasets)
    counts = None if token_counts is None else TokenCounts.read(token_counts)
    if devices > 1:
        paths: dict[str, Any] = {"out": os.fspath(out)}
        for name, path in (("base", base), ("save_tokens", save_tokens), ("token_counts", token_counts)):
            paths[name] = None if path is None else os.fspath(path)
        paths |= {"models": [os.fspath(each) for each in models], "data": [os.fspath(each) for each in data]}
        options = {"protocol": protocol, "context": context, "stride": stride, "bos": bos, "dtype": dtype}
        options |= {"batch_tokens": batch_tokens, "memory": memory, "group": group, "step": step}
        return run_on(devices, {**paths, **options, "text": text, "trust": trust, "proxies": proxies})
    device = choose_device()
    piece_bytes = piece_bytes_on(device, limit)
    settings = Settings(
        protocol,
        context,
        stride,
        bos,
        dtype,
        batch_tokens,
        piece_bytes,
        text=text,
        step=step,
        trust=trust,
        proxies=None if not proxies else WITHIN if counts is None else counts.key,
    )
    with together(place) as processes:
        path = Path(os.path.expanduser(out))
        return _Evaluation(processes, settings, device, limit, path, save_tokens, counts).run(
            sources, datasets
        )


@dataclass(frozen=True)
class _Job:
    """A record that is to be."""

    source: ModelSource
    content: str  # of the model
    dataset: Dataset
    key: str


class _Evaluation:
    """One call of :func:`evaluate` in one of its processes."""

    def __init__(
        self,
        processes: Together,
        settings: Settings,
        device: str,
        memory: int,
        out: Path,
        save_tokens: str | os.PathLike[str] | None,
        counts: TokenCounts | None,
    ) -> None:
        self.processes, self.settings, self.memory, self.out = processes, settings, memory, out
        self.save_tokens, self.counts = save_tokens, counts
        self.device = device
        self.done: list[ScoredDataset] = []

    def run(self, sources: Sequence[ModelSource], datasets: Sequence[Dataset]) -> list[str]:
        self._check_device()
        # The first process says what there is to do: a file may change while others look at it.
        contents, since = self.processes.of_first(lambda: self._contents(sources))
        there = self.processes.of_first(lambda: set() if self.save_tokens is not None else in_file(self.out))
        jobs = [
            _Job(source, content, dataset, self._key(content, dataset))
            for source, content in zip(sources, contents, strict=True)
            for dataset in datasets
        ]
        open_jobs: dict[str, list[_Job]] = {}
        for job in jobs:
            same = [each for some in open_jobs.values() for each in some if each.key == job.key]
            if (job.key, job.dataset.name) in there or same:
                where = f"the same as {same[0].source.name}" if same else f"in {self.out} already"
                self._say(f"{job.source.name} on {job.dataset.name} is {where}: not scored again.")
            else:
                open_jobs.setdefault(job.source.name, []).append(job)
        try:
            counts = self.counts
            if counts is not None and open_jobs:
                self.processes.of_first(lambda: counts.check_models(sources, trust=self.settings.trust))
            for some in open_jobs.values():
                self._score(some, since)
            self._join_tokens()
        finally:
            with suppress(OSError):  # if nothing has begun
                folder_of(self.out).rmdir()
        return [job.key for job in jobs]

    def _contents(self, sources: Sequence[ModelSource]) -> tuple[list[str], float]:
        # Without a file there is none to be put into: its record was removed.
        since = moment_of(folder_of(self.out)) - (_MARGIN if self.out.exists() else 0.0)
        return [content_key(source) for source in sources], since

    def _key(self, model: str, dataset: Dataset) -> str:
        return self.settings.key(model=model, data=dataset.content, name=dataset.name, device=self.device)

    def _check_device(self) -> None:
        place = self.processes.place
        if self.device == "cuda":
            import torch

            there = torch.cuda.device_count()
            if place.local >= there:
                raise UserError(
                    f"{place.local + 1} processes on this machine but {there} GPUs: start one for each."
                )
            self.device_of_process = f"cuda:{place.local}"
            torch.cuda.set_device(place.local)
        else:
            self.device_of_process = self.device

    def _score(self, jobs: Sequence[_Job], since: float) -> None:
        from lightning_pce.scoring.scored_dataset import Model, ScoredDataset

        model = Model.load(jobs[0].source, self.settings, self.device_of_process)
        if model.content != jobs[0].content:
            raise UserError(f"{jobs[0].source.name} was changed while it was loaded: run this again.")
        counts = self.counts
        if counts is not None:  # before hours of work, at whose end a corpus could be refused

            def count() -> None:
                counts.of(model.tokenizer, model.scorer.vocabulary, model.source.name)

            self.processes.of_first(count)
        for job in jobs:
            scored = ScoredDataset(
                model, job.dataset, job.key, self.settings, self.out, self.device, self.memory, self.counts
            )
            scored.score(self.processes, self.save_tokens is not None)
            self.processes.meet()
            if self.processes.is_first:
                line = scored.line(self.save_tokens is not None)
                scored.work.finish(line)
                put(self.out, line, since)
                if self.save_tokens is None:
                    scored.work.clear()
            self.done.append(scored)

    def _join_tokens(self) -> None:
        from lightning_pce.scoring.tokens_file import join

        if self.save_tokens is None or not self.processes.is_first:
            return
        parts = [part for scored in self.done for part in scored.parts()]
        join(parts, self.save_tokens)
        for scored in self.done:
            for part in scored.parts():
                part.unlink(missing_ok=True)
            scored.work.clear()

    def _say(self, text: str) -> None:
        if self.processes.is_first:
            print(text, file=sys.stderr)


def in_file(path: Path) -> set[tuple[str, str]]:
    """The runs and names of the records that were scored into a file."""
    if not path.exists():
        return set()
    found = set()
    with path.open("rb") as file:
        for line in file:
            header = header_of(line)
            values: dict[str, Any] = {} if header is None else header.values
            if values.get("function") == "score":
                found.add((str(values.get("run")), str(values.get("name"))))
    return found


def put(path: Path, line: bytes, since: float) -> None:
    """Put a record into a file, and those that other commands have finished meanwhile.

    Two that read the file and then replace it at once would lose one of the records; whoever comes last finds
    here what the other has finished.

    Raises:
        UserError: if it can't be written.
    """
    missing = [line]
    for _ in range(_TRIES):
        replace_lines(path, missing)
        with path.open("rb") as file:
            there = set(file)
        missing = [
            each for each in {line: None, **dict.fromkeys(lines_since(path, since))} if each not in there
        ]
        if not missing:
            return
    raise UserError(f"{path} is being written to by other processes all the time: run this again later.")


def summary(path: str | os.PathLike[str], keys: Sequence[str]) -> list[str]:
    """A line for each record of these keys: what it is of, its mean, its median and its bits per byte."""
    lines = {}
    for record in History.load(path):
        if record.run in keys and record.function == "score":
            model = record.saved[0].path if record.saved else record.run
            parts = [f"{model} on {record.name}: {record.values['ce_count']:,.0f} tokens"]
            for name, title in (("ce_mean", "mean"), ("ce_p50", "p50"), ("bits_per_byte", "bits per byte")):
                value, low, high = (record.values.get(name + end, math.nan) for end in ("", "_low", "_high"))
                if not math.isnan(value):
                    bar = "" if math.isnan(low) else f" [{low:.4f}, {high:.4f}]"
                    parts.append(f"{title} {value:.4f}{bar}")
            if "proxy_sequences" in record.values:
                parts.append(f"80 proxies of {record.values['proxy_sequences']:,.0f} solutions")
            notes = record.how.get("notes", [])
            lines[record.run] = ", ".join(parts) + "".join(f"; {note}" for note in notes)
    return [lines[key] for key in dict.fromkeys(keys) if key in lines]
