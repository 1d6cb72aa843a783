"""Windows of tokens go through a model and come out as scored tokens, without all of their logits at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_pce.integrations.output_layer import output_layer
from lightning_pce.metrics.tail_tokens import TailTokens
from lightning_pce.tokens.batch import score_tokens
from lightning_pce.tokens.from_hidden_states import scale_and_cap
from lightning_pce.tokens.kernels.eager import SCRATCH_BYTES

_Ints: TypeAlias = NDArray[np.int64]


class Batch(NamedTuple):
    """Windows that go through the model together, and which of their tokens are scored."""

    ids: list[NDArray[np.int32]]
    """The tokens of each window."""
    row: _Ints
    """Of each scored token: in which window it is,"""
    place: _Ints
    """where in that, at least 1: its logits are those of the place before,"""
    document: _Ints
    """the number of its document,"""
    position: _Ints
    """where in that."""

    @property
    def labels(self) -> _Ints:
        """The id of each scored token."""
        padded = np.zeros((len(self.ids), max(map(len, self.ids))), np.int64)
        for row, ids in zip(padded, self.ids, strict=True):
            row[: len(ids)] = ids
        found: _Ints = padded[self.row, self.place]
        return found


class Scores(NamedTuple):
    """What a model says of tokens ``[n]``, in the order of a batch."""

    ce: NDArray[np.float32]
    """In nats; NaN if the logits are no distribution."""
    entropy: NDArray[np.float32]
    """In nats."""
    rank: NDArray[np.float32]
    """From 1; NaN where the cross-entropy is."""
    target_prob: NDArray[np.float32] | None = None
    """The probability of the token; None unless probabilities were asked for."""
    max_prob: NDArray[np.float32] | None = None
    """The largest probability; in the same way."""


class Scorer:
    """A causal language model that scores windows.

    Where the model's hidden states and its output layer give its own logits, that is how they are made: for
    the tokens that are scored alone, and a piece at a time. Otherwise the model gives all logits of a batch.

    Args:
        model: in eval mode, on its device; it takes ``input_ids`` ``[B, T]`` and ``use_cache``.
        piece_bytes: for the logits of a piece in float32.
        probabilities: whether scores have probabilities too.
    """

    def __init__(self, model: Any, *, piece_bytes: int, probabilities: bool = False) -> None:
        self.model, self.piece_bytes = model, piece_bytes
        self.statistics = Scores._fields if probabilities else Scores._fields[:3]
        self.device = next(model.parameters()).device
        with torch.inference_mode():
            self._backbone, self._head = _layers(model)
            self.vocabulary = self._logits(self._states(torch.zeros(1, 1, dtype=torch.int64))[0]).shape[-1]

    @property
    def holds_all_logits(self) -> bool:
        """Whether the model gives the logits of a whole batch."""
        return self._backbone is None

    @property
    def rows(self) -> int:
        """How many rows of logits a piece has."""
        return max(1, self.piece_bytes // (4 * self.vocabulary))

    @property
    def bytes(self) -> int:
        """Memory for logits and all that is made of them, where they are not those of whole batches."""
        return 4 * self.vocabulary * self.rows + SCRATCH_BYTES

    def another(self) -> Scorer:
        """One for another thread: it shares the weights and nothing else.

        Modules keep things of their own meanwhile: rotary embeddings that follow the length of the input,
        functions that collect outputs.
        """
        shared: dict[int, Any] = {id(weight): weight for weight in self.model.parameters()}
        shared[id(self.device)] = self.device
        return copy.deepcopy(self, shared)

    @torch.inference_mode()
    def score(self, batch: Batch, tail: TailTokens | None = None) -> Scores:
        """Score a batch, and add its tokens to ``tail``, where their documents are the numbers given.

        Raises:
            RuntimeError: or MemoryError, if the memory is not enough: see :func:`is_out_of_memory`.
        """
        longest = max(map(len, batch.ids))
        # At the right, where nothing that is scored attends to it: a causal model needs no mask for that.
        ids = torch.zeros(len(batch.ids), longest, dtype=torch.int64)
        for row, window in zip(ids, batch.ids, strict=True):
            row[: len(window)] = torch.from_numpy(window)
        labels = ids[torch.from_numpy(batch.row), torch.from_numpy(batch.place)]
        states = self._states(ids)
        found = []
        for start in range(0, len(labels), self.rows):
            piece = slice(start, start + self.rows)
            before = torch.from_numpy(batch.place[piece] - 1).to(states.device)
            rows = torch.from_numpy(batch.row[piece]).to(states.device)
            logits = self._logits(states[rows, before])
            scored = score_tokens(
                logits,
                labels[piece].to(logits.device),
                document=torch.from_numpy(batch.document[piece]).to(logits.device),
                by_document=True,
                ignore_index=None,
                statistics=self.statistics,
            )
            if tail is not None:
                positions = torch.from_numpy(batch.position[piece]).to(logits.device)
                tail.add(scored._replace(positions=positions), logits)
            found.append(torch.stack([scored.ce, *(scored.statistics[name] for name in self.statistics[1:])]))
        return Scores(*torch.cat(found, dim=1).cpu().numpy())

    def _states(self, ids: Tensor) -> Tensor:
        """Hidden states ``[B, T, H]``, or the logits where these are not known."""
        ids = ids.to(self.device)
        if self._backbone is None:
            return _logits_of(self.model, ids)
        return _first(self._backbone(input_ids=ids, use_cache=False))

    def _logits(self, states: Tensor) -> Tensor:
        return states if self._head is None else self._head(states)


class _Head:
    """Logits of hidden states."""

    def __init__(self, layer: Callable[[Tensor], Tensor], scale: float, softcap: float | None) -> None:
        self.layer, self.scale, self.softcap = layer, scale, softcap

    def __call__(self, states: Tensor) -> Tensor:
        logits = self.layer(states)
        scale_and_cap(logits, self.scale, self.softcap)
        return logits


def _layers(model: Any) -> tuple[Callable[..., Any] | None, _Head | None]:
    """What gives a model's hidden states, and what makes logits of them; Nones if that is not sure."""
    try:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # with an adapter in it
        backbone, head = inner.base_model, _Head(*output_layer(inner))
        if backbone is inner:
            return None, None
        ids = torch.arange(min(16, model.config.get_text_config().vocab_size), device=model.device)[None]
        made, own = head(_first(backbone(input_ids=ids, use_cache=False))), _logits_of(model, ids)
    except Exception:  # whatever a model of any kind raises here, its own logits are the other way
        return None, None
    if made.shape != own.shape or made.dtype != own.dtype:
        return None, None
    # As in output_layer: what a product of other rows may round differently.
    allowed = max(1e-4, 4 * torch.finfo(own.dtype).eps) * float(own.double().abs().max())
    same = float((made.double() - own.double()).abs().max()) <= allowed
    return (backbone, head) if same else (None, None)


def _logits_of(model: Any, ids: Tensor) -> Tensor:
    outputs = model(input_ids=ids, use_cache=False)
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def _first(outputs: Any) -> Tensor:
    """The last hidden states, which every backbone gives first."""
    found: Tensor = outputs[0]
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the CPU has no memory left: there is no class of errors for the latter."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    words = ("not enough memory", "out of memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(each in str(error).lower() for each in words)
