"""Histories as the command line writes them: records of checkpoints with everything that a page can show."""

import math

import torch

from lightning_pce.runs.document_totals import DocumentTotals
from lightning_pce.runs.history import History, write_validation
from lightning_pce.runs.tail import TailToken
from tests.helpers import checkpoint_runs

# What must be seen as it is written: markup, mathematics of matplotlib, templates, ends of styles, controls
# of direction, NUL, half a surrogate pair, scripts of other widths, and words without a place to break.
HOSTILE = (
    "<script>alert(1)</script>",
    "$x^{",
    "</style><h1>out",
    "{{ 7*7 }}{% raw %}",
    "\u202egnihtemos\u2066",
    "a\x00b\x1b[31m",
    "\ud83d",
    "👩‍👩‍👧 漢字かな עברית",
    "w" * 300,
    "' onmouseover='alert(1)\" onload=\"alert(1)",
)
TEXTS = (" the", " __", "Vor", "zem", ".", "\n", " Answer")


def hostile(number):
    """All of these in one string, another one first each time."""
    turn = number % len(HOSTILE)
    return " ".join((*HOSTILE[turn:], *HOSTILE[:turn]))


def tail_of(losses, documents, text, context, number=40):
    """The highest losses of a record as its tail."""
    top = losses.topk(number).indices.tolist()
    return tuple(
        TailToken(
            document=f"fact-{int(documents[i])}",
            position=i % 15,
            ce=float(losses[i]),
            rank=10 + i,
            label=i % len(TEXTS),
            top=(i + 3) % len(TEXTS),
            text=text(i),
            top_text=text(i + 3),
            context=context(i),
        )
        for i in top
    )


def scored(
    path,
    count=6,
    *,
    curve=checkpoint_runs.saturating,
    documents=120,
    model=lambda k: f"checkpoints/step-{k}",
    text=lambda i: TEXTS[i % len(TEXTS)],
    context=lambda i: f"The capital city of the country Kas{i} is called ___. Answer: Zan",
    how=None,
    name="validation",
    scalars=None,
    documents_kept=True,
    **more,
):
    """A file of records, one a checkpoint, and its history."""
    ids, losses = checkpoint_runs.losses_of(curve, count, documents)
    for k, ((_, digest, counts), each) in enumerate(
        zip(checkpoint_runs.records_of(ids, losses), losses, strict=True)
    ):
        labels = torch.arange(len(each)) % len(TEXTS)
        totals = torch.zeros(len(TEXTS), 2, dtype=torch.float64)
        totals.index_add_(0, labels, torch.stack([torch.ones_like(each), each], 1))
        sizes, nats = torch.bincount(ids).double(), torch.zeros(documents).double().index_add_(0, ids, each)
        ends = torch.zeros(documents, 0, 2, dtype=torch.float64)
        write_validation(
            path,
            **{
                "run": f"{k + 1:016x}",
                "name": name,
                "step": None,
                "function": "score",
                "checkpoint": model(k + 1),
                "values": {
                    "ce_mean": float(each.mean()),
                    "ce_count": len(each),
                    "bits_per_byte": float(nats.sum() / sizes.sum() / 4 / math.log(2)),
                },
                "scalars": {} if scalars is None else scalars[k],
                "how": {
                    "data": "3f2a90cc81d5e2b7",
                    "protocol": "windows",
                    "context": 2048,
                    "stride": 1024,
                    "bos": None,
                    "masking": "all tokens",
                    "tokenizer": "9c1b22aa07f3d4e5",
                    "dtype": "float32",
                    "device": "cpu",
                    "model": f"{k + 77:016x}",
                    "notes": [],
                }
                | (how or {}),
                "digests": {"ce": {"": digest}},
                "documents": {"ce": {"": counts}} if documents_kept else {},
                "label_totals": {"labels": totals},
                "label_texts": {label: text(label) for label in range(len(TEXTS))},
                "document_totals": DocumentTotals(
                    torch.arange(documents), sizes, nats, 4 * sizes, 0 * sizes, ends
                ),
                "tail": tail_of(each, ids, text, context),
            }
            | more,
        )
    return History.load(path)
