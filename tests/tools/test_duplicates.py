"""Near duplicates: versions of one image are found, and images that only resemble each other are not."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
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
