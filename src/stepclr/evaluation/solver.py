"""L-BFGS for linear evaluation: P multinomial logistic regressions on the same rows, solved together.

    min over W_p, b_p of   sum_i share_ip (-log softmax(W_p x_i + b_p)[y_i])  +  lambda/2 |W_p|^2,    p = 1 ... P

One pass over x serves all folds. scikit-learn's LogisticRegression has the same optimum (a test compares them), but it
solves one fold at a time, cannot use the curvature below, and with two classes penalizes the weights of only one.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.optimize import minimize

from stepclr.device import stop_if_unwanted

# The search ends where the largest entry of the gradient, in the solver's coordinates, is at most TOLERANCE times that
# at W = 0, which falls with the number of classes and with lambda. Rounding errors may leave entries up to ROUNDING:
# the stated tolerance is never larger, and a search that stops below it has converged.
TOLERANCE, ROUNDING = 1e-4, 1e-5
CACHED = 2**17  # numbers in float64, 1 MiB
Array = NDArray[np.float64]


class Layers(NamedTuple):
    """P linear layers x -> W x + b."""

    weight: Float[np.ndarray, "p c r"]
    bias: Float[np.ndarray, "p c"]

    def logits(self, x: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "n p c"]:
        """W x + b of each layer, in the precision of x."""
        weight, bias = self.weight.astype(x.dtype), self.bias.astype(x.dtype)
        product: Array = x @ weight.reshape(bias.size, x.shape[1]).T
        return product.reshape(len(x), *bias.shape) + bias


def solve(
    x: Float[np.ndarray, "n r"],
    labels: Int[np.ndarray, " n"],
    shares: Float[np.ndarray, "n p"],
    strength: float,
    start: Layers | None = None,
    looser: float = 1.0,
    at_zero: Float[np.ndarray, "p c r"] | None = None,
) -> Layers:
    """The optimum of each of the P problems at the head of this file, searched from `start` (zero by default).

    x should be in the coordinates of its principal axes: in others the search takes longer. The products have its
    precision; in float32, only a loose search converges.
    looser: times the tolerance. at_zero: `slope_at_zero`, where it is known.
    Raises RuntimeError if the solver does not converge.
    """
    # Both products of an evaluation take less time where the weights of each class lie side by side.
    layout = (shares.shape[1], int(labels.max()) + 1, x.shape[1])
    bias_at = int(np.prod(layout))
    # At W = 0 the Hessian along axis j is mean(x_j^2) / C + lambda. Divided by its root, all directions have about the
    # same curvature, and a weak lambda takes 30 iterations instead of 700.
    unit = 1 / np.sqrt(np.square(x).mean(0) / layout[1] + strength)

    def layers_at(flat: Array) -> Layers:
        return Layers(unit * flat[:bias_at].reshape(layout), flat[bias_at:].reshape(layout[:2]))

    def objective(flat: Array) -> tuple[float, Array]:
        stop_if_unwanted()
        layers = layers_at(flat)
        value = strength / 2 * float(np.square(layers.weight).sum())
        slope, slope_of_bias = strength * layers.weight, np.zeros(layout[:2])
        for rows in blocks(len(x), layers.bias.size):
            share = shares[rows]
            loss, gradient = cross_entropy(layers.logits(x[rows]), labels[rows])
            gradient *= share[:, :, None]
            value += float((share * loss).sum())
            slope += (gradient.reshape(len(gradient), -1).T @ x[rows]).reshape(layout)
            slope_of_bias += gradient.sum(0)
        return value, np.concatenate([(unit * slope).ravel(), slope_of_bias.ravel()])

    if at_zero is None:
        at_zero = slope_at_zero(x, labels, shares)
    steepest = np.abs(unit * at_zero).max(initial=0.0)
    first = np.zeros(bias_at + layout[0] * layout[1])
    if start is not None:
        first = np.concatenate([(start.weight / unit).ravel(), start.bias.ravel()])
    tolerance = looser * min(TOLERANCE * steepest or ROUNDING, ROUNDING)
    options = {"gtol": tolerance, "ftol": 0.0, "maxiter": 10_000, "maxfun": 100_000, "maxls": 50}
    result = minimize(objective, first, jac=True, method="L-BFGS-B", options=options)
    if not result.success and not np.abs(result.jac).max() <= ROUNDING:
        raise RuntimeError(f"linear evaluation did not converge at lambda {strength:.1e}: {result.message}")
    return layers_at(result.x)


def slope_at_zero(
    x: Float[np.ndarray, "n r"], labels: Int[np.ndarray, " n"], shares: Float[np.ndarray, "n p"]
) -> Float[np.ndarray, "p c r"]:
    """The gradient of each mean cross-entropy with respect to W at W = 0, b = 0, which no lambda changes."""
    classes = int(labels.max()) + 1
    slope = np.zeros((shares.shape[1], classes, x.shape[1]))
    for rows in blocks(len(x), shares.shape[1] * classes):
        gradient = shares[rows, :, None] * (1 / classes - (labels[rows, None, None] == np.arange(classes)))
        slope += (gradient.reshape(len(gradient), -1).T @ x[rows]).reshape(slope.shape)
    return slope


def blocks(n: int, width: int) -> Iterator[slice]:
    """Consecutive parts of n rows, such that the `width` logits of each row of a part fit into a processor's cache."""
    size = max(1, CACHED // width)
    for start in range(0, n, size):
        yield slice(start, start + size)


def losses(layers: Layers, x: Float[np.ndarray, "n r"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n p"]:
    """-log softmax(x W + b)[y] of each row in each problem."""
    parts = [cross_entropy(layers.logits(x[rows]), labels[rows])[0] for rows in blocks(len(x), layers.bias.size)]
    return np.concatenate(parts)


def cross_entropy(
    logits: Float[np.ndarray, "n p c"], labels: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n p"], Float[np.ndarray, "n p c"]]:
    """-log softmax(logits)[y] of each row in each problem, and its gradient, which overwrites the logits."""
    logits -= logits.max(2, keepdims=True)
    rows = np.arange(len(labels))
    loss = -logits[rows, :, labels]
    gradient = np.exp(logits, out=logits)
    total = gradient.sum(2, keepdims=True)
    gradient /= total
    loss += np.log(total[:, :, 0])
    gradient[rows, :, labels] -= 1
    return loss, gradient
