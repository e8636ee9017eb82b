"""Linear evaluation: multinomial logistic regression on frozen features (SimCLR App. B.6), the same for every method.

    min over W, b of   mean_i -log softmax(W x_i + b)[y_i]  +  lambda/2 |W|^2

on rows x_i of unit norm, minus the mean of the label split and divided by one scalar of it, so that the grid of lambda
means the same for pixels and for any encoder. L-BFGS on stored features, as in SimCLR App. B.8.
"""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from jaxtyping import Float, Int

from stepclr.evaluation.results import Fit, ranking
from stepclr.evaluation.solver import TOLERANCE, Layers, losses, slope_at_zero, solve
from stepclr.evaluation.splits import folds

# Lambda, from strong to weak. Where classes are well apart, the log-loss falls up to the end of any grid. A longer one
# gains nothing: of 20 such sets, 13 went on to its end at 1e-9 and 6 part of the way. Top-1 stayed as it was for 17 of
# them, and once fell from 99.8 to 95.9 %, because the solver's tolerance is too large there.
STRENGTHS = np.logspace(5, -6, 45)
FOLDS = 5
PATIENCE = 4  # values of lambda (a decade) without a lower log-loss end the search, once it has fallen at all
WIDE = 1.25  # columns for each row from which on it is faster to go over to as many columns as rows first
# Pairs: how many times looser than the stated tolerance the solver is (where the log-loss is 1 or more), and how far
# above the lowest log-loss, as a share of it, a value of lambda still contends. The walk is solved loosely, which moves
# a log-loss by about 0.1 %. The values that contend are then solved again, the last time with the stated tolerance.
WALK, *FINER = (100.0, 0.01), (10.0, 0.001), (1.0, 0.0)
COARSE = 30.0  # times looser: from here on, the rounding errors of float32 are too small to matter
HOPELESS = 2.0  # times the log-loss of the largest lambda, which is about that of W = 0, ends the search anyway
# With one label per class there are no folds to choose lambda with, and the score hardly changes with it. Where some
# classes have more, but fewer rows can be held out than there are classes, these are no guide; and a large lambda would
# leave little but the bias, which favors the common classes.
STRENGTH_AT_1_LABEL, STRENGTH_AT_FEW = 10.0, 1e-3
SETTINGS: dict[str, str | int | float] = {
    "objective": "mean cross-entropy + l2/2 |W|^2, multinomial, bias not penalized",
    "rows": "unit norm, minus the draw's mean, divided by the draw's root mean square (one scalar)",
    "solver": "L-BFGS, float64",
    "tolerance": TOLERANCE,
    "l2_values": len(STRENGTHS),
    "l2_smallest": float(STRENGTHS[-1]),
    "l2_largest": float(STRENGTHS[0]),
    "l2_chosen_by": "log-loss on stratified folds of the draw, ties to the larger; then refitted on the whole draw",
    "l2_folds": f"min({FOLDS}, labels of the largest class); a class's only label is never held out",
    "l2_walk": f"from large to small, each starts where the last three fits point; stops {PATIENCE} values after the "
    f"lowest log-loss, once it has fallen, or at {HOPELESS:g} times that of the largest",
    "l2_at_smallest": "the classes of the split are so well apart that a smaller one always lowers the log-loss",
    "l2_walk_tolerance": f"up to {WALK[0]:g} times looser, with products in float32 from {COARSE:g} times on; of the "
    f"values up to {100 * WALK[1]:g} % above the lowest log-loss, the best one is found with the tolerance that is "
    "stated, or before that if only one is left",
    "l2_at_1_label": STRENGTH_AT_1_LABEL,
    "l2_where_fewer_can_be_held_out_than_there_are_classes": STRENGTH_AT_FEW,
}


def linear_evaluation(
    h: Float[np.ndarray, "n f"], labels: Int[np.ndarray, " n"], h_test: Float[np.ndarray, "m f"], seed: int
) -> Fit:
    """Fit on a label split (labels 0 ... C-1, each present) and predict the test rows; `seed` shuffles the folds.

    Returns the predictions and the chosen lambda. Raises RuntimeError if the solver does not converge.
    """
    x, x_test = standardize(h, h_test)
    x, basis = principal_axes(x)
    strength = choose_strength(x, labels, seed)
    layer = solve(x, labels, np.full((len(x), 1), 1 / len(x)), strength)
    return Fit(ranking(layer.logits(x_test @ basis)[:, 0]), strength)


