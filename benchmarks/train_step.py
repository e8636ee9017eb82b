"""Images a second of the whole training loop: stepclr's against lightly's SimCLR loop, in one run.

    pip install '.[bench]'
    python benchmarks/train_step.py FOLDER [--size 32] [--batch 128] [--stem small] [--seconds 60]

FOLDER holds images (any class folders are ignored). Both train a ResNet-18 of the same shape on the same images
with the same batch. "lightly" is the loop of its own benchmark (lightly_loop.py) with two DataLoader workers, in
float32; "lightly-bf16" the same under autocast and with channels_last, so that engineering and precision are told
apart. stepclr's side is `stepclr pretrain` with its defaults. Each side runs for the given time after a warm-up;
loading and start-up do not count. They take turns, twice.
"""

import argparse
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightly_loop import NAMES, LightlyLoop

import stepclr
from stepclr.config import PretrainConfig
from stepclr.device import bf16_helps
from stepclr.pretraining import loop

WARM_UP = 3  # steps
Stem = Literal["imagenet", "small", "small-stride2"]


def lightly_images_a_second(folder: Path, size: int, batch: int, stem: Stem, seconds: float, bf16: bool) -> float:
    """Images over time of lightly's loop."""
    images, begun = 0, 0.0
    loop = LightlyLoop(folder, size, stem, epochs=1000, batch=batch, bf16=bf16)
    for step, count in enumerate(loop.steps(endless=True), 1):
        if step == WARM_UP:
            begun = time.perf_counter()
        elif step > WARM_UP:
            images += count
            if time.perf_counter() - begun > seconds:
                break
    return images / (time.perf_counter() - begun)


def stepclr_images_a_second(folder: Path, size: int, batch: int, stem: Stem, seconds: float) -> float:
    """The real `pretrain`, stopped after `seconds`: images over time between two lines of its own log."""
    begun: list[float] = []
    step = loop.train_step

    def timed(*args: Any) -> Any:
        if len(begun) > WARM_UP and time.perf_counter() - begun[WARM_UP] > seconds:
            raise TimeoutError
        begun.append(time.perf_counter())
        return step(*args)

    loop.train_step = timed  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory() as out:
            config = PretrainConfig("resnet18", stem=stem, size=size, batch_size=batch, epochs=1000)
            stepclr.pretrain(folder, Path(out) / "run", config=config, progress=False)
    except TimeoutError:
        pass
    finally:
        loop.train_step = step
    return batch * (len(begun) - 1 - WARM_UP) / (begun[-1] - begun[WARM_UP])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--stem", default="small", choices=get_args(Stem))
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, bf16 {bf16_helps()}; "
        f"torch {version('torch')}, lightly {version('lightly')}, stepclr {stepclr.__version__}\n"
        f"ResNet-18, stem {given.stem}, {given.size} px, batch {given.batch}, {given.seconds:g} s each"
    )
    setting = (given.folder, given.size, given.batch, given.stem, given.seconds)
    for turn in (1, 2):
        theirs = {name: lightly_images_a_second(*setting, bf16) for name, bf16 in NAMES.items()}
        ours = stepclr_images_a_second(*setting)
        words = [f"{name} {speed:.1f} images/s (ratio {ours / speed:.2f})" for name, speed in theirs.items()]
        print(f"turn {turn}: stepclr {ours:.1f} images/s, {', '.join(words)}", flush=True)


if __name__ == "__main__":
    main()
