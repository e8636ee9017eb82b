"""Solarize, posterize and equalize against PIL on whole views; how often they come; all renderers alike."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from test_cuda import farthest
from test_geometry import RENDERERS, drawn
from test_views import MANY, made_up, within
from torch import Tensor

from stepclr import StepclrError, Views, view_keys
from stepclr.views.cuda import render_cuda
from stepclr.views.ops import Equalize, LevelParams, Op, Posterize, Solarize

BY_PIL: dict[Op, Callable[[Image.Image], Image.Image]] = {
    Solarize(p=1.0): lambda image: ImageOps.solarize(image, 128),
    Solarize(0.25, p=1.0): lambda image: ImageOps.solarize(image, 64),
    Posterize(p=1.0): lambda image: ImageOps.posterize(image, 4),
    Posterize(1, p=1.0): lambda image: ImageOps.posterize(image, 1),
    Posterize(8, p=1.0): lambda image: image,
    Equalize(p=1.0): ImageOps.equalize,
}
each_op = pytest.mark.parametrize("op", BY_PIL, ids=repr)


def by_pil(op: Op, crop: Tensor) -> Tensor:
    """PIL's op on each channel of each view, in 256 levels."""
    levels = (crop * 255).round().to(torch.uint8).flatten(0, -3).numpy()
    changed = [np.array(BY_PIL[op](Image.fromarray(channel))) for channel in levels]
    return torch.from_numpy(np.stack(changed)).view_as(crop).float() / 255


def check_nearly_all(x: Tensor, expected: Tensor) -> None:
    """A pixel that lies between two levels may be rounded to either, and is then far from where it would be."""
    assert x.min() >= 0
    assert x.max() <= 1
    assert ((x - expected).abs() > 1.01 / 255).float().mean() < 1e-3


@each_op
@pytest.mark.parametrize("size", [4, 16, 40])
def test_an_op_is_pils_by_every_renderer(op: Op, size: int) -> None:
    batch, keys = made_up(6, 50, 60), view_keys(0, 0, range(6))
    flat = torch.tensor([0, 77, 255], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 50, 60)
    batch = torch.cat([batch[:3], flat])
    views = Views([op], size, renderer="torch")
    expected = by_pil(op, Views("crop", size, renderer="torch")(batch, keys))
    assert torch.equal(views(batch, keys), expected)
    numba = Views([op], size)
    assert numba.renderer == "numba"
    check_nearly_all(numba(batch, keys), expected)
    check_nearly_all(render_cuda(batch, views.sample_params(batch, keys), size), expected)


@pytest.mark.parametrize("kind", [Solarize, Posterize, Equalize])
def test_each_op_comes_as_often_as_asked_and_else_leaves_a_view_bit_for_bit(kind: Any) -> None:
    for p in (0.0, 0.3, 1.0):
        params = drawn(kind(p=p))
        assert isinstance(params, LevelParams)
        assert within((params.op > 0).sum(), MANY, p)
    batch, keys = made_up(6, 40, 31), view_keys(0, 0, range(6))
    for renderer in RENDERERS:
        crop = Views("crop", 30, renderer=renderer)(batch, keys)
        assert torch.equal(Views([kind(p=0.0)], 30, renderer=renderer)(batch, keys), crop)
    assert farthest(batch, Views([kind(p=0.0)], 30)) < 1e-4


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Solarize(1.5), "threshold of Solarize must lie between 0 and 1"),
        (lambda: Solarize(p=2), "p of Solarize"),
        (lambda: Posterize(0), "bits of Posterize must lie between 1 and 8"),
        (lambda: Posterize(2.5), "whole number, not 2.5"),  # type: ignore[arg-type]
        (lambda: Posterize(p=-1), "p of Posterize"),
        (lambda: Equalize(-0.1), "p of Equalize"),
    ],
)
def test_a_value_out_of_range_is_answered_in_one_line(wrong: object, words: str) -> None:
    with pytest.raises(StepclrError, match=words):
        wrong()  # type: ignore[operator]
