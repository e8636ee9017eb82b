"""The sparse image warp against SciPy's thin-plate spline and a warp written as loops."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.interpolate import RBFInterpolator
from test_views import MANY, made_up, within

from stepclr import Views, view_keys
from stepclr.views.ops import CONTROL_POINTS, Warp, WarpParams
from stepclr.views.warp import sparse_image_warp, thin_plate_field, thin_plate_weights

Points = NDArray[np.float64]


def field(knots: Points, values: Points, points: Points) -> Points:
    """Our displacement field, for one image."""
    weights = thin_plate_weights(knots[None], values[None])
    made = thin_plate_field(torch.from_numpy(knots[None]), torch.from_numpy(weights), torch.from_numpy(points))
    result: Points = made[0].numpy()
    return result


def some_moves(scale: float, seed: int) -> Points:
    return np.random.default_rng(seed).normal(size=(4, 2)) * scale


def some_points() -> Points:
    return np.random.default_rng(9).uniform(size=(300, 2))


@pytest.mark.parametrize("scale", [1e-3, 0.03, 0.1])
def test_the_field_is_scipys_thin_plate_spline(scale: float) -> None:
    for seed in range(10):
        moves = some_moves(scale, seed)
        points = np.concatenate([some_points(), CONTROL_POINTS + moves])
        expected = RBFInterpolator(CONTROL_POINTS + moves, moves, kernel="thin_plate_spline", degree=1)(points)
        np.testing.assert_allclose(field(CONTROL_POINTS + moves, moves, points), expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose(expected[-4:], moves, rtol=0, atol=1e-9)


def test_no_move_is_no_field_and_leaves_every_pixel_as_it_is() -> None:
    assert not field(CONTROL_POINTS, np.zeros((4, 2)), some_points()).any()
    x = made_up(3, 37, 37).float() / 255
    weights = thin_plate_weights(np.tile(CONTROL_POINTS, (3, 1, 1)), np.zeros((3, 4, 2)))
    assert torch.equal(sparse_image_warp(x, np.tile(CONTROL_POINTS, (3, 1, 1)), weights), x)


def test_an_affine_move_is_reproduced_everywhere() -> None:
    matrix, constant = np.array([[0.1, -0.2], [0.3, 0.05]]), np.array([0.02, -0.1])
    made = field(CONTROL_POINTS, CONTROL_POINTS @ matrix + constant, some_points())
    np.testing.assert_allclose(made, some_points() @ matrix + constant, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "knots",
    [
        CONTROL_POINTS[[0, 0, 2, 3]],
        CONTROL_POINTS[[1, 1, 1, 1]],
        CONTROL_POINTS[[0, 0, 2, 3]] + np.array([[0, 1e-9], [0, 0], [0, 0], [0, 0]]),
        CONTROL_POINTS[[0, 0, 2, 3]] + np.array([[0, 1e-4], [0, 0], [0, 0], [0, 0]]),
        np.array([[0.1, 0.2], [0.2, 0.4], [0.3, 0.6], [0.4, 0.8]]),
        np.array([[0.1, 0.2], [0.2, 0.4 + 1e-12], [0.3, 0.6], [0.4, 0.8]]),
    ],
    ids=["two coincide", "all coincide", "two nearly", "two in a pixel", "on a line", "nearly on a line"],
)
def test_knots_that_coincide_or_lie_on_a_line_give_a_finite_field(knots: Points) -> None:
    moves = some_moves(0.05, 3)
    assert np.isfinite(field(knots, moves, some_points())).all()
    x = made_up(1, 24, 24).float() / 255
    made = sparse_image_warp(x, knots[None], thin_plate_weights(knots[None], moves[None]))
    assert made.isfinite().all()
    assert made.min() >= x.min()
    assert made.max() <= x.max()


# The warp as loops, and wrong ones.


def warp_by_loops(x: torch.Tensor, moves: Points, fault: str = "") -> torch.Tensor:
    """One image [3, S, S]; positions are pixel indices 0 .. S - 1."""
    size = x.shape[-1]
    still = np.array([[a * size / 3, b * size / 3] for a in (1, 2) for b in (1, 2)])
    moves = moves * size
    knots = still if fault == "knots at the points before they move" else still + moves
    spline = RBFInterpolator(knots, moves, kernel="thin_plate_spline", degree=1)
    out = torch.empty_like(x)
    for row in range(size):
        for column in range(size):
            move = spline(np.array([[row, column]]))[0]
            if fault == "row and column exchanged":
                move = move[::-1]
            sign = 1 if fault == "sampled at q + f(q)" else -1
            half = 0.5 if fault == "pixel centers at a half" else 0.0
            down, right = (min(max(q + sign * d + half, 0), size - 1) for q, d in zip((row, column), move, strict=True))
            top, left = math.floor(down), math.floor(right)
            if fault == "the nearest pixel":
                out[:, row, column] = x[:, round(down), round(right)]
                continue
            total = torch.zeros(3, dtype=torch.float64)
            for r, share_r in ((top, 1 - (down - top)), (top + 1, down - top)):
                for c, share_c in ((left, 1 - (right - left)), (left + 1, right - left)):
                    if share_r * share_c:
                        total += share_r * share_c * x[:, r, c].double()
            out[:, row, column] = total.float()
    return out


def test_a_warped_view_is_what_the_loops_make_of_the_same_draws() -> None:
    batch, keys = made_up(3, 26, 26), view_keys(0, 2, range(3))
    crop, warp = Views("crop", size=18), Views([Warp(p=1.0)], size=18)
    for plain, x, draws in zip(crop(batch, keys), warp(batch, keys), warp.sample_params(batch, keys), strict=True):
        (drawn,) = draws.ops
        assert isinstance(drawn, WarpParams)
        expected = torch.stack([warp_by_loops(*pair) for pair in zip(plain, drawn.knots - CONTROL_POINTS, strict=True)])
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
        assert (x - plain).abs().amax((1, 2, 3)).min() > 0.05


@pytest.mark.parametrize(
    "fault",
    [
        "knots at the points before they move",
        "sampled at q + f(q)",
        "row and column exchanged",
        "pixel centers at a half",
        "the nearest pixel",
    ],
)
def test_the_comparison_rejects_loops_with(fault: str) -> None:
    x, moves = made_up(1, 20, 20).float() / 255, some_moves(0.05, 1)
    made = sparse_image_warp(
        x, (CONTROL_POINTS + moves)[None], thin_plate_weights((CONTROL_POINTS + moves)[None], moves[None])
    )[0]
    torch.testing.assert_close(made, warp_by_loops(x[0], moves), rtol=0, atol=1e-5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(made, warp_by_loops(x[0], moves, fault), rtol=0, atol=1e-3)


# Draw.


def drawn_warps(**settings: float) -> WarpParams:
    keys = view_keys(0, 0, range(MANY))
    batch = torch.zeros(1, 3, 96, 96, dtype=torch.uint8).expand(MANY, -1, -1, -1)
    (drawn,) = Views([Warp()], size=96, **settings).sample_params(batch, keys)[0].ops  # type: ignore[arg-type]
    assert isinstance(drawn, WarpParams)
    return drawn


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_views_are_warped_as_often_as_asked(p: float) -> None:
    drawn = drawn_warps(warp=p)
    assert within(drawn.warp.sum(), MANY, p)
    assert not drawn.weights[~drawn.warp].any()
    assert drawn.weights[drawn.warp].any((1, 2)).all()


def test_moves_are_normal_with_one_scale_a_view_up_to_23_of_224_pixels() -> None:
    moves = (drawn_warps(warp=0.1).knots - CONTROL_POINTS).reshape(MANY, 8)
    rng = np.random.default_rng(0)
    expected: Callable[[], Points] = lambda: rng.uniform(0, 23 / 224, MANY) * rng.normal(size=MANY)  # noqa: E731
    for column in moves.T:
        assert stats.ks_2samp(column, expected()).pvalue > 1e-4
    for one, other in ((0, 1), (2, 7), (5, 6)):  # a ratio of normals with one scale is Cauchy's
        assert stats.kstest(moves[:, one] / moves[:, other], "cauchy").pvalue > 1e-4
        assert abs(np.corrcoef(moves[:, one], moves[:, other])[0, 1]) < 6 / math.sqrt(MANY)
    assert (
        stats.ks_2samp((moves**2).sum(1), (rng.uniform(0, 23 / 224, MANY) ** 2) * rng.chisquare(8, MANY)).pvalue > 1e-4
    )
    assert np.corrcoef(moves[:, 0] ** 2, moves[:, 5] ** 2)[0, 1] > 0.1  # the common scale


def test_the_number_0_whose_normal_is_infinite_is_drawn_safely() -> None:
    drawn = Warp(p=1.0).sample(np.array([[0.0, 0.5] + [0.0] * 8, [0.0, 0.5] + [1 - 2.0**-53] * 8]), 32)
    assert np.isfinite(drawn.knots).all()
    assert np.isfinite(drawn.weights).all()
