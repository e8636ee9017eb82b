"""Networks with a filter per channel in bfloat16: a training step with and without `model/cpu_conv.py`, on one thread.

    python benchmarks/depthwise_conv.py

For each network: milliseconds of forward and backward, the best of 3, on 16 images of 96 px in channels_last, in
float32, in bfloat16 as oneDNN does it, and in bfloat16 as the package does. All three take turns in one run.
"""

import time
from collections.abc import Callable

import torch

import stepclr
from stepclr.model.cpu_conv import cpu_convolutions

NAMES = ("tf_efficientnet_lite0", "efficientnet_b0", "mobilenetv3_small_100", "convnext_atto")
ROUNDS = 3


def step(network: stepclr.Encoder, x: torch.Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        h = network(x)
    h.float().square().mean().backward()
    network.zero_grad()


def seconds(work: Callable[..., None], *given: object) -> float:
    begun = time.perf_counter()
    work(*given)
    return time.perf_counter() - begun


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 16 images of 96 px, milliseconds of a step")
    for name in NAMES:
        network = stepclr.build_encoder(name, size=96).train().to(memory_format=torch.channels_last)
        x = torch.rand(16, 3, 96, 96).contiguous(memory_format=torch.channels_last)
        times = []
        for _ in range(ROUNDS):
            plain, theirs = seconds(step, network, x, False), seconds(step, network, x, True)
            with cpu_convolutions(network):
                times.append((plain, theirs, seconds(step, network, x, True)))
        plain, theirs, ours = (1000 * min(column) for column in zip(*times, strict=True))
        print(f"{name}: float32 {plain:.0f}, bfloat16 {theirs:.0f}, here {ours:.0f}: {theirs / ours:.1f} times as fast")


if __name__ == "__main__":
    main()
