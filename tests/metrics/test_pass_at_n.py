import math
import warnings
from statistics import mean, stdev

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_pce import ExpectedPassAtN
from lightning_pce.metrics import pass_at_n
from tests.helpers.metric_states import fed
from tests.helpers.ranks import run_function_on_ranks

N = (1, 8, 64, 4096)
# Of answers of thousands of tokens, where p is 0 in any float, to those that are nearly certain.
HARD = [-1e5, -2000.5, -745.2, -100.0, -30.0, -9.0, -1.0, -0.7, -1e-2, -1e-5, -1e-10, -1e-20, 0.0]


def pass_of(log_prob, n):
    """1 - (1 - p)^n with 60 digits."""
    with mpmath.workdps(60):
        return float(1 - (1 - mpmath.exp(mpmath.mpf(log_prob))) ** n)


def by_hand(log_probs, numbers=N):
    """What compute is to give, one answer after the other."""
    results = {f"pass_at_{n}": [pass_of(each, n) for each in log_probs] for n in numbers}
    results["mean_log_prob"] = log_probs
    found = {"count": float(len(log_probs))}
    for key, values in results.items():
        found[key] = mean(values) if values else math.nan
        found[f"{key}_se"] = stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return found


def close(metric, log_probs):
    found, expected = metric.compute(), by_hand(log_probs, metric.n)
    assert set(found) == set(metric.keys) == set(expected)
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in found.values())
    for key, value in found.items():
        scale = max(map(abs, log_probs), default=1.0) if "log_prob" in key else 1.0
        assert value.item() == pytest.approx(expected[key], rel=0, abs=1e-12 * max(scale, 1), nan_ok=True)


