"""Linear evaluation against solvers and loops that know nothing of it; draws and folds of the labels."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from stepclr.errors import StepclrError
from stepclr.evaluation import linear, solver
from stepclr.evaluation.linear import (
    STRENGTH_AT_1_LABEL,
    STRENGTHS,
    choose_strength,
    fold_shares,
    linear_evaluation,
    principal_axes,
    standardize,
)
from stepclr.evaluation.solver import Layers, solve
from stepclr.evaluation.splits import check_draws, folds, label_splits, parse_labels_per_class

Array = NDArray[np.float64]


def clouds(n: int, features: int, classes: int, spread: float = 1.5, seed: int = 0) -> tuple[Array, NDArray[np.int64]]:
    """n points around one center a class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    points = generator.normal(size=(classes, features))[labels] + spread * generator.normal(size=(n, features))
    return points.astype(np.float32), labels


def naive_objective(x: Array, labels: NDArray[np.int64], strength: float, weight: Array, bias: Array) -> float:
    """mean cross-entropy + lambda/2 |W|^2, as it is written, in loops."""
    total = 0.0
    for row, label in zip(x, labels, strict=True):
        logits = [sum(row[j] * weight[j, c] for j in range(len(row))) + bias[c] for c in range(len(bias))]
        total += math.log(sum(math.exp(value) for value in logits)) - logits[label]
    return total / len(x) + strength / 2 * sum(value**2 for value in weight.ravel())


def independent_optimum(x: Array, labels: NDArray[np.int64], strength: float) -> tuple[Array, Array]:
    """W, b by another method (trust region with exact Hessian) in the features' own coordinates."""
    classes, (n, width) = int(labels.max()) + 1, x.shape
    ones = np.hstack([x, np.ones((n, 1))])
    penalty = np.repeat([strength] * width + [0.0], classes)

    def shares(flat: Array) -> Array:
        logits = ones @ flat.reshape(-1, classes)
        return np.asarray(np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)))

    def value(flat: Array) -> float:
        return float(-np.log(shares(flat)[np.arange(n), labels]).mean() + (penalty * flat**2).sum() / 2)

    def gradient(flat: Array) -> Array:
        return np.asarray((ones.T @ (shares(flat) - np.eye(classes)[labels]) / n).ravel() + penalty * flat)

    def hessian(flat: Array) -> Array:
        p = shares(flat)
        curvature = p[:, :, None] * np.eye(classes) - p[:, :, None] * p[:, None, :]
        blocks = np.einsum("ni,nj,ncd->icjd", ones, ones, curvature) / n
        return np.asarray(blocks.reshape(len(flat), -1) + np.diag(penalty))

    start = np.zeros((width + 1) * classes)
    found = minimize(value, start, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-10})
    weight = found.x.reshape(-1, classes)
    return weight[:-1], weight[-1]


def clouds_of(labels: np.ndarray, features: int = 40, seed: int = 0) -> np.ndarray:
    """Rows around the center of their class, which is the same for every seed."""
    centers = np.random.default_rng(9).normal(size=(int(labels.max()) + 1, features))
    noise = np.random.default_rng(seed).normal(size=(len(labels), features))
    rows: np.ndarray = (centers[labels] + 0.7 * noise).astype(np.float32)
    return rows


def one_problem(n: int) -> Array:
    return np.full((n, 1), 1 / n)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("n", "features"), [(12, 20), (40, 5)], ids=["more features", "more rows"])
@pytest.mark.parametrize("strength", [1e-2, 1.0, 1e3])
def test_the_layer_is_the_optimum_of_the_stated_objective(n: int, features: int, classes: int, strength: float) -> None:
    h, labels = clouds(n, features, classes)
    x, _ = standardize(h, h)
    along, basis = principal_axes(x)
    layer = solve(along, labels, one_problem(n), strength)
    weight, bias = basis @ layer.weight[0].T, layer.bias[0]
    best_weight, best_bias = independent_optimum(x, labels, strength)
    ours = naive_objective(x, labels, strength, weight, bias)
    best = naive_objective(x, labels, strength, best_weight, best_bias)
    assert best - 1e-9 <= ours <= best + 1e-7
    np.testing.assert_allclose(weight, best_weight, atol=2e-3 * np.abs(best_weight).max())
    # Only the differences of the biases are determined.
    np.testing.assert_allclose(bias - bias.mean(), best_bias - best_bias.mean(), atol=1e-3)


