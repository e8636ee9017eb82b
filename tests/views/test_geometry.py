"""Flips, turns, rotation and erasing against PIL, SciPy and loops; how often they come; all renderers alike."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, stats
from test_cuda import SAME, farthest
from test_numba import CLOSE
from test_views import MANY, made_up, within
from torch import Tensor

from stepclr import StepclrError, Views, view_keys
from stepclr.views.geometry import (
    UPSIDE_DOWN,
    EraseParams,
    HorizontalFlip,
    QuarterTurns,
    RandomErasing,
    Rotate,
    RotateParams,
    TurnParams,
    VerticalFlip,
    erased,
    rotated,
    turned,
)
from stepclr.views.ops import Op, OpParams
from stepclr.views.views import Renderer

RENDERERS: tuple[Renderer, ...] = ("torch", "numba")
GEOMETRY: list[Op] = [VerticalFlip(1.0), QuarterTurns(1.0), Rotate(180.0, p=1.0), RandomErasing(p=1.0)]
each_op = pytest.mark.parametrize("op", GEOMETRY, ids=lambda op: type(op).__name__)


def drawn(op: Op, size: int = 32) -> OpParams:
    """The parameters of MANY views."""
    batch = torch.zeros(1, 3, 40, 40, dtype=torch.uint8).expand(MANY, -1, -1, -1)
    (params,) = Views([op], size).sample_params(batch, view_keys(0, 0, range(MANY)))[0].ops
    return params


def direction(degrees: float, n: int = 1) -> Tensor:
    angle = math.radians(degrees)
    return torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64).expand(n, -1)


# The pixels.


@pytest.mark.parametrize(
    ("turn", "name"), [(1, "ROTATE_90"), (2, "ROTATE_180"), (3, "ROTATE_270"), (UPSIDE_DOWN, "FLIP_TOP_BOTTOM")]
)
def test_turns_and_the_vertical_flip_are_pils(turn: int, name: str) -> None:
    pixels = torch.arange(9, dtype=torch.float32).view(1, 1, 3, 3)
    expected = np.array(Image.fromarray(pixels[0, 0].numpy()).transpose(Image.Transpose[name]))
    assert np.array_equal(turned(pixels, turn)[0, 0].numpy(), expected)


def rotated_by_loops(x: NDArray[np.float64], degrees: float, fault: str = "") -> NDArray[np.float64]:
    """One channel, counterclockwise about its center: bilinear, what lies outside is mirrored."""
    size, angle = len(x), math.radians(-degrees if fault == "clockwise" else degrees)
    center = size / 2 if fault == "center between pixels" else (size - 1) / 2

    def value(row: int, column: int) -> float:
        places = []
        for place in (row, column):
            if fault == "edges repeated":
                places.append(min(max(place, 0), size - 1))
            else:
                place = abs(place)
                places.append(2 * (size - 1) - place if place > size - 1 else place)
        return float(x[places[0], places[1]])

    out = np.empty_like(x)
    for r in range(size):
        for c in range(size):
            down, right = r - center, c - center
            row = right * math.sin(angle) + down * math.cos(angle) + center
            column = right * math.cos(angle) - down * math.sin(angle) + center
            top, left = math.floor(row), math.floor(column)
            v, h = row - top, column - left
            upper = value(top, left) * (1 - h) + value(top, left + 1) * h
            lower = value(top + 1, left) * (1 - h) + value(top + 1, left + 1) * h
            out[r, c] = upper * (1 - v) + lower * v
            if fault == "the nearest pixel":
                out[r, c] = value(round(row), round(column))
    return out


def a_view(size: int) -> NDArray[np.float64]:
    return np.random.default_rng(size).uniform(size=(size, size)).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("degrees", [-180, -90, -30.5, 0, 7, 45, 90, 135])
@pytest.mark.parametrize("size", [4, 9])
def test_a_rotation_is_scipys_and_that_of_loops(size: int, degrees: float) -> None:
    x = a_view(size)
    made = rotated(torch.from_numpy(x).float()[None, None], direction(degrees))[0, 0].numpy()
    np.testing.assert_allclose(made, rotated_by_loops(x, degrees), rtol=0, atol=1e-6)
    if degrees % 90:  # at whole quarters, SciPy takes what rounding puts outside for outside
        expected = ndimage.rotate(x, degrees, reshape=False, order=1, mode="mirror", prefilter=False)
        np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fault", ["clockwise", "center between pixels", "edges repeated", "the nearest pixel"])
def test_the_comparison_rejects_loops_with(fault: str) -> None:
    x = a_view(9)
    made = rotated(torch.from_numpy(x).float()[None, None], direction(30))[0, 0].numpy()
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(made, rotated_by_loops(x, 30, fault), rtol=0, atol=1e-3)


def test_inside_the_view_a_rotation_is_pils() -> None:
    x = a_view(21).astype(np.float32)
    expected = np.array(Image.fromarray(x).rotate(25, Image.Resampling.BILINEAR))
    made = rotated(torch.from_numpy(x)[None, None], direction(25))[0, 0].numpy()
    np.testing.assert_allclose(made[5:-5, 5:-5], expected[5:-5, 5:-5], rtol=0, atol=1e-3)


def test_erasing_makes_the_box_black_and_leaves_the_rest() -> None:
    x = torch.rand(3, 3, 6, 6) + 0.1
    box = torch.tensor([[1, 2, 3, 4], [0, 0, 6, 6], [5, 0, 1, 1]])
    made = erased(x, torch.tensor([True, False, True]), box)
    for view, (before, (top, left, height, width)) in enumerate(zip(x, box.tolist(), strict=True)):
        for row in range(6):
            for column in range(6):
                inside = top <= row < top + height and left <= column < left + width and view != 1
                expected = torch.zeros(3) if inside else before[:, row, column]
                assert torch.equal(made[view, :, row, column], expected)


# How often, and how far.


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_each_op_comes_as_often_as_asked(p: float) -> None:
    flip, turns = drawn(VerticalFlip(p)), drawn(QuarterTurns(p))
    rotation, erasing = drawn(Rotate(p=p)), drawn(RandomErasing(p=p))
    assert isinstance(flip, TurnParams)
    assert isinstance(turns, TurnParams)
    assert isinstance(rotation, RotateParams)
    assert isinstance(erasing, EraseParams)
    assert set(flip.turn) <= {0, UPSIDE_DOWN}
    for happens in (flip.turn > 0, turns.turn > 0, rotation.rotate, erasing.erase):
        assert within(happens.sum(), MANY, p)


def test_by_default_the_four_orientations_come_equally_often() -> None:
    params = drawn(QuarterTurns())
    assert isinstance(params, TurnParams)
    assert stats.chisquare(np.bincount(params.turn, minlength=4)).pvalue > 1e-4
    assert len(np.bincount(params.turn)) == 4


def test_angles_are_uniform_on_both_sides_of_0() -> None:
    params = drawn(Rotate(30.0))
    assert isinstance(params, RotateParams)
    degrees = np.degrees(np.arctan2(params.direction[:, 1], params.direction[:, 0]))
    assert stats.kstest(degrees, stats.uniform(-30, 60).cdf).pvalue > 1e-4
    np.testing.assert_allclose(np.linalg.norm(params.direction, axis=1), 1)


@pytest.mark.parametrize("size", [4, 32, 224])
def test_what_is_erased_lies_inside_and_has_the_published_area_and_aspect(size: int) -> None:
    params = drawn(RandomErasing(), size)
    assert isinstance(params, EraseParams)
    top, left, height, width = params.box.T
    assert (params.box[:, :2] >= 0).all()
    assert (params.box[:, 2:] >= 1).all()
    assert (top + height <= size).all()
    assert (left + width <= size).all()
    if size == 224:  # where rounding to pixels matters little
        area, aspect = height * width / size**2, np.log(height / width)
        assert stats.kstest(area, stats.uniform(0.02, 0.31).cdf).statistic < 0.02
        assert stats.kstest(aspect, stats.uniform(np.log(0.3), np.log(11)).cdf).statistic < 0.02


# All renderers.


@each_op
@pytest.mark.parametrize("size", [4, 28, 32])
def test_the_renderers_agree(op: Op, size: int) -> None:
    batch, keys = made_up(9, 40, 31), view_keys(0, 0, range(9))
    ours, reference = Views([op], size), Views([op], size, renderer="torch")
    assert ours.renderer == "numba"
    torch.testing.assert_close(ours(batch, keys), reference(batch, keys), rtol=0, atol=CLOSE)
    assert farthest(batch, reference) < SAME


@each_op
def test_an_op_that_does_not_happen_leaves_a_view_bit_for_bit(op: Any) -> None:
    batch, keys = made_up(6, 40, 31), view_keys(0, 0, range(6))
    never = replace(op, p=0.0)
    for renderer in RENDERERS:
        crop = Views("crop", 30, renderer=renderer)(batch, keys)
        assert torch.equal(Views([never], 30, renderer=renderer)(batch, keys), crop)
        assert not torch.equal(Views([op], 30, renderer=renderer)(batch, keys), crop)
        still = Views([Rotate(0.0, p=1.0)], 30, renderer=renderer)(batch, keys)
        torch.testing.assert_close(still, crop, rtol=0, atol=1e-6)


def test_the_horizontal_flip_of_a_list_is_that_of_its_crop() -> None:
    batch, keys = made_up(MANY, 8, 8), view_keys(0, 0, range(MANY))
    usual = Views("crop", 8).sample_params(batch, keys)[0]
    for p in (0.0, 0.2, 1.0):
        views = Views([VerticalFlip(), HorizontalFlip(p)], 8)
        params = views.sample_params(batch, keys)[0]
        assert within(params.flip.sum(), MANY, p)
        assert np.array_equal(params.box, usual.box)
        assert f"flip {p:g}" in views.describe()
    assert "flip" not in Views("simclr").describe()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: VerticalFlip(1.1), "p of VerticalFlip must lie between 0 and 1"),
        (lambda: QuarterTurns(-1), "p of QuarterTurns"),
        (lambda: HorizontalFlip(2), "p of HorizontalFlip"),
        (lambda: Rotate(p=math.nan), "p of Rotate"),
        (lambda: Rotate(270), "degrees of Rotate must lie between 0 and 180"),
        (lambda: RandomErasing(p=7), "p of RandomErasing"),
        (lambda: RandomErasing(0.01), r"max_area of RandomErasing must lie between 0\.02 and 1"),
    ],
)
def test_a_value_out_of_range_is_answered_in_one_line(wrong: object, words: str) -> None:
    with pytest.raises(StepclrError, match=words):
        wrong()  # type: ignore[operator]
