"""One model on one dataset: planned, scored a chunk at a time, and put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_pce._errors import UserError
from lightning_pce.scoring.chunk_scoring import ChunkScorer, counted_in, run
from lightning_pce.scoring.chunk_totals import ChunkTotals, Tokens, joined
from lightning_pce.scoring.chunks import Work, hash_of
from lightning_pce.scoring.data import Dataset
from lightning_pce.scoring.forward import Scorer
from lightning_pce.scoring.keys import TokenIds
from lightning_pce.scoring.models import (
    LoadedModel,
    ModelSource,
    check_vocabulary,
    content_key,
    load_model,
    load_tokenizer,
    step_of,
    tokenizer_key,
)
from lightning_pce.scoring.processes import Place, Together
from lightning_pce.scoring.progress import Progress
from lightning_pce.scoring.scored_record import line_of
from lightning_pce.scoring.settings import WITHIN, Settings, context_of
from lightning_pce.scoring.solution_proxies import SolutionProxies, Solutions
from lightning_pce.scoring.token_counts import TokenCounts
from lightning_pce.scoring.tokenizing import Tokenized, tokenize
from lightning_pce.scoring.tokens_file import write_part
from lightning_pce.scoring.windows import Chunk, plan


@dataclass(frozen=True)
class Model:
    """A model with all that scoring needs of it."""

    source: ModelSource
    tokenizer: Any
    loaded: LoadedModel
    content: str
    scorer: Scorer
    context: int
    step: int | None

    @classmethod
    def load(cls, source: ModelSource, settings: Settings, device: str) -> Model:
        """Load it.

        Raises:
            UserError: if it can't be scored.
        """
        tokenizer = load_tokenizer(source, trust=settings.trust)
        loaded = load_model(source, dtype=settings.dtype, device=device, trust=settings.trust)
        check_vocabulary(tokenizer, loaded, source.name)
        config: Any = loaded.model.config
        context = context_of(settings.context, config.get_text_config(), loaded.context)
        if settings.stride is not None and settings.stride > context:
            raise UserError(f"--stride {settings.stride}: take 1 to {context}, the context of {source.name}.")
        step = step_of(source, trust=settings.trust) if settings.step is None else settings.step
        probabilities = settings.proxies is not None
        scorer = Scorer(loaded.model, piece_bytes=settings.piece_bytes, probabilities=probabilities)
        return cls(source, tokenizer, loaded, content_key(source), scorer, context, step)


class _Gone(Exception):  # noqa: N818 - it is no error
    """A chunk is not there any more."""


class ScoredDataset:
    """What becomes a record.

    Args:
        model: that scores.
        dataset: what is scored.
        key: of the record.
        settings: how.
        out: the file of records.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        memory: for logits and what is made of them, in bytes.
        counts: for proxies that are weighted by the frequency of tokens in a corpus.

    Raises:
        UserError: if the tokenizer finds nothing to score, or the work folder can't be written to.
    """

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        key: str,
        settings: Settings,
        out: Path,
        device: str,
        memory: int,
        counts: TokenCounts | None = None,
    ) -> None:
        self.model, self.dataset, self.key, self.settings = model, dataset, key, settings
        self.device, self.memory, self.counts = device, memory, counts
        self.data: Tokenized = tokenize(
            dataset, model.tokenizer, bos=settings.bos, protocol=settings.protocol, context=model.context
        )
        self._check_ids()
        batch_tokens = settings.batch_tokens_on(device)
        self.chunks = plan(
            self.data.documents, model.context, stride=settings.stride, batch_tokens=batch_tokens
        )
        self.batch_tokens = self.at_most = batch_tokens
        if model.scorer.holds_all_logits:  # as the model makes them, and in float32
            self.at_most = min(batch_tokens, max(1, memory // (8 * model.scorer.vocabulary)))
        self.counted = _counted(self.chunks, self.data)
        self.solutions = None if settings.proxies is None else Solutions(self.data, self.counted)
        self.work = Work(out, key, self._plan())

    def _check_ids(self) -> None:
        largest = max(int(each.ids.max(initial=0)) for each in self.data.documents)
        if largest >= self.model.loaded.vocabulary:
            raise UserError(
                f"{self.model.source.name}: {self.dataset.path} has the token {largest}, but the model "
                f"embeddings of {self.model.loaded.vocabulary} tokens: its tokenizer is another model's."
            )

    def _plan(self) -> Mapping[str, Any]:
        """What a reader of the work folder wants to know, and what tells other chunks from these."""
        windows = [[[*window] for batch in chunk.batches for window in batch] for chunk in self.chunks]
        return {
            "model": self.model.source.name,
            "data": self.dataset.name,
            **self.settings.known(),
            "context": self.model.context,
            "batch_tokens": self.batch_tokens,
            "at_most": self.at_most,  # the memory of another command may have cut batches elsewhere
            "tokens": int(sum(map(len, self.counted))),
            "chunks": [hash_of(each) for each in windows],
        }

    def parts(self) -> list[Path]:
        """The parts of the file of all tokens."""
        return [self.work.chunk_path(chunk.number, ".parquet") for chunk in self.chunks]

    def score(self, processes: Together, with_tokens: bool) -> None:
        """Score the chunks that are open and this process's.

        Raises:
            UserError: if memory is not enough for a single window, or a chunk can't be written.
        """
        place = processes.place
        still = processes.of_first(
            lambda: [each.number for each in self.chunks if self._open(each, with_tokens)]
        )
        mine = [self.chunks[number] for number in still[place.rank :: place.world]]
        self._score(mine, with_tokens, processes)

    def _open(self, chunk: Chunk, with_tokens: bool) -> bool:
        if with_tokens and not self.work.chunk_path(chunk.number, ".parquet").exists():
            return True
        return self.work.kept(chunk.number) is None

    def _score(self, chunks: list[Chunk], with_tokens: bool, processes: Together) -> None:
        if not chunks:
            return
        scorer, documents = self.model.scorer, self.data.documents
        total = sum(
            len(counted_in(window, documents[window.document]))
            for chunk in chunks
            for batch in chunk.batches
            for window in batch
        )
        progress = None
        if processes.is_first:
            what = f"{Path(self.model.source.name).name} on {self.dataset.name}"
            progress = Progress(what, total, processes.place.world)

        def keep(chunk: Chunk, tokens: Tokens, totals: ChunkTotals) -> None:
            if with_tokens:
                path = self.work.chunk_path(chunk.number, ".parquet")
                ids = [each.id for each in documents]
                write_part(path, tokens, run=self.key, name=self.dataset.name, documents=ids)
            more = {} if self.solutions is None else self.solutions.kept(tokens)
            self.work.keep(chunk.number, {**totals.plain(), **more})

        def seen(tokens: int) -> None:
            if progress is not None:
                progress.add(tokens)

        try:
            run(
                ChunkScorer(scorer, self.data, self.at_most, seen),
                chunks,
                keep,
                self._streams(processes.place.world),
            )
        finally:
            if progress is not None:
                progress.end()

    def _streams(self, world: int) -> int:
        """How many chunks are scored side by side in this process."""
        if self.device != "cpu" or self.model.scorer.holds_all_logits:
            return 1
        return max(1, min(torch.get_num_threads() // world, self.memory // self.model.scorer.bytes))

    def line(self, with_tokens: bool) -> bytes:
        """The record, of all chunks.

        Raises:
            UserError: if a chunk that is missing can't be scored.
        """
        vocabulary = self.model.scorer.vocabulary
        proxies = self._proxies()
        try:
            self._complete(with_tokens)
            totals = joined((self._totals(each, proxies) for each in self.chunks), vocabulary)
        except _Gone as error:  # the same command in another process was faster, and has tidied up
            line = self.work.line
            if line is None or with_tokens:
                raise UserError(
                    f"{self.work.folder} was changed by another process: run the same command again."
                ) from error
            return line
        settings, loaded = self.settings, self.model.loaded
        how: dict[str, Any] = {
            "data": self.dataset.content,
            "protocol": settings.protocol,
            "context": self.model.context,
            "stride": self._stride(),
            "bos": self.data.bos,
            "masking": self.data.masking,
            "tokenizer": tokenizer_key(self.model.tokenizer),
            "token_ids": self._token_ids(),
            "dtype": loaded.dtype,
            "quantisation": loaded.quantisation,
            "device": self.device,
            "model": self.model.content,
            "notes": [*loaded.notes, *self.data.notes],
        }
        if proxies is not None:
            how |= {"proxies": proxies.how, "notes": [*how["notes"], *proxies.notes]}
        return line_of(
            totals,
            self.data,
            self.counted,
            key=self.key,
            name=self.dataset.name,
            model=self.model.source.name,
            step=self.model.step,
            how=how,
            vocabulary=vocabulary,
            tokenizer=self.model.tokenizer if settings.text else None,
            more=None if proxies is None else proxies.values(),
        )

    def _complete(self, with_tokens: bool) -> None:
        """Score what is still open, unless the record is there in its place."""
        for chunk in self.chunks:
            if self._open(chunk, with_tokens):
                if self.work.line is not None and not with_tokens:
                    raise _Gone
                self._score([chunk], with_tokens, Together(Place()))

    def _totals(self, chunk: Chunk, proxies: SolutionProxies | None) -> ChunkTotals:
        arrays = self.work.kept(chunk.number)
        if arrays is None:
            raise _Gone
        if proxies is not None:
            proxies.add(arrays)
        return ChunkTotals.of(arrays)

    def _proxies(self) -> SolutionProxies | None:
        if self.solutions is None:
            return None
        model, counts = self.model, self.counts
        vocabulary, how = model.scorer.vocabulary, WITHIN
        table = None
        if counts is not None:
            table = counts.of(model.tokenizer, vocabulary, model.source.name)
            how = counts.key_with(model.tokenizer)
        return SolutionProxies(self.solutions, vocabulary, how, table)

    def _stride(self) -> int | None:
        if self.settings.protocol == "llama.cpp":
            return None
        return self.settings.stride or self.model.context // 2

    def _token_ids(self) -> str:
        ids = TokenIds()
        for document, places in zip(self.data.documents, self.counted, strict=True):
            ids.add(document.ids[places])
        return ids.key


def _counted(chunks: tuple[Chunk, ...], data: Tokenized) -> list[NDArray[np.int64]]:
    """The positions of the scored tokens of each document."""
    found: list[list[NDArray[np.int64]]] = [[] for _ in data.documents]
    for chunk in chunks:
        for batch in chunk.batches:
            for window in batch:
                found[window.document].append(counted_in(window, data.documents[window.document]))
    none = np.zeros(0, np.int64)
    return [np.sort(np.concatenate(each)) if each else none for each in found]
