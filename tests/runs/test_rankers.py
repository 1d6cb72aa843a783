"""The three rankers beside scikit-learn, SciPy and brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import LinearSVC

from lightning_pce._errors import UserError
from lightning_pce.runs._rank_correlation import mean_ranks, spearman, z_scored
from lightning_pce.runs._rank_svm import factor_of, kernel_matrix, rank_svm
from lightning_pce.runs._rankers import Fit
from lightning_pce.runs._sparse import Triples
from lightning_pce.runs.ranking import ProxyTable, fit_ranker
from tests.helpers.proxy_populations import changed, population


def rows(number, columns, seed=0, tasks=4):
    """z-scores, truth with ties, and tasks."""
    random = np.random.default_rng(seed)
    task = np.arange(number) % tasks
    return z_scored(random.normal(size=(number, columns)), task), random.normal(size=number).round(1), task


@pytest.mark.parametrize(
    ("number", "columns", "cost"), [(96, 80, 1.0), (40, 3, 1.0), (24, 60, 0.01), (40, 3, 30.0), (24, 8, 30.0)]
)
def test_the_linear_rank_svm_is_scikit_learns_on_symmetrised_pairs(number, columns, cost):
    x, truth, task = rows(number, columns)
    better = (task[:, None] == task) & (truth[:, None] > truth)
    ours = x @ (x.T @ rank_svm(x, truth, task, cost))
    first, second = np.nonzero(better)
    pairs = np.concatenate([x[first] - x[second], x[second] - x[first]])
    signs = np.repeat([1, -1], len(first))
    oracle = LinearSVC(
        C=cost, loss="squared_hinge", fit_intercept=False, dual=False, tol=1e-10, max_iter=10_000
    ).fit(pairs, signs)
    np.testing.assert_allclose(ours, x @ oracle.coef_[0], atol=2e-5)


def test_with_any_kernel_it_is_where_the_gradient_is_0():
    x, truth, task = rows(48, 5)
    gram = kernel_matrix("rbf", x, x)
    np.testing.assert_allclose(gram, rbf_kernel(x, gamma=1 / 5), atol=1e-12)
    better = (task[:, None] == task) & (truth[:, None] > truth)
    found = rank_svm(factor_of("rbf", x), truth, task)
    scores = gram @ found
    slack = np.where(better, np.maximum(0, 1 - (scores[:, None] - scores)), 0)
    # d/df of |f|^2 / 2 + sum over both orders of slack^2: the coefficients are what pushes each row.
    np.testing.assert_allclose(found, 4 * (slack.sum(1) - slack.sum(0)), atol=1e-8)
    assert (found != 0).any()


def test_rows_without_a_pair_have_no_say():
    x, truth, task = rows(30, 6)
    truth[task == 2] = 0.5
    truth[3] = np.nan
    found = Fit("rank_svm", "rbf", x, task).coefficients(truth)
    without = (task == 2) | np.isnan(truth)
    assert (found[without] == 0).all()
    assert (np.abs(found[~without]) > 1e-3).all()


finite = st.floats(-1e3, 1e3, allow_nan=False).map(lambda value: round(value, 1))


@settings(max_examples=30)
@given(st.lists(st.tuples(finite, finite), min_size=3, max_size=12))
def test_spearman_is_scipys_where_there_is_one(pairs):
    x, y = map(np.array, zip(*pairs, strict=True))
    found = float(spearman(x, y)[0])
    if len(set(y)) == 1:
        assert np.isnan(found)
    elif len(set(x)) == 1:
        assert found == 0
    else:
        np.testing.assert_allclose(found, spearmanr(x, y)[0], atol=1e-9)


def test_spearman_of_subsets_is_that_of_their_models():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 20)).round(1)
    x[4] = np.inf
    chosen = (random.random((30, 20)) < 0.5).astype(float)
    for row, found in zip(chosen, spearman(x, y, chosen), strict=True):
        own = row == 1
        np.testing.assert_allclose(found, spearmanr(mean_ranks(x[own]), y[own])[0], atol=1e-9)


def by_brute_force(x, y):
    """The three columns with the least squares, and what they leave."""
    best = (np.inf, None)
    for places in itertools.combinations(range(x.shape[1]), 3):
        weights = np.linalg.lstsq(x[:, places], y, rcond=None)[0]
        best = min(best, (float(((y - x[:, places] @ weights) ** 2).sum()), places))
    return best


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([3, 5, 9]))
def test_the_best_triple_is_that_of_all_least_squares(seed, columns):
    random = np.random.default_rng(seed)
    x = random.normal(size=(20, 3)) @ random.normal(size=(3, columns)) + random.normal(size=(20, columns))
    y = random.normal(size=20)
    places, weights = Triples(x.T @ x).best(x.T @ y)
    left, expected = by_brute_force(x, y)
    assert tuple(places) == expected
    np.testing.assert_allclose(((y - x[:, places] @ weights) ** 2).sum(), left, rtol=1e-6)


def test_collinear_and_constant_columns_are_no_triple():
    random = np.random.default_rng(0)
    a, b, c = random.normal(size=(3, 30))
    y = a - 2 * b + 3 * c
    x = np.stack([a, a, b, a + b, 0 * a, 2 * a, c], axis=1)
    places, weights = Triples(x.T @ x).best(x.T @ y)
    assert 6 in places
    np.testing.assert_allclose(x[:, places] @ weights, y, atol=1e-9)
    for few in (x[:, :2], x[:, :3], x[:, 4:5], np.stack([a, b, a + b], 1)):
        places, weights = Triples(few.T @ few).best(few.T @ y)
        fitted = few @ np.linalg.lstsq(few, y, rcond=None)[0]
        np.testing.assert_allclose(few[:, places] @ weights, fitted, atol=1e-9)


def test_all_triples_of_80_are_looked_at():
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 80))
    y = x[:, [11, 47, 79]] @ [1.0, -2.0, 0.5]
    places, weights = Triples(x.T @ x).best(x.T @ y)
    assert places.tolist() == [11, 47, 79]
    np.testing.assert_allclose(weights, [1.0, -2.0, 0.5])


def test_single_is_the_proxy_of_the_highest_mean_correlation():
    table = population(12, 4, proxies=10, noise=2.0)
    ranker = fit_ranker(table, "single")
    task = np.array(table.tasks)
    means = [
        np.mean([spearmanr(column[task == each], table.truth[task == each])[0] for each in set(task)])
        for column in table.values.T
    ]
    best = int(np.argmax(np.abs(means)))
    assert ranker.names == (table.names[best],)
    assert ranker.weights == (np.sign(means[best]),)


def test_a_task_of_few_models_counts_as_much_as_one_of_many():
    tasks = ["few"] * 5 + ["many"] * 20
    truth = np.concatenate([np.arange(5.0), np.arange(20.0)])
    first = np.concatenate(
        [np.arange(5.0), np.tile([1.0, -1.0], 10)]
    )  # all of one task, nothing of the other
    second = np.concatenate([[0, 1, 0, 1, 0], np.arange(20.0) % 14])
    models = [f"m{row}" for row in range(25)]
    table = ProxyTable(models, tasks, ["first", "second"], np.stack([first, second], 1), truth=truth)
    rho = [[spearmanr(x[:5], truth[:5])[0], spearmanr(x[5:], truth[5:])[0]] for x in (first, second)]
    assert np.mean(rho[0]) > np.mean(rho[1]) + 0.2
    assert np.dot(rho[0], [5, 20]) < np.dot(rho[1], [5, 20])
    assert fit_ranker(table, "single").names == ("first",)


def test_z_scores_are_within_a_task_and_0_where_all_are_the_same():
    x = np.array([[1.0, 5.0, 1e200], [3.0, 5.0, -1e200], [7.0, 1e-9, 0.1 + 0.2], [7.0, 3e-9, 0.3]])
    expected = [[-1, 0, 1], [1, 0, -1], [0, -1, 0], [0, 1, 0]]
    np.testing.assert_allclose(z_scored(x, np.array([0, 0, 1, 1])), expected, atol=1e-12)


def test_a_linear_rank_svm_is_its_weights_and_another_table_is_scored_by_names():
    table = population()
    ranker = fit_ranker(table)
    task = np.unique(table.tasks, return_inverse=True)[1]
    scores = ranker.score(table)
    np.testing.assert_allclose(z_scored(table.values, task) @ ranker.weights, scores)
    turned = changed(
        table,
        names=table.names[::-1],
        values=3 * table.values[:, ::-1] + 5,  # z-scores know no unit
        errors=table.errors[:, ::-1],
    )
    np.testing.assert_allclose(ranker.score(turned), scores)


@pytest.mark.parametrize(
    ("method", "kernel"), [("rank_svm", "linear"), ("rank_svm", "rbf"), ("sparse", "linear")]
)
def test_new_models_are_ordered_where_proxies_carry_the_truth(method, kernel):
    ranker = fit_ranker(population(seed=1), method, kernel)
    other = population(seed=2)
    scores, task = ranker.score(other), np.array(other.tasks)
    assert np.mean([spearmanr(scores[task == t], other.truth[task == t])[0] for t in set(task)]) > 0.8
    assert len(ranker.names) == (3 if method == "sparse" else 8)


def test_what_a_ranker_cannot_score_is_refused():
    table = population()
    ranker = fit_ranker(table, "single")
    [needed] = ranker.names
    place = table.names.index(needed)
    with pytest.raises(UserError, match=f"no proxy '{needed}'"):
        ranker.score(changed(table, names=[f"q{name}" for name in table.names]))
    values = table.values.copy()
    values[7, place] = np.inf
    with pytest.raises(UserError, match=f"{needed} of 'm1' on 't2' is inf"):
        ranker.score(changed(table, values=values))
    with pytest.raises(UserError, match="'t0' has one model"):
        ranker.score(table.rows(np.array([0])))


@pytest.mark.parametrize("method", ["single", "sparse", "rank_svm"])
def test_proxies_that_are_the_same_of_all_models_order_nothing(method):
    table = population(6, 3)
    with pytest.raises(UserError, match="Each proxy is the same for all models of a task"):
        fit_ranker(changed(table, values=np.ones_like(table.values)), method)


def test_what_cannot_be_fitted_is_refused():
    table = population()
    with pytest.raises(UserError, match="no task with the truth of two models that differ"):
        fit_ranker(changed(table, truth=np.full(len(table), 0.5)))
    with pytest.raises(UserError, match="`method` to be one of 'rank_svm', 'sparse', 'single' but got 'svm'"):
        fit_ranker(table, "svm")
    with pytest.raises(UserError, match="`kernel` to be one of"):
        fit_ranker(table, kernel="poly")
    values = table.values.copy()
    values[3, 2] = np.inf
    ranker = fit_ranker(changed(table, values=values))
    assert "p2" not in ranker.names
    assert "such as that of 'm0' on 't3': 'p2'" in ranker.notes[0]
    with pytest.raises(UserError, match="No proxy is finite in all rows"):
        fit_ranker(changed(table, values=np.full_like(values, np.inf)))
