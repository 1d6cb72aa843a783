"""StreamingQuantiles: any numbers, with weights and masks."""

import math

import pytest
import torch

from lightning_pce import StreamingQuantiles
from tests.helpers.summaries import assert_same_result, assert_summarises
from tests.helpers.token_batches import random_losses


def test_streaming_quantiles_of_any_numbers():
    metric = StreamingQuantiles()
    values = torch.linspace(-50, 70, 83)
    metric.update(values[:40].reshape(5, 8))
    metric.update(torch.tensor([-7, 0, 1_000_000_007]))
    metric.update(values[40:].tolist())
    metric.update(-3)
    metric.update(2.5)
    metric.update([4, -4])
    metric.update([])
    extra = torch.tensor([-7, 0, 1_000_000_007, -3, 2.5, 4, -4], dtype=torch.float64)
    assert_summarises(metric.compute(), torch.cat([values.double(), extra]))


def test_streaming_quantiles_take_weights_and_masks():
    values, weights = random_losses() - 3, torch.arange(100) % 4
    weighted, masked = StreamingQuantiles(), StreamingQuantiles()
    weighted.update(values, weights)
    masked.update(values, weights == 2)
    assert_summarises(weighted.compute(), values.repeat_interleave(weights))
    assert_summarises(masked.compute(), values[weights == 2])


def test_python_floats_do_not_depend_on_the_default_dtype():
    usual, under_bfloat16 = StreamingQuantiles(), StreamingQuantiles()
    usual.update([1.001, -2.003])
    torch.set_default_dtype(torch.bfloat16)
    try:
        under_bfloat16.update([1.001, -2.003])
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_result(under_bfloat16.compute(), usual.compute())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("values", {"values": torch.ones(3, dtype=torch.bool)}),
        ("values", {"values": torch.ones(3, dtype=torch.complex64)}),
        ("weights", {"values": torch.ones(3), "weights": torch.ones(2)}),
        ("weights", {"values": torch.ones(3), "weights": torch.tensor([1.0, -1.0, 0.0])}),
        ("weights", {"values": torch.ones(3), "weights": torch.tensor([1.0, math.nan, 0.0])}),
    ],
)
def test_streaming_quantiles_refuse_bad_input_and_keep_what_they_have(name, arguments):
    metric = StreamingQuantiles()
    metric.update(random_losses())
    before = metric.digest.clone()
    with pytest.raises(ValueError, match=f"`{name}`"):
        metric.update(**arguments)
    assert torch.equal(metric.digest, before)
