"""Records as the command line writes them, made by hand: any losses, documents and tokens."""

from __future__ import annotations

import math

import torch

from lightning_pce import digest, intervals
from lightning_pce.runs.document_totals import DocumentTotals
from lightning_pce.runs.history import write_validation

HOW = {
    "data": "d0d0d0d0d0d0d0d0",
    "protocol": "windows",
    "context": 512,
    "stride": 256,
    "bos": None,
    "masking": "all tokens",
    "tokenizer": "a1a1a1a1a1a1a1a1",
    "token_ids": "f1f1f1f1f1f1f1f1",
    "dtype": "float32",
    "device": "cpu",
}


def document_totals(ids, losses, sizes, *, first_byte=0, ends=8):
    """Sums of tokens ``[n]`` by document: ``ids`` are those of tokens, ``sizes`` the bytes of each token."""
    rows, found_ends = [], []
    found = list(dict.fromkeys(ids.tolist()))
    for each in found:
        own = ids == each
        nats, size = losses[own].double(), sizes[own].double()
        rows.append([own.sum(), nats.sum(), size.sum(), first_byte])
        until = torch.full((ends, 2), math.nan, dtype=torch.float64)
        number = min(ends, len(nats))
        until[:number, 0] = first_byte + size.cumsum(0)[:number]
        until[:number, 1] = nats.cumsum(0)[:number]
        found_ends.append(until)
    numbers = torch.tensor(rows, dtype=torch.float64)
    return DocumentTotals(torch.tensor(found), *numbers.T, torch.stack(found_ends))


def write_scored(path, model, losses, ids, *, how=None, sizes=None, without=(), **more):
    """A record of a model: ``losses`` and documents ``ids`` ``[n]`` of its tokens.

    ``how`` changes what is said of it, ``without`` names fields that are not known. ``more`` goes to
    ``write_validation``.
    """
    slots = intervals.slots_of(ids)
    known = {
        key: value for key, value in {**HOW, "model": model, **(how or {})}.items() if key not in without
    }
    sizes = torch.full_like(ids, 4) if sizes is None else sizes
    contents = {
        "digests": {"ce": {"": digest.from_values(losses)}},
        "documents": {"ce": {"": intervals.add(intervals.empty(), losses, None, slots)}},
        "document_totals": document_totals(ids, losses, sizes),
        **more,
    }
    settings = {"name": "topics", "step": None, "function": "score", "checkpoint": model}
    settings |= {key: contents.pop(key) for key in settings if key in contents}
    write_validation(path, run=f"key of {model}", how=known, **settings, **contents)
    return path
