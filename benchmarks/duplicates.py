"""How many planted versions of images are found as near duplicates, and how many pairs are found among the originals.

    python benchmarks/duplicates.py DIR [DIR ...]    # folders of images, or NAME:SPLIT

Versions of the first 1,000 images, each kind against the whole set: a version is found if the original is among its
near duplicates. Natural pairs are those within the set; the seconds are the time to find them by their thumbnails.
Which of them are false a person must decide: --sheet FILE.png draws some.
"""

import argparse
import io
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Tensor

import stepclr
from stepclr.data.decode import upright_rgb
from stepclr.data.details import gray_thumbnail, near_pairs

PLANTED, SHOWN = 1000, 96
AnyImage = Image.Image


def compressed(image: AnyImage, quality: int) -> AnyImage:
    """Through a JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def resized(image: AnyImage, share: float) -> AnyImage:
    """Resized to that share of its sides, through a JPEG of quality 85."""
    sides = max(1, round(share * image.width)), max(1, round(share * image.height))
    return compressed(image.resize(sides, Image.Resampling.BICUBIC), 85)


def cropped(image: AnyImage, share: float) -> AnyImage:
    """Without that share of its sides, cropped at a random place, through a JPEG of quality 85."""
    width, height = share * image.width, share * image.height
    left, top = random.uniform(0, width), random.uniform(0, height)
    box = (round(left), round(top), round(image.width - width + left), round(image.height - height + top))
    return compressed(image.crop(box), 85)


def lit(image: AnyImage, factor: float) -> AnyImage:
    """Brighter or darker, through a JPEG of quality 85."""
    return compressed(ImageEnhance.Brightness(image).enhance(factor), 85)


KINDS: dict[str, Callable[[AnyImage], AnyImage]] = {
    **{f"quality {quality}": lambda p, quality=quality: compressed(p, quality) for quality in (30, 50, 70, 90)},  # type: ignore[misc]
    **{f"size {share:.0%}": lambda p, share=share: resized(p, share) for share in (0.6, 1.5)},  # type: ignore[misc]
    **{f"crop {share:.0%}": lambda p, share=share: cropped(p, share) for share in (0.03, 0.05)},  # type: ignore[misc]
    **{f"light {factor:.0%}": lambda p, factor=factor: lit(p, factor) for factor in (0.8, 1.2)},  # type: ignore[misc]
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--limit", type=int, default=50_000)
    parser.add_argument("--sheet", type=Path)
    given = parser.parse_args()
    random.seed(0)
    print(f"| images | natural pairs | seconds | {' | '.join(KINDS)} |\n|---|---|---|{'---|' * len(KINDS)}", flush=True)
    for source in given.sources:
        images = stepclr.open_images(source, limit=given.limit)
        pixels = [images.read([i])[0] for i in range(len(images))]
        every = torch.stack([gray_thumbnail(image) for image in pixels])
        begun = time.perf_counter()
        pairs, alike = near_pairs(every)
        seconds = time.perf_counter() - begun
        cells = []
        for version in KINDS.values():
            planted = [version(Image.fromarray(p.permute(1, 2, 0).numpy())) for p in pixels[:PLANTED]]
            thumbnails = torch.stack([gray_thumbnail(upright_rgb(image)) for image in planted])
            found = {(i, j) for i, j in near_pairs(thumbnails, every)[0].tolist()}
            cells.append(f"{sum((i, i) in found for i in range(len(planted))) / len(planted):.1%}")
        print(f"| {source}, {len(images):,} | {len(pairs):,} | {seconds:.0f} | {' | '.join(cells)} |", flush=True)
        if given.sheet:
            _draw(pixels, pairs[np.argsort(-alike)], given.sheet.with_stem(f"{given.sheet.stem}-{len(images)}"))


def _draw(images: list[Tensor], pairs: NDArray[np.int64], path: Path) -> None:
    """Draw SHOWN of the pairs, from the most to the least similar."""
    sheet = Image.new("RGB", (12 * 140, -(-SHOWN // 12) * 70), "white")
    for place, k in enumerate(np.linspace(0, len(pairs) - 1, min(SHOWN, len(pairs))).astype(int).tolist()):
        for side, i in enumerate(pairs[k].tolist()):
            image = Image.fromarray(images[i].permute(1, 2, 0).numpy()).resize((64, 64))
            sheet.paste(image, (place % 12 * 140 + side * 66, place // 12 * 70))
    sheet.save(path)


if __name__ == "__main__":
    main()
