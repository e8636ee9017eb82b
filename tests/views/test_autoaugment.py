"""AutoAugment and RandAugment against torchvision's own classes: tables, parameters, each op, whole views."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from test_views import MANY, made_up, real_images, within
from torch import Tensor
from torchvision.transforms import v2

from stepclr import StepclrError, Views, view_keys
from stepclr.views.autoaugment import OPS, apply_table_op, auto_augment, rand_augment
from stepclr.views.ops import AutoAugment, RandAugment, TableParams

TABLES = ["imagenet", "cifar10", "svhn"]
BLENDS = ("Brightness", "Color", "Contrast", "Sharpness")
MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


@cache
def magnitudes(name: str, bins: int, size: int) -> Tensor | None:
    values: Tensor | None = v2.AutoAugment._AUGMENTATION_SPACE[name][0](bins, size, size)
    return values


def by_torchvision(levels: Tensor, name: str, magnitude: float) -> Tensor:
    fill: dict[Any, None] = {}
    changed: Tensor = v2.AutoAugment()._apply_image_or_video_transform(
        levels, name, magnitude, v2.InterpolationMode.NEAREST, v2.AutoAugment(fill=fill)._fill
    )
    return changed


def changed(levels: Tensor, name: str, magnitude: float) -> Tensor:
    """Our op, on the even rows of a batch; no op is applied to the other rows."""
    n = len(levels)
    op = np.full(2 * n, OPS.index(name))
    op[1::2] = 0
    batch = levels.repeat_interleave(2, 0)
    apply_table_op(batch, op, np.full(2 * n, magnitude))
    assert torch.equal(batch[1::2], levels)
    return batch[0::2]


@pytest.mark.parametrize("size", [32, 33, 96])
@pytest.mark.parametrize("name", OPS)
def test_each_op_is_torchvisions(name: str, size: int, shared_data: Path) -> None:
    levels = real_images(shared_data, "imagenette" if size > 33 else "cifar10")
    levels = torch.nn.functional.pad(levels, (0, size - levels.shape[-1], 0, size - levels.shape[-1]))
    scale = None if name == "Identity" else magnitudes(name, 31, size)
    tried = [0.0] if scale is None else scale[[0, 1, 9, 17, 30]].tolist()
    if scale is not None and name not in MOVES:  # AutoAugment's shear of 0.2 has a tie of rounding in every fifth row
        tried += v2.AutoAugment._AUGMENTATION_SPACE[name][0](10, size, size)[[3, 6]].tolist()
    for value in tried:
        for sign in (1, -1) if name in (*BLENDS, *MOVES) else (1,):
            magnitude = float(sign * value)
            made, expected = changed(levels, name, magnitude), by_torchvision(levels, name, magnitude)
            difference = (made.int() - expected.int()).abs()
            if name in MOVES:  # ties of rounding
                assert (difference > 0).any(1).float().mean() < 0.005
            else:
                assert difference.max() <= (1 if name in BLENDS else 0)
                assert (difference > 0).float().mean() < 0.03  # blends that come to a whole level, or just below
            if value != tried[0] and value != tried[1]:
                assert not torch.equal(made, levels)


def test_magnitudes_differ_from_row_to_row(shared_data: Path) -> None:
    levels = real_images(shared_data, "cifar10")
    for name in OPS[1:]:
        scale = magnitudes(name, 31, 32)
        each = np.zeros(10) if scale is None else scale[3:30:3].double().numpy()[np.arange(10) % 9]
        batch = levels.clone()
        apply_table_op(batch, np.full(10, OPS.index(name)), each)
        alone = [changed(levels[k : k + 1], name, float(each[k])) for k in range(10)]
        assert torch.equal(batch, torch.cat(alone)), name


def test_images_of_one_color_stay_proper() -> None:
    levels = torch.tensor([0, 255, 77], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    for name in ("AutoContrast", "Equalize", "Contrast", "Sharpness"):
        assert torch.equal(changed(levels, name, 0.5), by_torchvision(levels, name, 0.5))


def test_each_op_is_the_same_with_one_thread_or_two_and_alone() -> None:
    """On images of more than 32,768 pixels, for which torch shares out even the sum over one image among threads."""
    levels = made_up(2, 200, 200)
    threads = torch.get_num_threads()
    try:
        for name in OPS:
            results = []
            for count in (1, 2):
                torch.set_num_threads(count)
                magnitude = 5.0 if name == "Posterize" else 0.4
                results += [changed(levels, name, magnitude)[1:], changed(levels[1:], name, magnitude)]
            assert all(torch.equal(result, results[0]) for result in results), name
    finally:
        torch.set_num_threads(threads)


# The tables are torchvision's.


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("table", TABLES)
def test_sub_policies_are_torchvisions(table: str, size: int) -> None:
    ours, theirs = auto_augment(table, size), v2.AutoAugment(v2.AutoAugmentPolicy(table))._policies
    assert ours.op.shape == (25, 2)
    for row, policy in enumerate(theirs):
        for place, (name, p, level) in enumerate(policy):
            scale = magnitudes(name, 10, size)
            assert OPS[ours.op[row, place]] == name
            assert ours.p[row, place] == p
            assert ours.magnitude[row, place] == (0 if scale is None else float(scale[level]))
            assert ours.signed[row, place] == (name in (*BLENDS, *MOVES))


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_randaugments_ops_are_torchvisions(magnitude: int) -> None:
    ours, names = rand_augment(magnitude, 96), list(v2.RandAugment._AUGMENTATION_SPACE)
    assert [OPS[op] for op in ours.op[:, 0]] == names
    assert len(names) == 14
    for name, value in zip(names[1:], ours.magnitude[1:, 0], strict=True):
        scale = magnitudes(name, 31, 96)
        assert value == (0 if scale is None else float(scale[magnitude]))


def test_a_torchvision_without_the_tables_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(v2.RandAugment, "_AUGMENTATION_SPACE")
    rand_augment.cache_clear()
    with pytest.raises(StepclrError, match=r"torchvision .* no longer has the tables .* _AUGMENTATION_SPACE"):
        Views("randaugment", 32)(made_up(2, 40, 40), view_keys(0, 0, range(2)))


# Parameters.


def drawn(op: AutoAugment | RandAugment, n: int = MANY) -> TableParams:
    batch = torch.zeros(1, 3, 40, 40, dtype=torch.uint8).expand(n, -1, -1, -1)
    (made,) = Views([op], size=32).sample_params(batch, view_keys(1, 0, range(n)))[0].ops
    assert isinstance(made, TableParams)
    return made


@pytest.mark.parametrize("table", TABLES)
def test_sub_policies_come_as_often_as_published(table: str) -> None:
    made, rows = drawn(AutoAugment(table)), v2.AutoAugment(v2.AutoAugmentPolicy(table))._policies
    for place in range(2):
        for name in OPS:
            published = sum(row[place][1] for row in rows if row[place][0] == name) / 25
            if name == "Identity":
                published = sum(1 - row[place][1] for row in rows) / 25
            assert within((made.op[:, place] == OPS.index(name)).sum(), MANY, published)
    pairs: dict[tuple[str, str], float] = {}
    for (first, p, _), (second, q, _) in rows:
        pairs[first, second] = pairs.get((first, second), 0) + p * q / 25
    for (first, second), published in pairs.items():
        both = (made.op[:, 0] == OPS.index(first)) & (made.op[:, 1] == OPS.index(second))
        assert within(both.sum(), MANY, published)


def test_randaugment_draws_each_op_equally_often_and_in_no_relation() -> None:
    made = drawn(RandAugment(3, 9))
    for one in range(3):
        assert stats.chisquare(np.bincount(made.op[:, one], minlength=14)).pvalue > 1e-4
        pairs = made.op[:, one] * 14 + made.op[:, (one + 1) % 3]
        assert stats.chisquare(np.bincount(pairs, minlength=196)).pvalue > 1e-4


@pytest.mark.parametrize("op", [AutoAugment("imagenet"), AutoAugment("cifar10"), RandAugment(2, 9)], ids=str)
def test_half_of_the_signed_magnitudes_are_negative_and_none_of_the_others(op: AutoAugment | RandAugment) -> None:
    made = drawn(op)
    signed = np.isin(made.op, [OPS.index(name) for name in (*BLENDS, *MOVES)]) & (made.magnitude != 0)
    assert within((made.magnitude[signed] < 0).sum(), int(signed.sum()), 0.5)
    assert (made.magnitude[~signed] >= 0).all()
    negative = (made.magnitude < 0)[signed.all(1)]
    assert within((negative[:, 0] == negative[:, 1]).sum(), len(negative), 0.5)


# Whole views.

FAULTS = ["layers backwards", "the other sign", "half the magnitude", "no crop"]


def views_by_torchvision(batch: Tensor, policy: str, fault: str = "") -> tuple[Tensor, Tensor]:
    """Our views, and torchvision's ops one by one on the crops, with our parameters."""
    keys, views = view_keys(2, 1, range(len(batch))), Views(policy, size=32, views=1)
    crops = (Views("crop", size=32, views=1)(batch, keys)[0] * 255).round().to(torch.uint8)
    if fault == "no crop":
        crops = batch
    (made,) = views.sample_params(batch, keys)[0].ops
    assert isinstance(made, TableParams)
    expected = []
    for levels, op, magnitude in zip(crops, made.op.tolist(), made.magnitude.tolist(), strict=True):
        steps = list(zip(op, magnitude, strict=True))
        for which, value in steps[::-1] if fault == "layers backwards" else steps:
            name, signed = OPS[which], OPS[which] in (*BLENDS, *MOVES)
            factor = {"the other sign": -1.0, "half the magnitude": 0.5}.get(fault, 1.0) if signed else 1.0
            levels = by_torchvision(levels[None], name, factor * value)[0]
        expected.append(levels)
    return views(batch, keys)[0], torch.stack(expected).float() / 255


