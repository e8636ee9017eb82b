"""Convolutions over tiny feature maps, as `model/cpu_conv.py` does them and as oneDNN does, in one run on one thread.

    python benchmarks/small_conv.py

Prints milliseconds of forward and backward in bfloat16, and their ratio, for batches from 32 (fine-tuning) to 512 (both
views of 256 images). Maps of at most 2x2 are taken as one matrix, larger ones tap by tap: the weights' gradient only.
"""

import time

import torch
from torch import nn

from stepclr.model.cpu_conv import SmallConv2d

SHAPES = (  # channels in and out, side, stride: ResNet-18's
    (512, 512, 2, 1),  # last stages at 32 px, stem small-stride2
    (256, 512, 4, 2),
    (256, 256, 4, 1),
    (512, 512, 4, 1),  # stem small
    (512, 512, 3, 1),  # at 96 px
    (256, 256, 6, 1),
)
BATCHES, ROUNDS = (32, 128, 512), 5


def milliseconds(convolution: nn.Conv2d, x: torch.Tensor) -> float:
    """The best of some rounds: these machines are shared."""
    times = []
    for _ in range(ROUNDS):
        convolution.zero_grad()
        x.grad = None
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            y = convolution(x)
        y.sum().backward()
        times.append(time.perf_counter() - begun)
    return 1000 * min(times)


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, forward + backward, bfloat16, one thread")
    for batch in BATCHES:
        for channels, out, side, stride in SHAPES:
            plain = nn.Conv2d(channels, out, 3, stride, 1, bias=False).to(memory_format=torch.channels_last)
            ours = SmallConv2d(nn.Conv2d(channels, out, 3, stride, 1, bias=False)).to(memory_format=torch.channels_last)
            x = torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
            a, b = milliseconds(plain, x), milliseconds(ours, x)
            shape = f"{channels}x{side}x{side} -> {out}, stride {stride}"
            print(f"batch {batch}, {shape}: oneDNN {a:.1f} ms, ours {b:.1f} ms, {a / b:.1f}x")


if __name__ == "__main__":
    main()