def test_scikit_learn_finds_the_same_layer() -> None:
    h, labels = clouds(60, 8, 4)
    x, x_test = standardize(h, clouds(30, 8, 4, seed=1)[0])
    along, basis = principal_axes(x)
    logits = solve(along, labels, one_problem(60), 0.03).logits(x_test @ basis)[:, 0]
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    theirs = LogisticRegression(C=1 / (0.03 * 60), tol=1e-8, max_iter=1000).fit(x, labels)
    np.testing.assert_allclose(shares, theirs.predict_proba(x_test), atol=1e-4)


def test_problems_solved_together_are_those_solved_alone() -> None:
    h, labels = clouds(30, 6, 3)
    x, _ = principal_axes(standardize(h, h)[0])
    together = solve(x, labels, fold_shares(labels, 0), 0.1)
    for part, (rows, _) in enumerate(folds(labels, 5, 0)):
        alone = solve(x[rows], labels[rows], one_problem(len(rows)), 0.1)
        np.testing.assert_allclose(together.weight[part], alone.weight[0], atol=1e-3)


@pytest.mark.parametrize("spread", [1.5, 3.0, 30.0])
def test_lambda_is_the_best_of_all_45_by_brute_force(spread: float) -> None:
    h, labels = clouds(45, 20, 3, spread)
    x, _ = standardize(h, h)
    losses = []
    for strength in np.logspace(5, -6, 45):
        loss = 0.0
        for rows, held_out in folds(labels, 5, 7):
            model = LogisticRegression(C=1 / (strength * len(rows)), tol=1e-7, max_iter=100_000)
            model.fit(x[rows], labels[rows])
            loss -= np.log(model.predict_proba(x[held_out])[np.arange(len(held_out)), labels[held_out]]).sum()
        losses.append(loss)
    chosen = linear_evaluation(h, labels, h, seed=7).chosen
    assert chosen == STRENGTHS[np.argmin(losses)]


@pytest.mark.parametrize("spread", [1.5, 2.0, 5.0])
def test_a_loose_walk_chooses_what_a_strict_one_does(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: dict[float, list[float]] = {}
    for walk in (linear.WALK, (1.0, 0.0)):
        monkeypatch.setattr(linear, "WALK", walk)
        for seed in range(4):
            h, labels = clouds(60, 30, 4, spread, seed)
            chosen.setdefault(walk[0], []).append(linear_evaluation(h, labels, h[:1], seed).chosen)
    assert chosen[1.0] == chosen[100.0]


def test_the_grid_is_45_values_from_strong_to_weak() -> None:
    assert len(STRENGTHS) == 45
    assert STRENGTHS[[0, -1]] == pytest.approx([1e5, 1e-6])
    assert all(stronger > weaker for stronger, weaker in pairwise(STRENGTHS))


@pytest.mark.parametrize("n", [20, 100])
def test_where_classes_are_well_apart_the_smallest_lambda_is_chosen_and_hardly_matters(n: int) -> None:
    h, labels = clouds(n, 64, 10, 0.5)
    x, _ = standardize(h, h)
    assert choose_strength(x, labels, seed=0) == STRENGTHS[-1]
    for strength in (1e-3, 1e-6):
        layer = solve(x, labels, np.full((n, 1), 1 / n), strength)
        assert (layer.logits(x)[:, 0].argmax(1) == labels).all()


def test_a_tie_goes_to_the_larger_lambda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "losses", lambda layers, x, _: np.ones((len(x), len(layers.bias))))
    h, labels = clouds(12, 4, 2)
    assert choose_strength(principal_axes(standardize(h, h)[0])[0], labels, seed=0) == 1e5


