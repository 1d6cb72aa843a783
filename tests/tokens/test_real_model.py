"""SmolLM2 over real English: percentiles against all token losses kept and sorted."""

import warnings

import numpy as np
import pytest
import torch

from lightning_pce import PercentileCrossEntropy
from tests.helpers.distributions import rank_error
from tests.helpers.real_model import english_tokens, smollm2

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@pytest.fixture(scope="module")
def scored():
    """ids [B, T] and logits [B, T, V] float32."""
    model, _ = smollm2()
    ids = english_tokens(batch=12, length=256)
    with torch.inference_mode():
        return ids, torch.cat([model(input_ids=rows).logits for rows in ids.split(4)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_percentiles_match_the_sorted_losses(scored, dtype):
    ids, logits = scored
    logits = logits.to(dtype)
    metric = PercentileCrossEntropy(PERCENTILES, shift=True)
    for some_logits, some_ids in zip(logits.split(2), ids.split(2), strict=True):
        metric.update(some_logits, some_ids)
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].double().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    result = metric.compute()
    n = losses.numel()
    assert result["count"] == n > 3000
    estimates = np.array([float(result[f"p{p}"]) for p in PERCENTILES])
    # The reference has float64 losses: give the float32 ones their rounding.
    low = rank_error(losses.sort().values.numpy(), estimates - 2e-6, np.array(PERCENTILES) / 100)
    high = rank_error(losses.sort().values.numpy(), estimates + 2e-6, np.array(PERCENTILES) / 100)
    assert np.minimum(low, high).max() <= max(5e-5, 0.1 / n**0.5)
    assert float(result["mean"]) == pytest.approx(float(losses.mean()), rel=1e-6)


def test_wrong_shift_is_noticed_and_the_right_one_is_not(scored):
    ids, logits = scored
    with pytest.warns(UserWarning, match="not to be shifted"):
        PercentileCrossEntropy().update(logits, ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PercentileCrossEntropy(shift=True).update(logits, ids)
        PercentileCrossEntropy().update(logits[:, :-1], ids[:, 1:])
        PercentileCrossEntropy(shift=True).update(logits.bfloat16(), ids)
