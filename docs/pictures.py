"""Draws the pictures of docs/how: `python docs/pictures.py [NAME ...]`.

What they show is in files of numbers: those of benchmarks/, which benchmarks/README.md explains, and those of
docs/measure.py. A picture is a function here that returns a figure, and its name is that of its file.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from lightning_pce import digest, intervals

DOCS = Path(__file__).resolve().parent
PICTURES = DOCS / "how"
BENCHMARKS = DOCS.parent / "benchmarks"
OURS, PEERS = "#013a63", ("#d18400", "#00ab59", "#bc3515", "#966ea0", "#6f86e3")
BAND, QUIET = "#cfe0ee", "#767676"
SMALL = 16  # centroids where each is to be seen; the default is 1,024
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


def numbers(path):
    """What a file of numbers holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def losses():
    """Real cross-entropies [documents, tokens], nats."""
    return torch.tensor(numbers(PICTURES / "losses.json")["losses"], dtype=torch.float64)


def new_figure(height, columns=1, rows=1, **options):
    """A figure as wide as a page of the site, and its axes."""
    figure = Figure(figsize=(5.6, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def place_of(weights):
    """The middle of each centroid's weight, as a share of all."""
    return (np.cumsum(weights) - weights / 2) / weights.sum()


def of_few(values):
    """Means and weights of the digest of values with few centroids."""
    means, weights, _ = (
        part.numpy() for part in digest.centroids(digest.from_values(values, compression=SMALL))
    )
    return means[weights > 0], weights[weights > 0]


def centroids():
    """The digest of real losses with few centroids, on the curve that it stands for."""
    values = losses().flatten()
    means, weights = of_few(values)
    figure, (above, below) = new_figure(5.6, rows=2, height_ratios=(2, 3))
    above.hist(values.numpy(), bins=80, color=BAND)
    above.scatter(means, np.full(len(means), -12.0), s=weights / 3, color=OURS, alpha=0.6, clip_on=False)
    above.set(xlabel="cross-entropy of a token (nats)", ylabel="tokens", ylim=(-25, None), yticks=[])
    cuts = np.concatenate([[0], np.cumsum(weights)]) / weights.sum()
    for left, right in zip(cuts[::2], cuts[1::2], strict=False):
        below.axvspan(left, right, color=BAND, alpha=0.6, lw=0)
    ordered = np.sort(values.numpy())
    below.plot(
        (np.arange(len(ordered)) + 0.5) / len(ordered),
        ordered,
        color=PEERS[0],
        lw=5,
        alpha=0.5,
        label="all tokens, sorted",
    )
    q, curve = digest.curve(digest.from_values(values, compression=SMALL), 2001)
    below.plot(q, curve, color=OURS, lw=1, label=f"what {SMALL} centroids say")
    below.scatter(place_of(weights), means, s=18, color=OURS, zorder=3)
    below.set(xlabel="share of the tokens below", ylabel="nats", xlim=(0, 1), ylim=(-0.3, None))
    below.legend(loc="upper left", framealpha=0.9, edgecolor="white")
    return figure


def cuts():
    """Even steps along k1 are narrow cells at both ends."""
    figure, axes = new_figure(3.4)
    steps = np.arange(SMALL + 1) / SMALL
    shares = np.sin(steps * np.pi / 2) ** 2
    for left, right in zip(shares[::2], shares[1::2], strict=False):
        axes.axvspan(left, right, ymax=0.08, color=BAND, lw=0)
    axes.hlines(steps * SMALL, 0, shares, color=QUIET, lw=0.6)
    axes.vlines(shares, 0, steps * SMALL, color=QUIET, lw=0.6)
    fine = np.linspace(0, 1, 500)
    axes.plot(np.sin(fine * np.pi / 2) ** 2, fine * SMALL, color=OURS, lw=2)
    axes.set(xlim=(0, 1), ylim=(-1.5, SMALL), yticks=range(0, SMALL + 1, 4))
    axes.set(xlabel="share of the tokens", ylabel="cells, counted along k1")
    return figure


def merge():
    """The digests of two ranks, one with the easier documents, and the one of both."""
    values = losses()
    ranks = [part.flatten() for part in values[values.mean(1).argsort()].tensor_split(2)]
    small = [digest.from_values(rank, compression=SMALL) for rank in ranks]
    merged, whole = digest.merge(torch.stack(small)), digest.from_values(values.flatten(), compression=SMALL)
    figure, (above, below) = new_figure(4.8, rows=2, height_ratios=(3, 2))
    for y, (row, color) in enumerate(zip([*small, merged], (*PEERS[:2], OURS), strict=True)):
        means, weights, _ = (part.numpy() for part in digest.centroids(row))
        above.scatter(means, np.full(len(means), -y), s=weights / 1.5, color=color, alpha=0.65, lw=0)
    above.set(yticks=[0, -1, -2], yticklabels=["rank 0", "rank 1", "merged"], ylim=(-2.6, 0.6))
    above.set(xlabel="cross-entropy of a token (nats)")
    above.tick_params(axis="y", length=0)
    q = np.linspace(0.01, 0.99, 99)
    for each, color, name in ((merged, OURS, "merged"), (whole, PEERS[3], "in one stream")):
        errors = rank_errors(values.flatten(), digest.quantile(each, torch.from_numpy(q)), q)
        below.plot(q, 100 * errors, color=color, label=name, lw=1.5)
    below.set(xlabel="q", ylabel="error in rank, %", xlim=(0, 1), ylim=(0, None))
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def rank_errors(values, estimates, q):
    """The distance of q from [F(x-), F(x)] for each estimate x of the q-quantile."""
    ordered = np.sort(values.numpy())
    below, upto = (np.searchsorted(ordered, estimates.numpy(), side) for side in ("left", "right"))
    return np.maximum(np.maximum(below / len(ordered) - q, q - upto / len(ordered)), 0)


def rank_error():
    """Errors in rank over q, of ours and of peers."""
    measured = numbers(PICTURES / "rank_errors.json")
    figure, axes = new_figure(4.2)
    for (name, errors), color in zip(measured["errors"].items(), (OURS, *PEERS), strict=False):
        worst = [max(errors[max(0, at - 2) : at + 3]) for at in range(len(errors))]
        axes.plot(measured["q"], worst, color=color, lw=2.4 if color == OURS else 1.2, label=name)
    q = np.array(measured["q"])
    sampling = np.sqrt(q * (1 - q) / measured["values"])
    axes.plot(q, sampling, color=QUIET, lw=1, ls="--", label="luck of the sample")
    axes.set(yscale="log", xlim=(0, 1), ylim=(3e-7, 1e-1), xlabel="q", ylabel="error in rank")
    axes.legend(frameon=False, ncols=2, fontsize=9, loc="upper center")
    return figure


def collectives():
    """From batches to a value that every rank logs."""
    figure, axes = new_figure(4.4)
    axes.set(xlim=(0, 10), ylim=(0, 8.6))
    axes.axis("off")

    def box(x, y, width, text, color=BAND):
        edges = {"boxstyle": "round,pad=0.08", "fc": color, "ec": QUIET, "lw": 0.8}
        axes.add_patch(FancyBboxPatch((x, y), width, 0.95, **edges))
        axes.text(x + width / 2, y + 0.475, text, ha="center", va="center", fontsize=9)

    def arrow(x, top, bottom):
        axes.annotate("", (x, bottom), (x, top), arrowprops={"arrowstyle": "-|>", "color": QUIET})

    for x, rank, batches in ((0.2, 0, 3), (3.6, 1, 2), (7.0, 2, 0)):
        axes.text(x + 1.4, 8.3, f"rank {rank}", ha="center", color=QUIET, fontsize=9)
        box(x, 7.0, 2.8, f"{batches} batches" if batches else "no batch", "white")
        box(x, 5.3, 2.8, "state\n[1027, 2] float64")
        box(x, 2.1, 2.8, "merge: all\ntokens")
        box(x, 0.4, 2.8, "log, compare,\nsave", "white")
        for top, bottom in ((6.9, 6.4), (5.2, 4.75), (3.65, 3.2), (2.0, 1.5)):
            arrow(x + 1.4, top, bottom)
    box(0.2, 3.75, 9.6, "one all_gather, when the epoch ends, on every rank", "#f3ddb3")
    return figure


def kernels():
    """Time and memory of one read of the logits beside what people compute."""
    measured = numbers(BENCHMARKS / "token_statistics.json")
    rows = {
        "F.cross_entropy(x.float())": "F.cross_entropy\n(x.float())",
        "F.cross_entropy(x)": "F.cross_entropy(x)",
        "torchmetrics Perplexity": "torchmetrics\nPerplexity",
        "ours, eager, ce": "ours, eager:\nCE",
        "ours, eager, all": "ours, eager:\nall five",
        "ours, compile, all": "ours, compile:\nall five",
    }
    figure, both = new_figure(4.2, columns=2, sharey=True)
    colors = [OURS if name.startswith("ours") else PEERS[0] for name in rows]
    for shift, dtype, strong in ((-0.2, "float32", 1.0), (0.2, "bfloat16", 0.5)):
        table = measured[f"[2048, 32000] {dtype}, from logits"]
        places = np.arange(len(rows)) + shift
        for axes, key in zip(both, ("ms", "extra MiB"), strict=True):
            found = [table[name][key] for name in rows]
            axes.barh(places, found, 0.38, color=colors, alpha=strong)
            for y, value in zip(places, found, strict=True):
                axes.text(
                    value, y, f" {value:.0f}" if value > 1 else f" {value:.1f}", va="center", fontsize=8
                )
    for axes, title, end in zip(both, ("milliseconds", "MiB beside the logits"), (240, 620), strict=True):
        axes.set_title(title, fontsize=10)
        axes.set(xlim=(0, end))
        axes.tick_params(axis="y", length=0)
    both[0].set_yticks(range(len(rows)), rows.values(), fontsize=9)
    both[0].invert_yaxis()
    return figure


def slots():
    """The counts behind error bars: slots of documents by bins of CE."""
    values = losses()
    documents = torch.arange(len(values))[:, None].expand_as(values)
    counts = intervals.add(intervals.empty(), values, None, intervals.slots_of(documents))
    figure, axes = new_figure(4.2)
    edges = np.logspace(-7, 3, intervals.BINS + 1)
    colors = ListedColormap(colormaps["Blues"](np.linspace(0.25, 1, 64)))  # a single token is seen too
    shown = np.ma.masked_equal(counts[:, : intervals.BINS].numpy(), 0)
    mesh = axes.pcolormesh(edges, np.arange(intervals.SLOTS + 1), shown, cmap=colors)
    axes.set(xscale="log", xlim=(1e-4, 1e2), xlabel="cross-entropy of a token (nats)", ylabel="slot")
    figure.colorbar(mesh, label="tokens")
    return figure


def coverage():
    """How often intervals held the truth in simulations."""
    measured = numbers(BENCHMARKS / "intervals.json")["coverage"]
    names = {"30": "30", "100": "100", "150 strong": "150, alike", "200 informative": "200, uneven"}
    names["1000"] = "1,000"
    kinds = (("tokens", "^", PEERS[2]), ("exact", "s", PEERS[0]), ("slots", "o", OURS))
    figure, parts = new_figure(3.6, columns=3, sharey=True, sharex=True)
    for axes, statistic in zip(parts, ("p50", "p95", "mean"), strict=True):
        axes.axvline(95, color=QUIET, lw=0.8)
        for kind, marker, color in kinds:
            held = [measured[setting][statistic][f"{kind}, %"] for setting in names]
            axes.scatter(held, range(len(names)), marker=marker, color=color, s=26, label=kind, alpha=0.85)
        axes.set(title=statistic, xlim=(0, 100), xticks=(25, 50, 95))
    parts[0].set_yticks(range(len(names)), names.values())
    parts[0].set_ylabel("documents")
    parts[1].set_xlabel("intervals that held the truth, %")
    figure.legend(*parts[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


DRAWN = (centroids, cuts, merge, rank_error, collectives, kernels, slots, coverage)


def make(folder, names=()):
    """Draw the pictures, or those that are named, into a folder."""
    for draw in DRAWN:
        if not names or draw.__name__ in names:
            with rc_context(STYLE):
                draw().savefig(folder / f"{draw.__name__}.png", dpi=140)


def main(names):
    """Make the pictures of the pages."""
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
    gallery = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    make(PICTURES, names)
    for picture in PICTURES.glob("*.png"):
        if not names or picture.stem in names:
            gallery.shrink(picture)
            print(picture)


if __name__ == "__main__":
    main(sys.argv[1:])
