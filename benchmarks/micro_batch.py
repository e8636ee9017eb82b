"""Large batches on a small machine: memory, time and gradient of one training step, whole and in micro-batches.

    python benchmarks/micro_batch.py [--size 32] [--micro-batch 128] [--batches 256,512,1024,2048,4096] [--whole 1024]

ResNet-18 with stem `small-stride2`, SimCLR views of random images, SGD. Each row is a process of its own,
and its memory the whole process's peak. `--whole` is the largest batch that is also taken at once.

The last lines say how far the gradient in parts is from the one at once (distance over length, the whole vector; of a
batch of 256, in float32): with BatchNorm, which sees each part by itself, and with GroupNorm in its place.
"""

import argparse
import time
from functools import partial
from typing import Any, Literal

import torch
from memory import in_own_process, peak_mebibytes
from torch import Tensor, nn

import stepclr
from stepclr.config import PretrainConfig
from stepclr.distributed import ALONE
from stepclr.loss.objectives import OBJECTIVES
from stepclr.pretraining.gradcache import simclr_step_in_parts
from stepclr.pretraining.loop import train_step
from stepclr.pretraining.model import build_model
from stepclr.pretraining.optim import build_optimizer
from stepclr.pretraining.resolve import resolve, views_of
from stepclr.pretraining.step import simclr_step

COMPARED = 256  # images
Precision = Literal["auto", "fp32"]


def step(
    size: int, batch: int, micro_batch: int | None, precision: Precision, group_norm: bool = False, steps: int = 2
) -> tuple[float, float, Tensor]:
    """Peak memory in MiB, seconds of the last step, and its gradient."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    images = stepclr.open_images(pixels)
    wanted = PretrainConfig(
        "resnet18", stem="small-stride2", size=size, batch_size=batch, micro_batch=micro_batch, precision=precision
    )
    config = resolve(wanted, images)
    model = build_model(config, images).train()
    if group_norm:
        _use_group_norm(model.encoder)
    model.to(memory_format=torch.channels_last)
    optimizer, views, labels = build_optimizer(model, config), views_of(config), torch.zeros(batch).long()
    loss = OBJECTIVES[config.loss].bind(config.temperature, ALONE)
    algorithm: Any = simclr_step
    if micro_batch:
        algorithm = partial(simclr_step_in_parts, micro_batch=micro_batch, world=ALONE)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16")
    seconds = 0.0
    for number in range(steps):
        begun = time.perf_counter()
        inputs = (views, loss, pixels, stepclr.view_keys(0, number, range(batch)), labels)
        train_step(model, optimizer, algorithm, inputs, autocast, model.encoder if micro_batch else None)
        seconds = time.perf_counter() - begun
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return peak_mebibytes(), seconds, gradient


def _use_group_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            module.set_submodule(name, nn.GroupNorm(1, child.num_features))
        else:
            _use_group_norm(child)


def distance(size: int, micro_batch: int, group_norm: bool) -> float:
    """How far the gradient of COMPARED images in parts is from the one at once, over the latter's length."""
    parts, whole = (step(size, COMPARED, micro, "fp32", group_norm, steps=1)[2] for micro in (micro_batch, None))
    return float((parts - whole).norm() / whole.norm())


def memory_and_time(size: int, batch: int, micro_batch: int | None) -> tuple[float, float]:
    """Peak memory in MiB, and seconds of the second step."""
    return step(size, batch, micro_batch, "auto")[:2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=128)
    parser.add_argument("--batches", default="256,512,1024,2048,4096")
    parser.add_argument("--whole", type=int, default=1024)
    given = parser.parse_args()
    micro = given.micro_batch
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; ResNet-18, {given.size} px")
    print(f"| batch | at once: MiB | seconds | in parts of {micro}: MiB | seconds |\n|---|---|---|---|---|")
    for batch in map(int, given.batches.split(",")):
        row = [f"{batch:,}"]
        for part in (None, micro):
            if part or batch <= given.whole:
                memory, seconds = in_own_process(memory_and_time, given.size, batch, part)
                row += [f"{memory:,.0f}", f"{seconds:.1f}"]
            else:
                row += ["", ""]
        print(f"| {' | '.join(row)} |", flush=True)
    for name, group_norm in (("BatchNorm", False), ("GroupNorm", True)):
        off = in_own_process(distance, given.size, micro, group_norm)
        print(f"gradient in parts of {micro} against {COMPARED} at once, {name} in the encoder: {off:.1e}")


if __name__ == "__main__":
    main()
