"""Images per second from JPEG files to batches of two views: stepclr's loader compared with torchvision's, in one run.

    python benchmarks/loader.py FOLDER [--size 224] [--count 400] [--seconds 20]

FOLDER contains real images of about 96 px. They are joined without scaling to mosaics, so that their entropy is real,
in the mix of sizes of a photo folder: of 10 images four have 500x375 pixels, two 375x500, three 640x480 and one
1600x1200, as JPEG of quality 90 in two class folders. Both sides deliver batches of 64 images, two float32 views each.

torchvision's side is ImageFolder, SimCLR's transform applied twice to a PIL image, and a DataLoader with two workers.
stepclr's side is the `batches` of `pretrain` and `Views`: decoded again in each epoch (a budget of 0), and from the
cache. The sides take turns, twice. Also measured: the peak memory of stepclr's uncached side, early and at the end (it
reads one batch ahead, however long the epoch is); and the batches from the cache alone, compared with reading the
cache's file from end to end.
"""

import argparse
import itertools
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as tv
from torchvision.datasets import ImageFolder

import stepclr
from stepclr.data.decode import source_side
from stepclr.data.images import ImageSet
from stepclr.pretraining.batches import Batch, batches

BATCH, WARM_UP, TILE = 64, 2, 96
MIX = [(500, 375)] * 4 + [(375, 500)] * 2 + [(640, 480)] * 3 + [(1600, 1200)]


class TwoViews:
    """SimCLR's transform (App. A) on a PIL image, drawn twice."""

    def __init__(self, size: int) -> None:
        self.transform = tv.Compose(
            [
                tv.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=tv.InterpolationMode.BICUBIC),
                tv.RandomHorizontalFlip(),
                tv.RandomApply([tv.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
                tv.RandomGrayscale(0.2),
                tv.RandomApply([tv.GaussianBlur(size // 20 * 2 + 1, (0.1, 2.0))], 0.5),
                tv.ToTensor(),
            ]
        )

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(image), self.transform(image)


def make_photos(images: ImageSet, folder: Path, count: int) -> None:
    """Mosaics of the images, cut or padded to tiles of one size."""
    random = np.random.default_rng(0)
    for i in range(count):
        width, height = MIX[i % len(MIX)]
        photo = Image.new("RGB", (width, height))
        corners = list(itertools.product(range(0, width, TILE), range(0, height, TILE)))
        for corner, tile in zip(corners, images.read(random.integers(len(images), size=len(corners))), strict=True):
            photo.paste(Image.fromarray(tile.permute(1, 2, 0).numpy()), corner)
        path = folder / "ab"[i % 2] / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.save(path, quality=90)


def torchvision_batches(folder: Path, size: int) -> Iterator[int]:
    loader = DataLoader(
        ImageFolder(folder, TwoViews(size)), BATCH, True, num_workers=2, drop_last=True, persistent_workers=True
    )
    while True:
        for (view_i, _view_j), _label in loader:
            yield len(view_i)


def stepclr_batches(images: ImageSet, size: int) -> Iterator[int]:
    views = stepclr.Views("simclr", size)
    for epoch in itertools.count():
        for batch in batches(images, 0, epoch, BATCH, 0):
            view_i, _view_j = views(batch.images, stepclr.view_keys(0, epoch, batch.samples))
            yield len(view_i)


def images_per_second(delivered: Iterator[int], seconds: float) -> float:
    for _ in range(WARM_UP):
        next(delivered)
    images, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        images += next(delivered)
    return images / (time.perf_counter() - begun)


def batches_and_file(images: ImageSet, file: Path, seconds: float) -> tuple[float, float, float]:
    """(images/s, GB/s) of the batches alone, and GB/s of reading the cache's file into memory."""

    def epochs() -> Iterator[Batch]:
        for epoch in itertools.count():
            yield from batches(images, 0, epoch, BATCH, 0)

    pixels = bytes_ = 0
    begun = time.perf_counter()
    for batch in epochs():
        pixels += len(batch.samples)
        bytes_ += sum(image.numel() for image in batch.images)
        if (took := time.perf_counter() - begun) > seconds:
            break
    read, begun = 0, time.perf_counter()
    while (file_took := time.perf_counter() - begun) < seconds:
        read += len(file.read_bytes())
    return pixels / took, bytes_ / took / 1e9, read / file_took / 1e9


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads; torch {version('torch')}, "
        f"torchvision {version('torchvision')}, Pillow {version('pillow')}, stepclr {stepclr.__version__}\n"
        f"{given.count} JPEG files, two views of {given.size} px, batch {BATCH}, {given.seconds:g} s each"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photos"
        make_photos(stepclr.open_images(given.folder), folder, given.count)
        files, start = stepclr.open_images(folder), peak_mib()
        uncached = files.decoded(source_side(given.size), budget=0)
        delivered = stepclr_batches(uncached, given.size)
        images_per_second(delivered, 0)  # compiles and loads what is needed once
        early = peak_mib()
        for turn in (1, 2):
            ours = images_per_second(delivered, given.seconds)
            late = peak_mib()
            cached = files.decoded(source_side(given.size), cache_dir=Path(temporary) / "cache")
            again = images_per_second(stepclr_batches(cached, given.size), given.seconds)
            theirs = images_per_second(torchvision_batches(folder, given.size), given.seconds)
            print(
                f"turn {turn}: torchvision {theirs:.1f} images/s, stepclr {ours:.1f}, ratio {ours / theirs:.2f}; "
                f"from the cache {again:.1f}, ratio {again / theirs:.2f}"
            )
            if turn == 1:
                print(
                    f"memory of stepclr, uncached: peak of {start:.0f} MiB at the start, {early:.0f} after {WARM_UP} "
                    f"batches, {late:.0f} at the end"
                )
        (file,) = (Path(temporary) / "cache").glob("*.pixels")
        rate, speed, plain = batches_and_file(cached, file, given.seconds / 4)
        print(f"batches from the cache alone: {rate:.0f} images/s, {speed:.2f} GB/s; reading its file {plain:.2f} GB/s")


if __name__ == "__main__":
    main()