def tensor(*log_probs):
    return torch.tensor(log_probs, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------ results


def test_one_answer_of_probability_a_half():
    metric = fed(ExpectedPassAtN((1, 2)), torch.tensor([0.5]).log())
    result = metric.compute()
    assert result["pass_at_1"].item() == pytest.approx(0.5)
    assert result["pass_at_2"].item() == pytest.approx(0.75)
    assert result["mean_log_prob"].item() == pytest.approx(-math.log(2))
    assert result["pass_at_1_se"].isnan()
    assert result["count"] == 1


@pytest.mark.parametrize("log_prob", HARD)
@pytest.mark.parametrize("n", [*N, 10**9])
def test_each_answer_is_exact_however_improbable(log_prob, n):
    found = fed(ExpectedPassAtN([n]), tensor(log_prob)).compute()[f"pass_at_{n}"].item()
    assert found == pytest.approx(pass_of(log_prob, n), rel=1e-12 if log_prob > -700 else 0, abs=1e-300)


@given(
    batches=st.lists(st.lists(st.floats(-1e5, 0) | st.floats(-20, 0) | st.sampled_from(HARD)), min_size=1),
)
def test_means_and_standard_errors_of_any_split_are_those_of_all_answers(batches):
    metric = fed(ExpectedPassAtN(N), *(tensor(*batch) for batch in batches))
    close(metric, [each for batch in batches for each in batch])


def test_the_standard_error_of_nearly_equal_answers_is_no_difference_of_large_sums():
    values = [-5e4 - 1e-6 * (i % 7) for i in range(1000)]
    metric = fed(ExpectedPassAtN((1,)), *tensor(*values).split(9))
    expected = stdev(values) / 1000**0.5  # 6e-8, where squares are 2.5e9
    assert metric.compute()["mean_log_prob_se"].item() == pytest.approx(expected, rel=1e-3)
    equal = fed(ExpectedPassAtN((8,)), *(tensor(-1.7, -1.7, -1.7) for _ in range(50)))
    assert equal.compute()["pass_at_8_se"] < 1e-15
    assert equal.compute()["pass_at_8"].item() == pytest.approx(pass_of(-1.7, 8), abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_log_probabilities_of_any_floating_dtype_are_summed_in_float64(dtype):
    log_prob = (-torch.arange(300).to(dtype) / 50).reshape(3, 100)
    close(fed(ExpectedPassAtN(N), log_prob), log_prob.double().flatten().tolist())


def test_the_standard_error_is_that_of_other_draws():
    random = torch.Generator().manual_seed(0)
    draws = -8 * torch.rand(400, 50, generator=random, dtype=torch.float64)
    found = [fed(ExpectedPassAtN((8,)), each).compute() for each in draws]
    spread = torch.stack([each["pass_at_8"] for each in found]).std().item()
    assert mean(each["pass_at_8_se"].item() for each in found) == pytest.approx(spread, rel=0.1)


# -------------------------------------------------------------------------------------- answers of tokens

LOSSES = torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.5, 0.25, 0.125, 3.0], [7.0, 7.0, 7.0, 7.0]])
MASK = torch.tensor([[False, True, True, True], [True, True, True, False], [False] * 4])
FORMS = {
    "rows": ({}, [-15, -3.875, -28]),
    "rows, masked": ({"mask": MASK}, [-14, -0.875]),
    "ids from 0 in each row": (
        {"answer": torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0], [5, 5, 5, 5]])},
        [-3, -12, -0.625, -3.25, -28],
    ),
    "an id that returns": ({"answer": torch.tensor([[3, 9, 3, 3]] * 3)}, [-13, -2, -3.625, -0.25, -21, -7]),
    "tokens of none": ({"answer": torch.tensor([[0, -1, 0, -9]] * 3)}, [-5, -0.625, -14]),
    "ids and a mask": ({"answer": torch.tensor([[0, 0, 1, 1]] * 3), "mask": MASK}, [-2, -12, -0.75, -0.125]),
    "one id a row": ({"answer": [4, -1, 4]}, [-15, -28]),
    "int32 ids": ({"answer": torch.tensor([[0, 0, 1, 1]] * 3).int()}, [-3, -12, -0.75, -3.125, -14, -14]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_added_up_by_answer(form):
    arguments, expected = FORMS[form]
    close(fed(ExpectedPassAtN(N), {"losses": LOSSES, **arguments}), expected)


def test_a_flat_row_of_several_answers_and_of_one():
    losses = torch.tensor([1.0, 2.0, 3.0])
    close(fed(ExpectedPassAtN(N), {"losses": losses, "answer": torch.tensor([2, 2, 0])}), [-3, -3])
    close(fed(ExpectedPassAtN(N), {"losses": losses, "answer": 0}), [-6])


def test_an_answer_ends_with_its_batch():
    one = {"losses": LOSSES[:1], "answer": torch.zeros(1, 4, dtype=torch.long)}
    close(fed(ExpectedPassAtN(N), one, one), [-15, -15])


def test_a_masked_answer_is_none():
    close(
        fed(ExpectedPassAtN(N), {"log_prob": tensor(-1, 5, -2), "mask": torch.tensor([True, False, True])}),
        [-1, -2],
    )


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0)])
def test_losses_of_nothing_are_no_answers(shape):
    ids = torch.zeros(shape, dtype=torch.long)
    close(fed(ExpectedPassAtN(N), {"losses": torch.zeros(shape), "answer": ids}), [])


def test_token_losses_are_added_up_in_float64():
    losses = torch.full((2, 4000), 1e-4)
    metric = fed(ExpectedPassAtN((1,)), {"losses": losses})
    assert metric.compute()["mean_log_prob"].item() == pytest.approx(-4000 * losses[0, 0].item(), rel=1e-12)


# ------------------------------------------------------------------------------------------------- no numbers


def test_an_answer_of_probability_0_is_never_sampled():
    metric = fed(ExpectedPassAtN(N), tensor(-math.inf, -1.0), {"losses": torch.tensor([[1.0, math.inf]])})
    result, expected = metric.compute(), by_hand([-1.0])
    assert result["count"] == 3
    assert result["mean_log_prob"] == -math.inf
    assert result["mean_log_prob_se"].isnan()
    for n in N:
        assert result[f"pass_at_{n}"].item() == pytest.approx(expected[f"pass_at_{n}"] / 3)
    assert fed(ExpectedPassAtN(N), tensor(-1e300, -1e301)).compute()["mean_log_prob"] == -math.inf


def test_nan_is_left_out_and_said_once():
    metric = fed(ExpectedPassAtN(N), tensor(-1, math.nan, -2), {"losses": torch.tensor([[1.0, math.nan]])})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        close(metric, [-1, -2])
        metric.compute()
    (message,) = [str(warning.message) for warning in caught]
    assert "ExpectedPassAtN: 2 answers had a log-probability that is NaN" in message


