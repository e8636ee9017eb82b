"""Sparse image warp: a few control points move, and a thin-plate spline carries the rest of the image along.

This is `tfa.image.sparse_image_warp` with its defaults (order 2, no regularization, no boundary points), which SupCon's
SimAugment calls. Positions are pixel indices 0 to S - 1 as (row, column), here in units of the view's side S.
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import xlogy
from torch import Tensor

RCOND = 1e-9  # singular values below this share of the largest come from knots on one point or line, and are dropped


def thin_plate_weights(
    knots: Float[np.ndarray, "n k 2"], values: Float[np.ndarray, "n k 2"]
) -> Float[np.ndarray, "n k+3 2"]:
    """Weights w_1 .. w_k, a_0, A of the thin-plate spline, with an affine part, that has these values at these knots.

    They are finite for any knots. If some knots coincide or all lie on one line, they are the least-squares solution
    of smallest norm.
    """
    n, k, _ = knots.shape
    square = np.square(knots[:, :, None] - knots[:, None])
    r2 = square[..., 0] + square[..., 1]
    system = np.zeros((n, k + 3, k + 3))
    system[:, :k, :k] = xlogy(r2, r2) / 2
    system[:, :k, k] = 1
    system[:, :k, k + 1 :] = knots
    system[:, k:, :k] = system[:, :k, k:].swapaxes(1, 2)
    right_side = np.concatenate([values, np.zeros((n, 3, 2))], axis=1)
    return np.linalg.pinv(system, RCOND) @ right_side


def thin_plate_field(
    knots: Float[Tensor, "n k 2"], weights: Float[Tensor, "n k+3 2"], points: Float[Tensor, "m 2"]
) -> Float[Tensor, "n m 2"]:
    """f(q) = sum_k w_k phi(|q - c_k|) + a_0 + A q, phi(r) = r^2 log r, at each point q, in the units of the knots."""
    k = knots.shape[1]
    constant, down, right = weights[:, k:, None].unbind(1)
    field = constant + points[:, :1] * down + points[:, 1:] * right
    for knot, weight in zip(knots.unbind(1), weights[:, :k].unbind(1), strict=True):
        square = (points - knot[:, None]).square()
        r2 = square[..., 0] + square[..., 1]
        # xlogy works number by number; a vectorized log may round the ends of a row differently.
        field = field + (torch.special.xlogy(r2, r2) / 2)[..., None] * weight[:, None]
    return field


def sparse_image_warp(
    x: Float[Tensor, "n c s s"],
    knots: Float[Tensor | np.ndarray, "n k 2"],
    weights: Float[Tensor | np.ndarray, "n k+3 2"],
) -> Float[Tensor, "n c s s"]:
    """Pixel q takes the bilinear value at q - f(q), a position that is kept inside the image."""
    size = x.shape[-1]
    index = torch.arange(size, dtype=torch.float64, device=x.device)
    pixels = torch.cartesian_prod(index, index)
    knots, weights = (torch.as_tensor(part, device=x.device) for part in (knots, weights))
    field = thin_plate_field(knots, weights, pixels / size)
    return bilinear(x, (pixels - field * size).clamp(0, size - 1))


def bilinear(x: Float[Tensor, "n c s s"], position: Float[Tensor, "n m 2"]) -> Float[Tensor, "n c s s"]:
    """The image's values at S * S positions (row, column) inside it, in pixels: one for each output pixel in turn."""
    size = x.shape[-1]
    first = position.floor()
    down, right = (position - first).to(x)[:, None].unbind(-1)
    top, left = first.long().unbind(-1)
    bottom, far = (top + 1).clamp(max=size - 1), (left + 1).clamp(max=size - 1)
    flat = x.flatten(2)

    def values(row: Tensor, column: Tensor) -> Tensor:
        return flat.gather(2, (row * size + column)[:, None].expand(-1, x.shape[1], -1))

    upper = values(top, left) * (1 - right) + values(top, far) * right
    lower = values(bottom, left) * (1 - right) + values(bottom, far) * right
    return (upper * (1 - down) + lower * down).view_as(x)
