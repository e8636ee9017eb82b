"""BatchNorm, the addition of a shortcut and ReLU in bfloat16 on a CPU: torch's three operations and the kernels in one.

    python benchmarks/norm.py [--rounds 15]

First single maps, forward and backward, then whole training steps of the networks that the recipes and other pages
use: forward and backward of the encoder for 128 images. The two ways take turns, round by round, so that a machine that
is slower for a while is so for both; a ratio is the median of the rounds' ratios, and its quartiles follow.
"""

import argparse
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median, quantiles

import torch
from torch import Tensor, nn

import stepclr
from stepclr.model.cpu_conv import cpu_convolutions
from stepclr.model.cpu_norm import cpu_norms, norm_relu
from stepclr.pretraining.malloc import freed_memory_kept

IMAGES = 128
MAPS = [(64, 32), (128, 16), (256, 8), (32, 32), (64, 24), (128, 12)]  # channels, side
NETWORKS = [
    ("resnet10x0.5", "small", 32),  # the recipe cifar10
    ("resnet10x0.5", "imagenet", 96),  # the recipe imagenette
    ("resnet18", "small", 32),
    ("resnet18", "small-stride2", 32),
    ("resnet18", "imagenet", 96),
    ("resnet50", "imagenet", 96),
]


def in_turns(ways: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each way in each round, after one that does not count."""
    taken: list[list[float]] = [[] for _ in ways]
    for number in range(rounds + 1):
        for way, times in zip(ways, taken, strict=True):
            since = time.perf_counter()
            way()
            if number:
                times.append(time.perf_counter() - since)
    return taken


def words(before: list[float], after: list[float]) -> str:
    ratios = [one / other for one, other in zip(before, after, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    both = f"{1000 * median(before):8.1f} ms by torch, {1000 * median(after):8.1f} ms in one"
    return f"{both}, {median(ratios):.2f} times ({low:.2f} to {high:.2f})"


def of_maps(channels: int, side: int, added: bool) -> list[Callable[[], object]]:
    """Forward and backward by torch, and in one."""
    shape = (IMAGES, channels, side, side)
    x, shortcut, g = torch.randn(3, *shape).bfloat16().unbind()
    x, shortcut, g = (each.to(memory_format=torch.channels_last) for each in (x, shortcut, g))
    layers = nn.Sequential(nn.BatchNorm2d(channels))
    other = shortcut.requires_grad_() if added else None
    inputs = [x.requires_grad_(), *layers.parameters(), *([] if other is None else [other])]

    def by_torch() -> tuple[Tensor, ...]:
        y: Tensor = layers[0](x)
        if other is not None:
            y += other
        return torch.autograd.grad(torch.relu_(y), inputs, g)

    def in_one() -> tuple[Tensor, ...]:
        with cpu_norms(layers):
            return torch.autograd.grad(norm_relu(x, layers[0], other), inputs, g)

    return [by_torch, in_one]


def of_network(name: str, stem: str, size: int) -> list[Callable[[], object]]:
    """A step of an encoder by torch, and in one."""
    encoder = stepclr.build_encoder(name, stem, size=size).to(memory_format=torch.channels_last).train()
    x = torch.rand(IMAGES, 3, size, size).to(memory_format=torch.channels_last)
    g = torch.randn(IMAGES, encoder.num_features)

    def step(in_one: bool) -> None:
        with ExitStack() as stack:
            if in_one:
                stack.enter_context(cpu_norms(encoder))
            stack.enter_context(cpu_convolutions(encoder))
            encoder.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                h = encoder(x)
            h.backward(g.to(h.dtype))

    return [lambda: step(False), lambda: step(True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    threads = torch.get_num_threads()
    print(
        f"{platform.processor() or platform.machine()}, {threads} threads, torch {torch.__version__}, {IMAGES} images"
    )
    with freed_memory_kept():
        for channels, side in MAPS:
            for added in (False, True):
                both = words(*in_turns(of_maps(channels, side, added), 3 * rounds))
                print(f"{channels}x{side}x{side}{', with a shortcut' if added else '':17}: {both}", flush=True)
        for name, stem, size in NETWORKS:
            both = words(*in_turns(of_network(name, stem, size), rounds))
            print(f"{name}, {stem}, {size} px: {both}", flush=True)


if __name__ == "__main__":
    main()