def test_a_collapsed_encoder_is_scored_like_any_other() -> None:
    fit = linear_evaluation(np.ones((12, 5), np.float32), np.arange(12) % 3, np.ones((4, 5), np.float32), seed=0)
    assert len(set(fit.predicted.tolist())) == 1


def test_black_pixels_have_no_direction_and_do_no_harm() -> None:
    h, labels = clouds(12, 5, 3)
    h[0] = 0
    assert np.isfinite(standardize(h, np.zeros((2, 5), np.float32))[1]).all()
    assert linear_evaluation(h, labels, h, seed=0).predicted.shape == (12,)


def test_one_label_a_class_takes_the_stated_lambda() -> None:
    h, labels = clouds(3, 5, 3)
    assert linear_evaluation(h, labels, h, seed=0).chosen == STRENGTH_AT_1_LABEL == linear.SETTINGS["l2_at_1_label"]


def test_unbalanced_labels_do_not_leave_the_common_class_alone() -> None:
    """Of the rare classes nothing can be held out; a lambda so large that only the bias counts would name one class."""
    for counts in ([30, *[1] * 9], [2, *[1] * 9], [3, 3, *[1] * 8]):
        rows, truth = clouds_of(np.repeat(np.arange(10), counts)), np.repeat(np.arange(10), 20)
        fit = linear_evaluation(rows, np.repeat(np.arange(10), counts), clouds_of(truth, seed=1), seed=0)
        assert len(set(fit.predicted.tolist())) == 10
        assert fit.chosen < 0.01


@pytest.mark.parametrize("seed", [1, 3])
def test_the_search_goes_on_until_the_loss_has_fallen(seed: int) -> None:
    """Two wide axes of noise make the held-out loss rise at first; the narrow one that tells the classes comes last."""

    def rows(labels: np.ndarray, seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(size=(3, len(labels)))
        return np.stack([3 * noise[0], 3 * noise[1], 0.3 * (2 * labels - 1) + 0.05 * noise[2]], 1).astype(np.float32)

    labels, truth = np.arange(20) % 2, np.arange(200) % 2
    fit = linear_evaluation(rows(labels, seed), labels, rows(truth, 100 + seed), seed=0)
    assert fit.chosen < 1e-3
    assert (fit.predicted == truth).mean() > 0.95


@pytest.mark.parametrize("classes", [2, 300])
def test_the_strongest_lambda_takes_the_step_that_the_gradient_at_0_says(classes: int) -> None:
    labels = np.repeat(np.arange(classes), 3)
    x, _ = standardize(clouds_of(labels, 8), clouds_of(labels, 8))
    x, _ = principal_axes(x)
    weight = solve(x, labels, one_problem(len(x)), 1e5).weight[0].T
    slope = x.T @ (1 / classes - np.eye(classes)[labels]) / len(x)
    np.testing.assert_allclose(weight, -slope / 1e5, atol=1e-3 * np.abs(slope).max() / 1e5)


def test_rows_become_unit_then_centered_then_divided_by_one_scalar() -> None:
    h, _ = clouds(20, 4, 2)
    test = clouds(9, 4, 2, seed=1)[0]
    x, x_test = standardize(h, test)
    unit = [row / math.sqrt(sum(value**2 for value in row)) for row in h.astype(np.float64)]
    mean = sum(unit) / 20
    scale = math.sqrt(sum(value**2 for row in unit for value in row - mean) / (20 * 4))
    np.testing.assert_allclose(x, [(row - mean) / scale for row in unit])
    np.testing.assert_allclose(x_test[3], (test[3] / np.linalg.norm(test[3].astype(np.float64)) - mean) / scale)
    np.testing.assert_allclose(standardize(1000 * h, 0.001 * test)[1], x_test, rtol=1e-5)


def test_a_test_row_is_predicted_the_same_in_any_company() -> None:
    h, labels = clouds(30, 6, 3)
    test = clouds(40, 6, 3, seed=1)[0]
    together = linear_evaluation(h, labels, test, seed=0).predicted
    alone = [int(linear_evaluation(h, labels, row[None], seed=0).predicted[0]) for row in test[:5]]
    assert together[:5].tolist() == alone


def test_a_rotation_of_the_features_changes_no_prediction() -> None:
    h, labels = clouds(30, 6, 3)
    test = clouds(200, 6, 3, seed=1)[0]
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0].astype(np.float32)
    turned = linear_evaluation(h @ rotation, labels, test @ rotation, seed=0)
    assert (turned.predicted == linear_evaluation(h, labels, test, seed=0).predicted).mean() > 0.99


