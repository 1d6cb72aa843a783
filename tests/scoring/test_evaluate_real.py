"""SmolLM2 over 14 documents that every Python has."""

import json
import math

import pytest
import torch

from lightning_pce.digest import quantile
from lightning_pce.runs.history import History
from lightning_pce.scoring.evaluate import evaluate
from tests.helpers.all_losses import all_losses
from tests.helpers.real_model import folder_of_smollm2

pytestmark = pytest.mark.slow
PROMPT = 40  # characters


def test_smollm2_equals_a_script_that_keeps_all_losses(tmp_path):
    from pydoc_data import topics

    texts = sorted(topics.topics.values(), key=len)[:14]
    file = next(folder_of_smollm2().glob("*.gguf"))
    oracle = all_losses(file.parent, texts, context=64, stride=32, gguf_file=file.name)
    losses = torch.cat(oracle.losses).sort().values
    data, out = tmp_path / "topics.jsonl", tmp_path / "records.jsonl"
    rows = [{"prompt": text[:PROMPT], "completion": text[PROMPT:]} for text in texts]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    evaluate([file], [data], out, context=64, batch_tokens=256, proxies=True)
    (record,) = History.load(out)
    assert record.values["ce_count"] == len(losses)
    assert record.values["ce_mean"] == pytest.approx(float(losses.mean()), abs=1e-6)
    shares = torch.tensor([0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99], dtype=torch.float64)
    values = quantile(record.digest(), shares)
    below, upto = (torch.searchsorted(losses, values, side=side) / len(losses) for side in ("left", "right"))
    error = torch.maximum(below - shares, shares - upto).max()
    # A place more: in float32 two losses may have changed places.
    assert error <= max(5e-5, 0.1 / math.sqrt(len(losses))) + 1 / len(losses)
    assert record.how["quantisation"] is not None
    assert record.values["bits_per_byte"] == pytest.approx(
        float(sum(each.sum() for each in oracle.losses))
        / math.log(2)
        / sum(len(text[spans[1][0] :].encode()) for text, spans in zip(texts, oracle.spans, strict=True))
    )
    for name, found in (
        ("ce", oracle.losses),
        ("top5", [(ranks <= 5).double() for ranks in oracle.ranks]),
        ("entropy", [each / math.log(oracle.model.config.vocab_size) for each in oracle.entropies]),
    ):
        # Of the tokens that end in the completion.
        own = [
            each[torch.tensor([end > PROMPT for _, end in spans[1:]])].mean()
            for each, spans in zip(found, oracle.spans, strict=True)
        ]
        mean, error = float(sum(own)) / 14, float(torch.stack(own).std()) / math.sqrt(14)
        assert record.values[f"proxy_{name}_uniform"] == pytest.approx(mean, rel=1e-5)
        assert record.values[f"proxy_{name}_uniform_se"] == pytest.approx(error, rel=1e-5)