def test_where_looking_would_make_the_host_wait_an_answer_above_0_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(pass_at_n, "may_look", lambda _: False)  # as on an accelerator
    metric = fed(ExpectedPassAtN(N), tensor(-1, 0.5, math.inf, -2))
    with pytest.warns(UserWarning, match="2 answers had a log-probability above 0"):
        close(metric, [-1, -2])


def test_rounding_above_0_is_certainty():
    close(fed(ExpectedPassAtN(N), tensor(1e-5, -1e-9)), [0.0, -1e-9])


# ------------------------------------------------------------------------------------------------- refused

IDS = torch.zeros(3, 4, dtype=torch.long)
BAD = {
    "nothing": ("log_prob", {}),
    "both": ("losses", {"log_prob": tensor(-1), "losses": LOSSES}),
    "ids of numbers": ("answer", {"log_prob": tensor(-1), "answer": IDS}),
    "losses as log-probabilities": ("log_prob", {"log_prob": LOSSES}),
    "log-probabilities as losses": ("losses", {"losses": -LOSSES}),
    "integers": ("log_prob", {"log_prob": IDS}),
    "a list": ("log_prob", {"log_prob": [-1.0]}),
    "integer losses": ("losses", {"losses": IDS}),
    "one loss": ("losses", {"losses": torch.tensor(1.0)}),
    "flat losses": ("losses", {"losses": LOSSES.flatten()}),
    "a mask as ids": ("answer", {"losses": LOSSES, "answer": MASK}),
    "ids of another shape": ("answer", {"losses": LOSSES, "answer": IDS[:, :3]}),
    "float ids": ("answer", {"losses": LOSSES, "answer": IDS.float()}),
    "mask of another shape": ("mask", {"losses": LOSSES, "mask": MASK[:1]}),
    "mask of numbers": ("mask", {"log_prob": tensor(-1), "mask": tensor(1)}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name_and_leaves_the_state_as_it_was(case):
    name, arguments = BAD[case]
    metric = fed(ExpectedPassAtN(N), tensor(-1, -2))
    for call in (metric.update, metric):
        with pytest.raises(ValueError, match=rf"`{name}`") as raised:
            call(**arguments)
        assert "\n" not in str(raised.value)
    close(metric, [-1, -2])


@pytest.mark.parametrize("n", [8, (), (0, 1), (1, 1), (1.5,), "8", (True,), None, (-3,)])
def test_impossible_numbers_of_samples_are_refused(n):
    with pytest.raises(ValueError, match="`n`"):
        ExpectedPassAtN(n)


# ---------------------------------------------------------------------------------------------- views, ranks


def test_views_for_a_logger_are_the_entries_of_the_result():
    metric = fed(ExpectedPassAtN((1, 8)), tensor(-1, -2))
    names = "pass_at_1 pass_at_1_se pass_at_8 pass_at_8_se mean_log_prob mean_log_prob_se count"
    assert metric.keys == tuple(names.split())
    views = {key: metric.view(key) for key in metric.keys}
    assert {key: view.compute() for key, view in views.items()} == metric.compute()
    with pytest.raises(ValueError, match="pass_at_1, pass_at_1_se"):
        metric.view("pass_at_64")


def unequal(rank, _):
    """Ranks with 3, 40 and no answers; what each computes, and what only rank 1 knows."""
    seen = [tensor(-1, -2, -3000), tensor(*(-i / 4 for i in range(40))), tensor()]
    metric = fed(ExpectedPassAtN(N), *(each[None] for each in seen[rank].split(7) if len(each)))
    return metric.compute()


def test_ranks_of_unequal_numbers_of_answers_and_of_none():
    ranks = run_function_on_ranks(unequal, 3)
    whole = fed(ExpectedPassAtN(N), tensor(-1, -2, -3000, *(-i / 4 for i in range(40))))
    for found in ranks:
        assert found.keys() == whole.compute().keys()
        for key, value in whole.compute().items():
            assert found[key].item() == pytest.approx(value.item(), rel=1e-12, abs=1e-12)
