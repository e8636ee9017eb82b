"""Memory and time of one optimization step of the large encoders, with and without keeping activations.

    python benchmarks/large_encoders.py [--size 96] [--batch 32]

Each row is a process of its own: a step of SimCLR (two views, NT-Xent, LARS) on random images, float32; its memory is
that of the whole process, Python and torch included (the row "nothing" is what those take).
"""

import argparse
import time
from contextlib import nullcontext

import torch
from memory import in_own_process, peak_mebibytes

import stepclr
from stepclr.config import PretrainConfig
from stepclr.distributed import ALONE
from stepclr.loss.objectives import OBJECTIVES
from stepclr.pretraining.loop import train_step
from stepclr.pretraining.model import build_model
from stepclr.pretraining.optim import build_optimizer
from stepclr.pretraining.resolve import resolve
from stepclr.pretraining.step import simclr_step
from stepclr.views.keys import view_keys
from stepclr.views.views import Views

ENCODERS = ("nothing", "resnet18", "resnet50", "resnet50x2", "resnet200", "vit_small_patch16_224")


def one_step(name: str, size: int, batch: int, again: bool) -> tuple[float, float]:
    """(peak memory in MiB, seconds of the second of two steps)."""
    seconds = 0.0
    if name != "nothing":
        pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
        images = stepclr.open_images(pixels)
        wanted = PretrainConfig(
            name, size=size, batch_size=batch, optimizer="lars", precision="fp32", checkpoint_activations=again
        )
        config = resolve(wanted, images)
        model = build_model(config, images).train().to(memory_format=torch.channels_last)
        optimizer = build_optimizer(model, config)
        loss = OBJECTIVES[config.loss].bind(config.temperature, ALONE)
        for step in range(2):
            begun = time.perf_counter()
            keys = view_keys(0, step, range(batch))
            inputs = (Views("simclr", size), loss, pixels, keys, torch.zeros(batch).long())
            train_step(model, optimizer, simclr_step, inputs, nullcontext(), model.encoder if again else None)
            seconds = time.perf_counter() - begun
    return peak_mebibytes(), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    print("| encoder | activations | peak memory, MiB | seconds a step |\n|---|---|---|---|")
    for name in ENCODERS:
        for again in (False, True) if name != "nothing" else (False,):
            memory, seconds = in_own_process(one_step, name, arguments.size, arguments.batch, again)
            print(f"| {name} | {'computed again' if again else 'kept'} | {memory:,.0f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
