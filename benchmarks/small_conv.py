"""Convolutions over small feature maps, written out as patches and by oneDNN, in one run on one thread.

    python benchmarks/small_conv.py [--batches 32,128,512] [--threads 1]

Prints milliseconds in bfloat16 of the value, of the gradient of x and of that of the weight, each by oneDNN and by
patches, and says which way `model/cpu_conv.py` takes on this processor. Batches are from 32 (fine-tuning) to 512 (both
views of 256 images). Between two rounds 64 MiB of other memory are written, as in a training step.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from stepclr.model.cpu_conv import (
    gradient,
    limits,
    positions,
    to_weight_by_patches,
    to_x_by_patches,
    value_by_patches,
)
from stepclr.pretraining.malloc import freed_memory_kept

SHAPES = (  # channels in and out, side, stride
    (32, 64, 16, 2),  # a ResNet of half width at 32 px, stem small-stride2
    (64, 128, 8, 2),
    (128, 128, 4, 1),
    (128, 256, 4, 2),
    (256, 256, 2, 1),
    (256, 512, 4, 2),  # one of full width
    (512, 512, 2, 1),
    (256, 256, 4, 1),
    (512, 512, 4, 1),  # stem small
    (64, 128, 24, 2),  # at 96 px, stem imagenet
    (128, 256, 12, 2),
    (256, 512, 6, 2),
    (256, 256, 6, 1),
    (512, 512, 3, 1),
)
ROUNDS = 9


def milliseconds(work: Callable[[], Tensor], other: Tensor) -> float:
    """The median of some rounds."""
    times = []
    for _ in range(ROUNDS):
        other.add_(1)
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return 1000 * median(times)


def compared(channels: int, out: int, side: int, stride: int, batch: int, other: Tensor) -> str:
    """A line: oneDNN / patches = ratio of each sum; a star where stepclr takes patches."""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape).bfloat16().to(memory_format=torch.channels_last)

    x, weight = random(batch, channels, side, side), random(out, channels, 3, 3)
    g = torch.randn_like(F.conv2d(x, weight, None, stride, 1))
    here, after = limits(), positions(x, 3, stride, 1)
    small = here.takes_weight(stride, after)
    sums = {
        "value": (
            lambda: F.conv2d(x, weight, None, stride, 1),
            lambda: value_by_patches(x, weight, stride, 1),
            small and here.takes_value(out, after),
        ),
        "x": (
            lambda: gradient((g, x, weight), stride, 1, of=0),
            lambda: to_x_by_patches(g, weight, 1),
            small and here.takes_x(stride, side * side),
        ),
        "weight": (
            lambda: gradient((g, x, weight), stride, 1, of=1),
            lambda: to_weight_by_patches(g, x, 3, stride, 1),
            small,
        ),
    }
    if stride > 1:
        del sums["x"]  # always oneDNN's
    words = []
    for name, (by_onednn, by_patches, taken) in sums.items():
        a, b = milliseconds(by_onednn, other), milliseconds(by_patches, other)
        words.append(f"{name} {a:.2f} / {b:.2f} = {a / b:.2f}{'*' if taken else ''}")
    return ", ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="32,128,512")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    other = torch.zeros(2**24)
    print(f"torch {torch.__version__}, {given.threads} threads, {limits()}")
    print("oneDNN / patches, milliseconds; * where stepclr takes patches")
    with freed_memory_kept():
        for batch in map(int, given.batches.split(",")):
            for channels, out, side, stride in SHAPES:
                line = compared(channels, out, side, stride, batch, other)
                print(f"batch {batch}, {channels}x{side}x{side} -> {out}, stride {stride}: {line}", flush=True)


if __name__ == "__main__":
    main()
