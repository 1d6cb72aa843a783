"""Four kinds of tiny causal language models over characters, each of which continues from a state.

``model(ids, state)`` gives the logits of ``ids [B, T]`` and the state after them, so that a text can be read
at once (to score it) or in pieces (to write it), by the same code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL, DILATIONS = 3, (1, 2, 4, 8, 16)


class Attention(nn.Module):
    """A transformer block: causal attention and a feed-forward part, each normalised before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        B, T, width = x.shape
        qkv = self.qkv(self.before(x)).view(B, T, 3, self.heads, width // self.heads)
        query, *new = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, width / heads]
        known = torch.stack(new) if past is None else torch.cat([past, torch.stack(new)], dim=3)
        first = known.shape[3] - T
        places = torch.arange(first + T, device=x.device)
        sees = places[first:, None] >= places
        mixed = F.scaled_dot_product_attention(query, known[0], known[1], attn_mask=sees)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, width))
        return x + self.down(F.gelu(self.up(self.between(x)))), known


class GPT(nn.Module):
    def __init__(self, vocabulary: int, width: int, layers: int, context: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Attention(width, max(1, width // 16)) for _ in range(layers))
        self.last = nn.LayerNorm(width)

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        past = [None] * len(self.blocks) if state is None else state
        first = 0 if state is None else past[0].shape[3]
        x = self.embed(ids) + self.place.weight[first : first + ids.shape[1]]
        known = []
        for block, before in zip(self.blocks, past, strict=True):
            x, now = block(x, before)
            known.append(now)
        return F.linear(self.last(x), self.embed.weight), known


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM], vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = kind(width, width, layers, batch_first=True)

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        x, state = self.rnn(self.embed(ids), state)
        return F.linear(x, self.embed.weight), state


class TCN(nn.Module):
    """Dilated causal convolutions: a character is predicted from itself and the 62 before it."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.dilations = DILATIONS * layers
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.dilations)
        self.wide = nn.ModuleList(nn.Conv1d(width, width, KERNEL, dilation=d) for d in self.dilations)
        self.narrow = nn.ModuleList(nn.Linear(width, width) for _ in self.dilations)
        self.last = nn.LayerNorm(width)

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        x = self.embed(ids)
        tails = []
        for number, dilation in enumerate(self.dilations):
            new = self.norms[number](x).transpose(1, 2)
            reach = (KERNEL - 1) * dilation
            before = new.new_zeros(*new.shape[:2], reach) if state is None else state[number]
            seen = torch.cat([before, new], dim=2)
            tails.append(seen[:, :, -reach:])
            x = x + self.narrow[number](F.gelu(self.wide[number](seen)).transpose(1, 2))
        return F.linear(self.last(x), self.embed.weight), tails


def build(kind: str, vocabulary: int, width: int, layers: int, context: int) -> nn.Module:
    """A model of random weights: GPT, GRU, LSTM or TCN; embedding and output share their weights."""
    if kind == "GPT":
        model: nn.Module = GPT(vocabulary, width, layers, context)
    elif kind == "TCN":
        model = TCN(vocabulary, width, layers)
    else:
        model = Recurrent({"GRU": nn.GRU, "LSTM": nn.LSTM}[kind], vocabulary, width, layers)
    nn.init.normal_(model.get_submodule("embed").weight, std=width**-0.5)
    return model


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
