"""Near duplicates: versions of one image are found, and images that only resemble each other are not."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

import stepclr
from stepclr.data.decode import upright_rgb
from stepclr.data.details import (
    BLOCK,
    MAX_CANDIDATES,
    MIN_COSINE,
    candidates,
    detail,
    gray_thumbnail,
    groups,
    near_pairs,
)
from stepclr.tools.curate.alignment import aligned_likeness
from stepclr.tools.curate.duplicates import duplicate_pairs


def scene(seed: int, side: int = 96) -> Image.Image:
    """Random shapes over a random gradient: with as much detail as a photograph, at every scale."""
    generator = np.random.default_rng(seed)
    image = np.zeros((side, side, 3))
    for octave in (3, 6, 12, 24):
        grid = Image.fromarray(generator.integers(0, 256, (octave, octave, 3), dtype=np.uint8))
        image += np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC), float) / octave
    image -= image.min()
    return Image.fromarray((image / image.max() * 255).astype(np.uint8))


def compressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def small(image: Image.Image) -> Tensor:
    return gray_thumbnail(upright_rgb(image))


VERSIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "quality 30": lambda p: compressed(p, 30),
    "quality 90": lambda p: compressed(p, 90),
    "60%": lambda p: p.resize((58, 58), Image.Resampling.BICUBIC),
    "200%": lambda p: p.resize((192, 192), Image.Resampling.BICUBIC),
    "squeezed": lambda p: p.resize((96, 64), Image.Resampling.BICUBIC),
    "cropped by 3%": lambda p: p.crop((1, 2, 94, 95)),
    "cropped by 5%": lambda p: p.crop((0, 5, 91, 96)),
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.2),
    "darker": lambda p: ImageEnhance.Brightness(p).enhance(0.8),
    "grey": lambda p: p.convert("L"),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_of_an_image_is_found(version: str) -> None:
    originals = [scene(seed) for seed in range(30)]
    images = torch.stack([small(p) for p in originals + [VERSIONS[version](p) for p in originals]])
    pairs, alike = near_pairs(images)
    assert pairs.tolist() == [[i, i + 30] for i in range(30)]
    assert (alike >= MIN_COSINE).all()
    across, _ = near_pairs(images[:30], images[30:])
    assert across.tolist() == [[i, i] for i in range(30)]


def test_other_images_are_not() -> None:
    """Garments on black resemble each other more than photographs do: the threshold rises."""
    garments = stepclr.open_images("sample:train")
    images = garments.read(range(len(garments)))
    found, _ = near_pairs(torch.stack([gray_thumbnail(image) for image in images]))
    assert len(found) <= 2  # of 499,500 pairs; Fashion-MNIST has a few of the same garment
    twins = torch.stack([small(compressed(Image.fromarray(p.permute(1, 2, 0).numpy()), 90)) for p in images[:50]])
    assert {(i, i) for i in range(50)} <= {
        (i, j) for i, j in near_pairs(twins, torch.stack([gray_thumbnail(p) for p in images]))[0].tolist()
    }


def test_no_image_without_detail_is_a_version_of_another() -> None:
    grey = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    assert not len(near_pairs(torch.stack([grey[0], grey[0] + 1, gray_thumbnail(grey)]))[0])
    mirrored = torch.stack([small(scene(0)), small(scene(0)).flip(1)])
    assert not len(near_pairs(mirrored)[0])


@pytest.mark.parametrize("n", [0, 1])
def test_so_few_have_no_pair(n: int) -> None:
    pairs, alike = near_pairs(torch.zeros(n, 32, 32, dtype=torch.uint8))
    assert pairs.shape == (0, 2)
    assert alike.shape == (0,)


def test_neighbors_are_those_of_all_pairs_compared() -> None:
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(BLOCK + 50, 6), dim=1)
    cosines = x @ x.T
    expected = [(i, j) for i, j in torch.nonzero(cosines.triu(1) >= 0.985).tolist()]
    assert len(expected) > 10
    assert sorted(map(tuple, candidates(x, x, 0.985, len(x), same=True).tolist())) == expected
    few = candidates(x, x, 0.5, MAX_CANDIDATES, same=False)
    assert (few[:, 0].bincount() == MAX_CANDIDATES).all()
    nearest = {(i, j) for i, row in enumerate(cosines.topk(MAX_CANDIDATES).indices.tolist()) for j in row}
    assert set(map(tuple, few.tolist())) == nearest


def test_groups() -> None:
    assert groups([(5, 9), (1, 2), (2, 3), (9, 7)]) == [[1, 2, 3], [5, 7, 9]]
    assert groups([(1, 2), (8, 9), (2, 8)]) == [[1, 2, 8, 9]]
    assert groups([]) == []


def test_detail_does_not_see_light() -> None:
    image = small(scene(1)).float()[None]
    assert (detail(image) * detail(image * 0.7 + 40)).sum() > 0.97


# What `stepclr find duplicates` finds too, with h.
FARTHER: dict[str, Callable[[Image.Image], Image.Image]] = {
    "cropped by 10%": lambda p: p.crop((0, round(p.height * 0.1), round(p.width * 0.9), p.height)),
    "cropped unevenly": lambda p: p.crop((round(p.width * 0.04), 0, p.width, round(p.height * 0.9))),
    "60%": lambda p: p.resize((round(0.6 * p.width), round(0.6 * p.height)), Image.Resampling.BICUBIC),
    "mirrored, cropped by 8%": lambda p: ImageOps.mirror(p).crop((0, 0, round(p.width * 0.92), round(p.height * 0.92))),
}


@pytest.mark.parametrize("version", FARTHER)
@pytest.mark.parametrize("kind", ["garments", "scenes"])
def test_with_h_farther_versions_are_found(kind: str, version: str) -> None:
    originals = [scene(seed) for seed in range(30)]
    if kind == "garments":
        images = stepclr.open_images("sample:train").read(range(100))
        originals = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    n = len(originals)
    copies = [compressed(FARTHER[version](image), 85) for image in originals[:20]]
    thumbnails = torch.stack([small(image) for image in originals + copies])
    # By h alone, five images that follow each other are as near as a version is to its original.
    generator = np.random.default_rng(0)
    h = np.repeat(3 * generator.normal(size=(n // 5, 16)), 5, 0) + 0.1 * generator.normal(size=(n, 16))
    h = np.concatenate([h, h[:20] + 0.1 * generator.normal(size=(20, 16))]).astype(np.float32)
    pairs, _ = duplicate_pairs(h, thumbnails)
    found = {(i, j) for i, j in pairs.tolist()}
    planted = {(i, n + i) for i in range(20)}
    assert len(found & planted) >= (20 if kind == "scenes" else 15)
    assert len(found - planted) <= 1


def test_the_same_frame_makes_no_duplicate() -> None:
    """Black bars above and below are much of what the details of two images have in common."""
    images = []
    for seed in (0, 1):
        image = scene(seed)
        ImageDraw.Draw(image).rectangle((0, 0, 96, 18), "black")
        ImageDraw.Draw(image).rectangle((0, 78, 96, 96), "black")
        images.append(image)
    thumbnails = torch.stack([small(image) for image in [*images, *(scene(seed) for seed in range(2, 40))]])
    h = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    h[1] = h[0]
    assert len(duplicate_pairs(h, thumbnails)[0]) == 0
    thumbnails[1] = small(compressed(images[0].crop((4, 0, 96, 92)), 50))
    assert duplicate_pairs(h, thumbnails)[0].tolist() == [[0, 1]]


def test_an_alignment_finds_the_crop_that_no_grid_has() -> None:
    original = scene(3)
    crop = small(original.crop((3, 8, 95, 91)).resize((60, 60), Image.Resampling.BICUBIC))
    both = torch.stack([small(original), crop]), torch.stack([crop, small(original)])
    assert (aligned_likeness(*both, 0.85) > 0.98).all()
    others = torch.stack([small(scene(4)), torch.zeros_like(crop)])
    assert aligned_likeness(both[0], others, 0.85).tolist() == [-1, -1]  # not worth refining
    nothing = torch.zeros(2, 32, 32, dtype=torch.uint8)
    assert aligned_likeness(nothing, nothing, 0.1).tolist() == [0, 0]
    assert aligned_likeness(nothing[:0], nothing[:0], 0.85).shape == (0,)