def standardize(
    h: Float[np.ndarray, "n f"], h_test: Float[np.ndarray, "m f"]
) -> tuple[Float[np.ndarray, "n f"], Float[np.ndarray, "m f"]]:
    """Unit rows, minus the mean of those of `h`, divided by the root mean square of those of `h`; float64."""
    unit, unit_test = _unit_rows(h), _unit_rows(h_test)
    mean = unit.mean(0)
    scale = np.sqrt(np.square(unit - mean).mean()) or 1.0
    return (unit - mean) / scale, (unit_test - mean) / scale


def _unit_rows(h: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n f"]:
    h = h.astype(np.float64)
    return h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)


def principal_axes(x: Float[np.ndarray, "n f"]) -> tuple[Float[np.ndarray, "n r"], Float[np.ndarray, "f r"]]:
    """x in the coordinates of its r <= min(n, F) principal axes, and their orthonormal basis.

    The optimum stays the same: a rotation changes neither inner products nor |W|, and a part of W outside the span of
    the rows would only cost |W|^2. In return there are fewer columns, and the solver knows the curvature along each.
    """
    if x.shape[1] > WIDE * len(x):
        span = np.linalg.qr(x.T)[0]  # an orthonormal basis of the rows
        narrow, axes = principal_axes(x @ span)
        return narrow, span @ axes
    squares, axes = np.linalg.eigh(x.T @ x)
    axes = axes[:, squares > squares.max() * len(squares) * np.finfo(np.float64).eps]  # the others are rounding errors
    return x @ axes, axes


def fold_shares(labels: Int[np.ndarray, " n"], seed: int) -> Float[np.ndarray, "n p"]:
    """Each row's weight in the mean of each fold's problem: 0 where the fold holds it out."""
    parts = folds(labels, FOLDS, seed)
    shares = np.zeros((len(labels), len(parts)))
    for part, (rows, _) in enumerate(parts):
        shares[rows, part] = 1 / len(rows)
    return shares


def choose_strength(x: Float[np.ndarray, "n r"], labels: Int[np.ndarray, " n"], seed: int) -> float:
    """The lambda with the least held-out log-loss; of equal ones, the larger."""
    shares = fold_shares(labels, seed)
    held_out = shares == 0
    if not shares.size:
        return STRENGTH_AT_1_LABEL
    if held_out.sum() < labels.max() + 1:
        return STRENGTH_AT_FEW
    at_zero = slope_at_zero(x, labels, shares)
    x_coarse = x.astype(np.float32)
    merits: dict[float, float] = {}

    def tried(strength: float, start: Layers | None, looser: float) -> tuple[Layers, float]:
        # Where classes are told apart well, the log-loss is small, and the difference of two is smaller still.
        looser = max(1.0, looser * min([1.0, *merits.values()]) ** 2)
        layers = None
        if looser >= COARSE:
            with suppress(RuntimeError):  # where rounding errors stop the search after all
                layers = solve(x_coarse, labels, shares, strength, start, looser, at_zero)
        layers = layers or solve(x, labels, shares, strength, start, looser, at_zero)
        return layers, float(losses(layers, x, labels)[held_out].mean())

    # From strong to weak, each fit starting where the ones before it point.
    latest: list[Layers] = []
    contenders: dict[float, Layers] = {}
    for strength in map(float, STRENGTHS):
        layers, merits[strength] = tried(strength, extrapolated(latest), WALK[0])
        latest = [*latest[-2:], layers]
        contenders = contending(contenders | {strength: layers}, merits, WALK[1])
        best = list(merits.values()).index(min(merits.values()))
        since = len(merits) - 1 - best
        if (best and since >= PATIENCE) or merits[strength] > HOPELESS * merits[float(STRENGTHS[0])]:
            break
    for looser, within in FINER:
        if len(contenders) > 1:
            again = {strength: tried(strength, layers, looser) for strength, layers in contenders.items()}
            merits = {strength: merit for strength, (_, merit) in again.items()}
            contenders = contending({strength: layers for strength, (layers, _) in again.items()}, merits, within)
    return float(next(iter(contenders)))  # of equal ones the larger lambda


def contending(fits: dict[float, Layers], merits: dict[float, float], within: float) -> dict[float, Layers]:
    """The fits whose log-loss is above the lowest by at most the share `within`."""
    limit = (1 + within) * min(merits.values())
    return {strength: layers for strength, layers in fits.items() if merits[strength] <= limit}


def extrapolated(fits: Sequence[Layers]) -> Layers | None:
    """About where the optimum for the next lambda is, on the parabola in log lambda through the last three optima.

    From there the solver takes about half the iterations that it takes from the last optimum.
    """
    if len(fits) < 3:
        return fits[-1] if fits else None
    third, second, last = fits
    return Layers(3 * last.weight - 3 * second.weight + third.weight, 3 * last.bias - 3 * second.bias + third.bias)
