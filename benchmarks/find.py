"""How many planted duplicates and outliers `stepclr find` finds, and how useful the labels chosen by `find next` are.

    python benchmarks/find.py RUN TRAIN TEST [FOREIGN ...]    # class folders or NAME:SPLIT; foreign ones need no label

Duplicates: versions of 200 of IMAGES images of TRAIN are added to them, one kind at a time. A version is found if it is
paired with its original; any other pair is false. Three methods: h alone, the details of the thumbnails alone
(`details.near_pairs`), both. Outliers: how many of 5 or 40 foreign images (or noise) among IMAGES are among the 40 most
unusual, by h alone and with the statistics of their thumbnails; mean of 5 draws.
Next: top-1 on TEST of a linear layer on h (lambda 0.1, fixed) from 10, 50 or 100 labels of
IMAGES images: drawn at random; chosen once, without labels; chosen in three rounds, each of which knows the labels of
the rounds before. 5 draws of the images (of 3/4 of TRAIN, if that is fewer), the same for all three.
"""

import argparse
import random
import time
from collections.abc import Callable

import numpy as np
import torch
from duplicates import KINDS, compressed, cropped
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

import stepclr
from stepclr.data.decode import upright_rgb
from stepclr.data.details import gray_thumbnail, near_pairs
from stepclr.evaluation.linear import principal_axes, standardize
from stepclr.evaluation.solver import solve
from stepclr.tools.curate.duplicates import duplicate_pairs
from stepclr.tools.curate.outliers import outlier_scores, pixel_statistics
from stepclr.tools.curate.suggest import choose_images
from stepclr.tools.images import jpeg_thumbnail

IMAGES, PLANTED, FOREIGN, ODDEST, DRAWS, BUDGETS, L2 = 2000, 200, (5, 40), 40, 5, (10, 50, 100), 0.1
MORE: dict[str, Callable[[Image.Image], Image.Image]] = {
    **{kind: KINDS[kind] for kind in ("quality 30", "quality 70", "size 60%", "crop 5%", "light 80%")},
    "crop 10%": lambda p: cropped(p, 0.1),
    "mirrored": lambda p: compressed(ImageOps.mirror(p), 85),
}
Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


class Versions(Dataset[tuple[Image.Image, int]]):
    """Images of any size."""

    def __init__(self, images: list[Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[i].permute(1, 2, 0).numpy()), -1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "train", "test"):
        parser.add_argument(name)
    parser.add_argument("foreign", nargs="*")
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    train = stepclr.open_images(given.train)
    h = stepclr.embed(given.run, train)
    generator = np.random.default_rng(0)
    some = np.sort(generator.permutation(len(train))[:IMAGES])
    plant(given.run, [train.read([int(i)])[0] for i in some], h[some])
    hide(given.run, given.foreign, train, h)
    test = stepclr.open_images(given.test)
    choose(h, train.labels, stepclr.embed(given.run, test), test.labels)
    print(f"{time.perf_counter() - begun:.0f} s")


def plant(run: str, images: list[Tensor], h: Vectors) -> None:
    """The table of duplicates."""
    n, small = len(images), [gray_thumbnail(upright_rgb(jpeg_thumbnail(image))) for image in images]
    print(f"| duplicates found, false of {n:,} + {PLANTED} | h | details | both |\n|---|---|---|---|", flush=True)
    for kind, version in MORE.items():
        random.seed(0)
        versions = [upright_rgb(version(Image.fromarray(p.permute(1, 2, 0).numpy()))) for p in images[:PLANTED]]
        every = np.concatenate([h, stepclr.embed(run, Versions(versions))])
        thumbnails = torch.stack([*small, *(gray_thumbnail(upright_rgb(jpeg_thumbnail(image))) for image in versions)])
        cells = []
        for pairs in (
            duplicate_pairs(every)[0],
            near_pairs(thumbnails)[0],
            duplicate_pairs(every, thumbnails)[0],
        ):
            found = {(i, j) for i, j in pairs.tolist()}
            hits = sum((i, n + i) in found for i in range(len(versions)))
            cells.append(f"{hits / len(versions):.1%}, {len(found) - hits}")
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