def test_not_converging_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object, **options: object) -> object:
        return minimize(*args, **options | {"options": {"maxiter": 1}})

    monkeypatch.setattr(solver, "minimize", stopped)
    h, labels = clouds(30, 6, 3)
    with pytest.raises(RuntimeError, match="did not converge at lambda"):
        linear_evaluation(h, labels, h, seed=0)


def test_where_float32_does_not_converge_float64_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    h, labels = clouds(60, 30, 4, 5.0)
    monkeypatch.setattr(linear, "COARSE", np.inf)
    without_float32 = linear_evaluation(h, labels, h, seed=0)
    stopped = []

    def fails_in_float32(x: Array, *arguments: Any) -> Layers:
        if x.dtype == np.float32:
            stopped.append(len(x))
            raise RuntimeError("did not converge")
        return solve(x, *arguments)

    monkeypatch.setattr(linear, "COARSE", 30.0)
    monkeypatch.setattr(linear, "solve", fails_in_float32)
    with_it = linear_evaluation(h, labels, h, seed=0)
    assert stopped
    assert with_it.chosen == without_float32.chosen
    np.testing.assert_array_equal(with_it.ranked, without_float32.ranked)


@pytest.mark.parametrize("seed", range(3))
def test_the_hardest_corners_of_the_grid_converge(seed: int) -> None:
    """Separable, duplicated, high-dimensional rows at the weakest lambda, where the optimum lies far out."""
    h, labels = clouds(24, 300, 4, spread=0.1, seed=seed)
    h[12:] = h[:12]
    x, _ = principal_axes(standardize(h, h)[0])
    layer = None
    for strength in STRENGTHS:
        layer = solve(x, labels, fold_shares(labels, seed), strength, layer)


LABELS = np.array([0] * 7 + [1] * 9 + [2] * 12 + [0] * 5)
CLASSES = ["ant", "bee", "cat"]


def rows_of(**changed: int) -> list[list[int]]:
    given = {"budget": 4, "count": 3, "seed": 0} | changed
    return [
        draw.indices.tolist()
        for draw in label_splits(LABELS, CLASSES, [given["budget"]], given["count"], given["seed"])
    ]


def test_a_draw_has_so_many_of_every_class_each_once() -> None:
    for draw in label_splits(LABELS, CLASSES, [1, 4, 9], 3, 0):
        assert np.bincount(LABELS[draw.indices]).tolist() == [draw.labels_per_class] * 3
        assert len(set(draw.indices.tolist())) == len(draw.indices)


def test_draws_depend_on_seed_budget_and_number_and_nothing_else() -> None:
    assert rows_of() == rows_of()
    assert rows_of(count=2) == rows_of()[:2]
    several = label_splits(LABELS, CLASSES, [1, 4], 3, 0)
    assert [draw.indices.tolist() for draw in several if draw.labels_per_class == 4] == rows_of()
    drawn = rows_of() + rows_of(seed=1) + rows_of(budget=5)
    assert len({tuple(rows) for rows in drawn}) == len(drawn)
    seeds = [draw.seed for seed in (0, 1) for draw in label_splits(LABELS, CLASSES, [1, 4, "all"], 3, seed)]
    assert len(set(seeds)) == len(seeds)


def test_all_is_one_draw_of_everything() -> None:
    draws = label_splits(LABELS, CLASSES, ["all", 2], 3, 0)
    assert [(draw.labels_per_class, draw.number) for draw in draws] == [("all", 0), (2, 0), (2, 1), (2, 2)]
    assert draws[0].indices.tolist() == list(range(len(LABELS)))


def test_more_draws_need_something_to_draw() -> None:
    for draws, budgets in ((1, "all"), (5, "all"), (7, "all,2"), (7, "10%")):
        check_draws(draws, 5, parse_labels_per_class(budgets))
    with pytest.raises(StepclrError, match=r"^draws has no effect here"):
        check_draws(7, 5, ["all"])


