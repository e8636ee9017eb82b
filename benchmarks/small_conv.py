"""Convolutions over small feature maps by oneDNN, by patches and by a linear layer, in one run on one thread.

    python benchmarks/small_conv.py [--batches 32,128,512] [--threads 1]

Prints milliseconds in bfloat16 of the value, of the gradient of x and of that of the weight, each by oneDNN and by
patches, or by a linear layer where the map is smaller than the kernel, and says which way `model/cpu_conv.py` takes on
this processor. Batches are from 32 (fine-tuning) to 512 (both views of 256 images). Between two rounds 64 MiB of other
memory are written, as in a training step.
"""

import argparse
import time
from collections.abc import Callable
from math import prod
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from stepclr.model.cpu_conv import (
    as_linear,
    as_maps,
    as_rows,
    few,
    gradient,
    limits,
    sides_after,
    to_weight_as_linear,
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
    (192, 384, 4, 2),  # one of three quarters of the width
    (384, 384, 2, 1),
    (256, 512, 4, 2),  # one of full width
    (512, 512, 2, 1),
    (256, 512, 2, 2),  # the same, stem imagenet
    (512, 512, 1, 1),
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


Ways = dict[str, Callable[[], Tensor]]  # of a sum; the first is oneDNN's


def ways(x: Tensor, weight: Tensor, g: Tensor, stride: int) -> tuple[dict[str, Ways], dict[str, bool]]:
    """The ways to compute each of the three sums, and whether stepclr takes the last of them."""
    sides = x.shape[2:]
    sums: dict[str, Ways] = {
        "value": {"oneDNN": lambda: F.conv2d(x, weight, None, stride, 1)},
        "x": {"oneDNN": lambda: gradient((g, x, weight), stride, 1, of=0)},
        "weight": {"oneDNN": lambda: gradient((g, x, weight), stride, 1, of=1)},
    }
    sums["value"]["patches"] = lambda: value_by_patches(x, weight, stride, 1)
    if stride == 1:
        sums["x"]["patches"] = lambda: to_x_by_patches(g, weight, 1)
    sums["weight"]["patches"] = lambda: to_weight_by_patches(g, x, 3, stride, 1)
    if prod(sides) < weight[0, 0].numel():
        linear = as_linear(weight, sides, stride, 1)  # made once, with the value
        after = sides_after(sides, 3, stride, 1)
        sums["value"]["linear"] = lambda: as_maps(as_rows(x) @ as_linear(weight, sides, stride, 1).T, after)
        sums["x"]["linear"] = lambda: as_maps(as_rows(g) @ linear, sides)
        if not few(g):
            sums["weight"]["linear"] = lambda: to_weight_as_linear(g, x, 3, stride, 1)
        return sums, dict.fromkeys(sums, True)
    here, after = limits(), sides_after(sides, 3, stride, 1)
    small = here.takes_weight(stride, prod(after))
    value, to_x = here.takes_value(len(weight), prod(after)), here.takes_x(stride, x.shape[1], prod(sides))
    return sums, {"value": small and value, "x": small and to_x, "weight": small}


def compared(channels: int, out: int, side: int, stride: int, batch: int, other: Tensor) -> str:
    """A line: the milliseconds of each way to each sum; a star after the way that stepclr takes."""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape).bfloat16().to(memory_format=torch.channels_last)

    x, weight = random(batch, channels, side, side), random(out, channels, 3, 3)
    g = torch.randn_like(F.conv2d(x, weight, None, stride, 1))
    words = []
    sums, last_is_taken = ways(x, weight, g, stride)
    for name, of_sum in sums.items():
        taken = list(of_sum)[-1 if last_is_taken[name] else 0]
        times = [f"{way} {milliseconds(of_sum[way], other):.2f}{'*' if way == taken else ''}" for way in of_sum]
        words.append(f"{name}: {' / '.join(times)}")
    return "; ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="32,128,512")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    other = torch.zeros(2**24)
    print(f"torch {torch.__version__}, {given.threads} threads, {limits()}")
    print("milliseconds; * the way that stepclr takes")
    with freed_memory_kept():
        for batch in map(int, given.batches.split(",")):
            for channels, out, side, stride in SHAPES:
                line = compared(channels, out, side, stride, batch, other)
                print(f"batch {batch}, {channels}x{side}x{side} -> {out}, stride {stride}: {line}", flush=True)


if __name__ == "__main__":
    main()
