"""Views per second on one thread: stepclr's two renderers, and pipelines of albumentations and torchvision.

    pip install '.[bench]'
    python benchmarks/views.py --cifar DIR --imagenette DIR [--policies]

The folders contain class folders of images, 32 x 32 and 96 x 96. All four make views by the same recipe from the same
decoded images: a bicubic crop of 0.08 (at 32 px: 0.2) to 1 of the area, flip, color jitter of strength 1 with
probability 0.8, grayscale 0.2, blur 0.5 with SimCLR's kernel, float32 `[3, S, S]` in [0, 1]. Each gets uint8 images in
the form that suits it best: stepclr a batch, and its time includes the keys and the parameters; albumentations arrays
`[H, W, 3]`, with OpenCV on one thread; torchvision PIL images. Where a crop shrinks, stepclr and torchvision antialias,
albumentations does not. At 224 px the images are 480 x 384 (stepclr keeps a short side of up to 448): mosaics of 5 x 4
images of Imagenette. The four take turns of half a second; the table has the medians of their turns and the ratios.

With --policies, the Numba renderer's own policies are compared with one another instead, each with its defaults.
"""

import argparse
import itertools
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from stepclr import Views, view_keys
from stepclr.views.reference import blur_kernel

try:
    import albumentations
    import cv2
    from albumentations.pytorch import ToTensorV2
except ModuleNotFoundError as missing:
    if "--policies" not in sys.argv:
        sys.exit(f"this compares with albumentations, and {missing.name} is not installed: pip install '.[bench]'")

TURNS, SECONDS = 5, 0.5
IMAGES = {32: 256, 96: 128, 224: 16}
POLICIES = ("simclr", "simaugment", "domain:aerial", "domain:microscopy", "domain:xray", "domain:document")
Array = NDArray[np.uint8]  # [H, W, 3]
Turn = Callable[[], int]  # makes some views and returns how many


def read(folder: Path, count: int) -> list[Array]:
    """`count` images, evenly chosen from all classes."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(files) < count:
        sys.exit(f"{folder}: {len(files)} images, but {count} are needed")
    return [np.array(Image.open(file).convert("RGB")) for file in files[:: len(files) // count][:count]]


def mosaics(images: list[Array], count: int) -> list[Array]:
    """Images made of 4 rows and 5 columns of images."""
    source = itertools.cycle(images)
    return [
        np.concatenate([np.concatenate([next(source) for _ in range(5)], axis=1) for _ in range(4)])
        for _ in range(count)
    ]


def stepclr_turn(images: list[Array], views: Views) -> Turn:
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    epochs = itertools.count()
    return lambda: views(batch, view_keys(0, next(epochs), range(len(batch)))).shape[:2].numel()


def albumentations_turn(images: list[Array], size: int, min_area: float) -> Turn:
    a, kernel = albumentations, blur_kernel(size)
    augment = a.Compose(
        [
            a.RandomResizedCrop((size, size), scale=(min_area, 1), interpolation=cv2.INTER_CUBIC),
            a.HorizontalFlip(p=0.5),
            a.ColorJitter((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2), p=0.8),
            a.ToGray(p=0.2),
            a.GaussianBlur(blur_limit=(kernel, kernel), sigma_limit=(0.1, 2.0), p=0.5),
            a.ToFloat(max_value=255),
            ToTensorV2(),
        ]
    )
    return lambda: len([augment(image=image)["image"] for image in images for _ in range(2)])


def torchvision_turn(pixels: list[Array], size: int, min_area: float) -> Turn:
    t = transforms
    augment = t.Compose(
        [
            t.RandomResizedCrop(size, (min_area, 1), interpolation=t.InterpolationMode.BICUBIC),
            t.RandomHorizontalFlip(),
            t.RandomApply([t.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            t.RandomGrayscale(0.2),
            t.RandomApply([t.GaussianBlur(blur_kernel(size), (0.1, 2.0))], 0.5),
            t.ToTensor(),
        ]
    )
    images = [Image.fromarray(pixels) for pixels in pixels]
    return lambda: len([augment(image) for image in images for _ in range(2)])


def views_per_second(turn: Turn) -> float:
    made, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < SECONDS:
        made += turn()
    return made / seconds


def table_of_policies(images: dict[int, list[Array]]) -> None:
    """Views per second of each policy that Numba renders, and that as a share of simclr's."""
    print(f"| px | {' | '.join(POLICIES)} |\n|{'---|' * (1 + len(POLICIES))}")
    for size, of_size in images.items():
        turns = [stepclr_turn(of_size, Views(policy, size, renderer="numba")) for policy in POLICIES]
        speeds = medians(turns)
        cells = [f"{speed:,.0f} ({speed / speeds[0]:.2f})" for speed in speeds]
        print(f"| {size} | {' | '.join(cells)} |", flush=True)


def medians(turns: list[Turn]) -> list[float]:
    """Views per second of each, which take turns."""
    for turn in turns:
        turn()  # compiling and allocating happen once, and are not measured
    speeds = [[views_per_second(turn) for turn in turns] for _ in range(TURNS)]
    return [statistics.median(each) for each in zip(*speeds, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--imagenette", type=Path, required=True)
    parser.add_argument("--policies", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    packages = ["torch", "numba", "torchvision", "pillow"]
    if not arguments.policies:
        cv2.setNumThreads(0)
        packages += ["albumentations", "opencv-python-headless"]
    print(f"{platform.processor() or platform.machine()}, 1 thread; {', '.join(f'{p} {version(p)}' for p in packages)}")
    imagenette = read(arguments.imagenette, IMAGES[96])
    images = {32: read(arguments.cifar, IMAGES[32]), 96: imagenette, 224: mosaics(imagenette, IMAGES[224])}
    if arguments.policies:
        table_of_policies(images)
        return
    names = ("stepclr numba", "stepclr torch", "albumentations", "torchvision PIL")
    print(f"| px | {' | '.join(names)} | numba / albumentations | numba / PIL |\n|{'---|' * 7}")
    for size, of_size in images.items():
        min_area = 0.2 if size == 32 else 0.08
        simclr = partial(Views, "simclr", size, strength=1.0, blur=0.5, min_area=min_area)
        turns = [
            stepclr_turn(of_size, simclr(renderer="numba")),
            stepclr_turn(of_size, simclr(renderer="torch")),
            albumentations_turn(of_size, size, min_area),
            torchvision_turn(of_size, size, min_area),
        ]
        ours, torchs, theirs, pil = medians(turns)
        cells = " | ".join(f"{speed:,.0f}" for speed in (ours, torchs, theirs, pil))
        print(f"| {size} | {cells} | {ours / theirs:.1f} | {ours / pil:.1f} |", flush=True)


if __name__ == "__main__":
    main()