def check_nearly_all(x: Tensor, expected: Tensor) -> None:
    """Within two levels, except for ties of rounding: a shear of 0.2 has one in every fifth row."""
    assert ((x - expected).abs() > 2.01 / 255).float().mean() < 0.01


@pytest.mark.parametrize("policy", ["autoaugment", "autoaugment:cifar10", "autoaugment:svhn", "randaugment:3,17"])
def test_views_are_what_torchvision_makes_of_the_same_draws(policy: str, shared_data: Path) -> None:
    batch = real_images(shared_data, "cifar10").repeat(6, 1, 1, 1)
    check_nearly_all(*views_by_torchvision(batch, policy))


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_rejects_a_reference_with(fault: str, shared_data: Path) -> None:
    batch = real_images(shared_data, "cifar10").repeat(6, 1, 1, 1)
    with pytest.raises(AssertionError):
        check_nearly_all(*views_by_torchvision(batch, "randaugment:3,17", fault))


def test_a_view_without_an_op_is_its_crop_in_256_levels() -> None:
    batch, keys = made_up(60, 40, 40), view_keys(0, 0, range(60))
    views = Views("autoaugment:cifar10", size=32)
    for x, crop, draws in zip(
        views(batch, keys),
        Views("crop", size=32, renderer="torch")(batch, keys),
        views.sample_params(batch, keys),
        strict=True,
    ):
        (made,) = draws.ops
        assert isinstance(made, TableParams)
        none = torch.from_numpy((made.op == 0).all(1))
        assert none.any()
        assert torch.equal(x[none], (crop[none] * 255).round() / 255)
