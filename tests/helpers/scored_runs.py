"""Histories as the command line writes them: records of checkpoints with everything that a page can show."""

import torch

from lightning_pce.runs.history import History
from lightning_pce.runs.tail import TailToken
from tests.helpers import checkpoint_runs
from tests.helpers.scored_records import write_scored

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
    """A file of records, one a checkpoint, and its history; ``more`` goes to ``write_scored``."""
    ids, losses = checkpoint_runs.losses_of(curve, count, documents)
    for k, each in enumerate(losses):
        labels = torch.arange(len(each)) % len(TEXTS)
        totals = torch.zeros(len(TEXTS), 2, dtype=torch.float64)
        totals.index_add_(0, labels, torch.stack([torch.ones_like(each), each], 1))
        contents = {
            "name": name,
            "values": {"ce_mean": float(each.mean()), "ce_count": len(each)},
            "scalars": {} if scalars is None else scalars[k],
            "label_totals": {"labels": totals},
            "label_texts": {label: text(label) for label in range(len(TEXTS))},
            "tail": tail_of(each, ids, text, context),
        }
        contents |= {} if documents_kept else {"documents": {}}
        write_scored(path, model(k + 1), each, ids, how=how, **contents | more)
    return History.load(path)
