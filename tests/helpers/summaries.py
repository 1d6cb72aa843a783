"""What a metric or a logger is to give for these losses, by torch.quantile and by hand."""

import torch

from tests.helpers.distributions import exact_quantile, exact_trimmed_mean

PERCENTILES = (5, 25, 50, 75, 95, 99)  # the default of every metric
KEYS = [
    "mean",
    *(f"p{p}" for p in PERCENTILES),
    "trimmed_mean",
    "finite_mean",
    "count",
    "nonfinite",
    "invalid",
]


def assert_summarises(result, values, rtol=1e-12):
    """The result of a metric is that of all these finite values."""
    values = values.double().reshape(-1)
    none = torch.tensor(0.0).double()
    expected = {
        "mean": values.mean(),
        **dict(zip(KEYS[1:7], exact_quantile(values, [p / 100 for p in PERCENTILES]), strict=True)),
        "trimmed_mean": torch.tensor(exact_trimmed_mean(values, 0.05, 0.95), dtype=torch.float64),
        "finite_mean": values.mean(),
        "count": torch.tensor(len(values)).double(),
        "nonfinite": none,
        "invalid": none,
    }
    torch.testing.assert_close(dict(result), expected, rtol=rtol, atol=1e-12)


def assert_same_result(actual, expected, rtol=0.0):
    """Two results with the same keys in the same order; to the bit unless a tolerance is given."""
    assert list(actual) == list(expected)
    torch.testing.assert_close(dict(actual), dict(expected), rtol=rtol, atol=0, equal_nan=True)


def of_group(result, name):
    """The entries of one group under the keys of a metric without groups."""
    return {key: result[f"{name}_{key}"] for key in KEYS}


def overall(result):
    """The entries of all groups together."""
    return {key: result[key] for key in KEYS}


def expected_log(losses, prefix, percentiles=PERCENTILES):
    """What is to be logged for these losses: names and floats."""
    values = {f"{prefix}_ce_mean": float(losses.double().mean())}
    for p in percentiles:
        values[f"{prefix}_ce_p{p:g}".replace(".", "_")] = float(exact_quantile(losses, p / 100))
    values[f"{prefix}_ce_trimmed_mean"] = exact_trimmed_mean(losses, 0.05, 0.95)
    return values
