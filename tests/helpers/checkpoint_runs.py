"""Runs of checkpoints whose loss changes in a known way: documents, and the losses after each epoch.

All checkpoints of a run score the same tokens. A token has one latent difficulty, part of which is its
document's, and each checkpoint adds a little noise of its own; the loss is a quantile function of that,
given by its logarithm at a few shares ``SHARES`` of the tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from lightning_pce import digest, intervals
from lightning_pce.runs.history import write_validation

SHARES = (0.001, 0.25, 0.5, 0.75, 0.95, 0.99, 0.9999)
_START = np.array([1e-4, 0.05, 0.6, 2, 6, 9, 15])


def agreeing(epoch, *, overtrained=False):
    """Everything follows one curve down, and in the end a little up again."""
    late = 0.004 * max(0, epoch - 9) ** 2 if overtrained else 0.0
    return _START * (1 + 0.8 * math.exp(-0.5 * epoch) + late)


def overtrained(epoch):
    return agreeing(epoch, overtrained=True)


def saturating(epoch):
    """The bulk becomes certain, the tail grows from epoch 4 on."""
    late = max(0, epoch - 4)
    return np.array(
        [
            1e-6,
            0.002 * math.exp(-0.3 * epoch) + 1e-5,
            0.05 * math.exp(-0.45 * epoch) + 0.0003,
            0.4 * math.exp(-0.25 * epoch) + 0.03,
            2.2 + (0.06 * (epoch - 4) ** 2 if epoch < 4 else 0.18 * late),
            6 + 0.9 * late,
            12 + 2 * late,
        ]
    )


def split(epoch):
    """The bulk improves and the tail becomes worse, both a little: a real disagreement. Of 6 epochs."""
    return _START * (1 + epoch * np.array([0, -0.06, -0.05, -0.02, 0.02, 0.05, 0.05]))


def tail_regression(epoch):
    """As agreeing, but the top 5 % grow by 5 % an epoch from epoch 8 on."""
    growth = 1.05 ** max(0, epoch - 8)
    return agreeing(epoch) * np.array([1, 1, 1, 1, growth, growth, growth])


def losses_of(curve, epochs=12, documents=240, seed=0, *, length=15, correlation=0.3, noise=0.15):
    """The document of each token ``[n]``, and its losses ``[epochs, n]``."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(documents), length)
    own = rng.standard_normal(len(ids))
    latent = math.sqrt(correlation) * rng.standard_normal(documents)[ids] + math.sqrt(1 - correlation) * own
    losses = []
    for epoch in range(1, epochs + 1):
        z = (latent + noise * rng.standard_normal(len(ids))) / math.sqrt(1 + noise**2)
        share = torch.special.ndtr(torch.from_numpy(z)).numpy()
        losses.append(np.exp(np.interp(share, SHARES, np.log(curve(epoch)))))
    return torch.from_numpy(ids), torch.from_numpy(np.stack(losses))


def records_of(ids, losses):
    """What concordance takes: (name, digest, documents) of each epoch."""
    slots = intervals.slots_of(ids)
    return [
        (f"epoch {epoch}", digest.from_values(each), intervals.add(intervals.empty(), each, None, slots))
        for epoch, each in enumerate(losses, start=1)
    ]


def run_of(curve, epochs=12, documents=240, seed=0):
    return records_of(*losses_of(curve, epochs, documents, seed))


def written(path, run, *, name="val", statistic="ce", scalars=None, fingerprint=None, run_id="a"):
    """The run as lines of a history, epochs from 0 on; ``scalars`` gives those of each epoch."""
    for epoch, (_, state, documents) in enumerate(run):
        write_validation(
            path,
            run=run_id,
            name=name,
            step=100 * (epoch + 1),
            epoch=epoch,
            values={},
            scalars={} if scalars is None else scalars[epoch],
            fingerprint=fingerprint,
            digests={statistic: {"": state}},
            documents={} if documents is None else {statistic: {"": documents}},
        )
    return path