def test_a_share_is_of_each_class_rounded_and_at_least_one_label() -> None:
    for share, counts in {"1%": [1, 1, 1], "25%": [3, 2, 3], "50%": [6, 5, 6]}.items():
        for draw in label_splits(LABELS, CLASSES, [share], 2, 0):
            assert np.bincount(LABELS[draw.indices]).tolist() == counts
            assert len(set(draw.indices.tolist())) == len(draw.indices)
    several = label_splits(LABELS, CLASSES, ["25%", "25.5%", 3], 2, 0)
    assert len({split.seed for split in several}) == 6
    assert len({tuple(split.indices.tolist()) for split in several}) == 6


@pytest.mark.parametrize("budget", [10, "all"])
def test_too_few_labels_are_named(budget: int | str) -> None:
    labels = LABELS[LABELS != 1] if budget == "all" else LABELS
    with pytest.raises(StepclrError, match=r"labels_per_class .*'bee' of train has [09] labels") as error:
        label_splits(labels, CLASSES, [budget], 1, 0)
    assert "\n" not in str(error.value)


def test_folds_hold_every_row_out_once_and_every_class_in_each() -> None:
    parts = folds(LABELS, 5, 0)
    assert sorted(row for _, held_out in parts for row in held_out) == list(range(len(LABELS)))
    for rows, held_out in parts:
        assert not set(rows) & set(held_out)
        assert set(LABELS[rows]) == set(LABELS[held_out]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("counts", "parts"), [([3, 3], 3), ([2, 4], 4), ([1, 3], 3), ([1, 9, 2, 1], 5), ([1, 1, 1], 0), ([2, 1, 1], 2)]
)
def test_every_fold_is_fitted_to_every_class(counts: list[int], parts: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    pairs = folds(labels, 5, 0)
    assert len(pairs) == parts
    for rows, held_out in pairs:
        assert set(labels[rows]) == set(range(len(counts)))
        assert sorted([*rows, *held_out]) == list(range(len(labels)))
    times = np.bincount([row for _, held_out in pairs for row in held_out], minlength=len(labels))
    if parts:
        assert times.tolist() == [int(counts[label] > 1) for label in labels]


@pytest.mark.parametrize(
    ("given", "budgets"),
    [
        (10, [10]),
        ("all", ["all"]),
        ("1, 10,all", [1, 10, "all"]),
        ([1, "10", 1], [1, 10]),
        ((5, "all"), [5, "all"]),
        ("1%,10 %,100%", ["1%", "10%", "all"]),
        ("99.99999%,all", ["all"]),
        (["0.50%", "12.5%", ".5%"], ["0.5%", "12.5%"]),
    ],
)
def test_budgets_are_read(given: object, budgets: list[int | str]) -> None:
    assert parse_labels_per_class(given) == budgets


NO_BUDGETS = [0, -1, 2.5, "al", "1;10", "", [], "1,,2", None, "²", "0%", "101%", "-1%", "%", "1e1%", "nan%"]


@pytest.mark.parametrize("given", NO_BUDGETS)
def test_a_budget_that_is_none_is_told_so_in_one_line(given: object) -> None:
    with pytest.raises(StepclrError, match=r"^labels_per_class .*such as 1,10,all") as error:
        parse_labels_per_class(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("every", [4, "100%"])
def test_a_number_that_takes_every_label_is_one_draw_and_that_of_all(every: Any) -> None:
    labels = np.repeat([0, 1], 4)
    splits = label_splits(labels, ["a", "b"], [3, every, "all"], 3, 7)
    assert [split.labels_per_class for split in splits] == [3, every, "all", 3, 3]
    of_every, of_all = splits[1:3]
    assert of_every.indices.tolist() == of_all.indices.tolist() == list(range(8))
    assert of_every.seed == of_all.seed
    uneven = label_splits(np.repeat([0, 1], [4, 5]), ["a", "b"], [4], 3, 7)
    assert len(uneven) == 3