def hide(run: str, sources: list[str], train: stepclr.ImageSet, h: Vectors) -> None:
    """The table of outliers."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 64, 64, 3), dtype=np.uint8)
    kinds = {source: stepclr.open_images(source) for source in sources}
    kinds["noise"] = stepclr.open_images((noise, np.full(len(noise), -1)))
    header = " | ".join(f"{m} planted: h | with pixels" for m in FOREIGN)
    print(f"\n| foreign | {header} |\n|---|{'---|---|' * len(FOREIGN)}", flush=True)
    for kind, images in kinds.items():
        generator = np.random.default_rng(0)
        some = images.take(np.sort(generator.permutation(len(images))[:200]))
        strange = stepclr.embed(run, some)
        cells: list[str] = []
        for planted in FOREIGN:
            rates: dict[str, list[float]] = {"h": [], "with pixels": []}
            for _ in range(DRAWS):
                usual, foreign = generator.permutation(len(h))[:IMAGES], generator.permutation(len(some))[:planted]
                both = np.concatenate([h[usual], strange[foreign]])
                statistics = pixel_statistics([*thumbnails(train, usual), *thumbnails(some, foreign)])
                for method, given in (("h", None), ("with pixels", statistics)):
                    oddest = np.argsort(-outlier_scores(both, given), kind="stable")[:ODDEST]
                    rates[method].append((oddest >= len(usual)).sum() / planted)
            cells.extend(f"{np.mean(values):.0%}" for values in rates.values())
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


def thumbnails(images: stepclr.ImageSet, indices: Rows) -> list[Tensor]:
    """Images as an index has them."""
    return [upright_rgb(jpeg_thumbnail(images.read([int(i)])[0])) for i in indices]


def choose(h: Vectors, labels: Rows, h_test: Vectors, truth: Rows) -> None:
    """The table of `next`."""
    scores: dict[str, dict[int, list[float]]] = {how: {} for how in ("random", "next, no labels", "next, in rounds")}
    for draw in range(DRAWS):
        pool = np.random.default_rng(draw).permutation(len(h))[: min(IMAGES, 3 * len(h) // 4)]
        x, y = h[pool], labels[pool]
        none, told = np.full(len(x), -1), np.full(len(x), -1)
        once = choose_images(x, none, max(BUDGETS), draw)[0]
        for budget in BUDGETS:
            more = choose_images(x, told, budget - int((told >= 0).sum()), draw)[0]
            told[more] = y[more]
            chosen = {
                "random": np.arange(budget),
                "next, no labels": once[:budget],
                "next, in rounds": np.flatnonzero(told >= 0),
            }
            for how, rows in chosen.items():
                scores[how].setdefault(budget, []).append(top1(x[rows], y[rows], h_test, truth))
    print(f"\n| top-1 | {' | '.join(f'{b} labels' for b in BUDGETS)} |\n|---|{'---|' * len(BUDGETS)}")
    for how, of in scores.items():
        cells = [f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" for values in of.values()]
        if how != "random":
            wins = [sum(a > b for a, b in zip(of[n], scores["random"][n], strict=True)) for n in BUDGETS]
            cells = [f"{cell}, {won} of {DRAWS} won" for cell, won in zip(cells, wins, strict=True)]
        print(f"| {how} | {' | '.join(cells)} |", flush=True)


def top1(h: Vectors, labels: Rows, h_test: Vectors, truth: Rows) -> float:
    """Of a linear layer on h; `linear_evaluation` is for draws that have each class equally often."""
    classes, y = np.unique(labels, return_inverse=True)
    x, x_test = standardize(h, h_test)
    x, basis = principal_axes(x)
    layer = solve(x, y, np.full((len(x), 1), 1 / len(x)), L2)
    return float((classes[layer.logits(x_test @ basis)[:, 0].argmax(1)] == truth).mean())


if __name__ == "__main__":
    main()
