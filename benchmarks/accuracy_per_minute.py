"""Accuracy per minute: stepclr's CPU recipe against lightly's documented loop, on CIFAR-10 images without labels.

    pip install '.[bench]'
    python benchmarks/accuracy_per_minute.py speed TRAIN [--epochs 2]
    python benchmarks/accuracy_per_minute.py score TRAIN TEST --loop lightly --epochs 15 [--seed 0]
    python benchmarks/accuracy_per_minute.py score TRAIN TEST --loop lightly-tuned --epochs 15
    python benchmarks/accuracy_per_minute.py score TRAIN TEST --loop stepclr --epochs 6

TRAIN and TEST are folders with a folder a class (RESULTS.md: 1,000 and 500 files of each CIFAR-10 class); labels only
score. Everyone trains a ResNet-18 with stem `small-stride2` at 32 px. "lightly" is the loop as its page has it, batch
256; "lightly-tuned" the same with the recipe's temperature, crop scale, batch and peak learning rate; "stepclr" is
`--recipe` as it stands. What a loop reaches after so many epochs does not depend on the machine's speed, and what an
epoch takes not on the schedule: `speed` times all three in turn, in one run on a quiet machine, and `score` trains one
to the end. The product is the time that a score takes.

The score is weighted kNN (k = 20, T = 0.1, float32 h of the last epoch, TRAIN with its labels as the bank, TEST as the
queries). Seconds are wall time: lightly's of so many epochs, from the first batch asked for on; stepclr's of the whole
`pretrain` call over so many epochs, start, decoding and checkpoints included; a progressive recipe is timed over its
whole schedule. Nobody watches kNN meanwhile. Numbers of epochs are chosen beforehand, on other images.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from lightly_loop import LightlyLoop, Settings

import stepclr
from stepclr.metrics import weighted_knn
from stepclr.model.features import represent
from stepclr.pretraining.optim import scaled_lr
from stepclr.pretraining.resolve import resolve
from stepclr.recipes import recipe_config

SIZE = 32
STEM: Literal["small-stride2"] = "small-stride2"


def knn(encoder: stepclr.Encoder, train: Path, test: Path) -> float:
    """Top-1 by weighted kNN."""
    bank, queries = stepclr.open_images(train), stepclr.open_images(test)
    (known, kept), (h, rows) = represent(encoder, bank), represent(encoder, queries)
    found = weighted_knn(known, torch.from_numpy(bank.labels[kept]), h)
    return float((found == torch.from_numpy(queries.labels[rows])).double().mean())


def lightly(train: Path, settings: Settings, epochs: int, seed: int) -> tuple[float, stepclr.Encoder]:
    """Seconds and encoder of lightly's loop."""
    torch.manual_seed(seed)
    loop = LightlyLoop(train, SIZE, STEM, settings)
    begun = time.perf_counter()
    for _ in loop.steps(epochs):
        pass
    return time.perf_counter() - begun, loop.encoder


def ours(train: Path, recipe: str, epochs: int, seed: int) -> tuple[float, stepclr.Encoder]:
    """Seconds and encoder of `stepclr.pretrain`, given images without their labels: there is no kNN to watch."""
    images = stepclr.open_images(train)
    images = replace(images, classes=[], labels=images.labels * 0 - 1)
    with tempfile.TemporaryDirectory() as out:
        config = replace(recipe_config(recipe), encoder="resnet18", stem=STEM, epochs=epochs, seed=seed)
        begun = time.perf_counter()
        run = stepclr.pretrain(images, Path(out) / "run", config=config, progress=False)
        return time.perf_counter() - begun, run.encoder()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "score"))
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path, nargs="?")
    parser.add_argument("--loop", choices=("lightly", "lightly-tuned", "stepclr"), default="stepclr")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    train, recipe, epochs, seed = given.train, given.recipe, given.epochs, given.seed
    config = resolve(recipe_config(recipe), stepclr.open_images(train))
    tuned = Settings(
        config.batch_size,
        config.temperature,
        config.min_area,
        scaled_lr(config.lr, config.batch_size, config.lr_scaling),
    )
    loops: dict[str, Callable[[], tuple[float, stepclr.Encoder]]] = {
        "lightly": lambda: lightly(train, Settings(), epochs, seed),
        "lightly-tuned": lambda: lightly(train, tuned, epochs, seed),
        "stepclr": lambda: ours(train, recipe, epochs, seed),
    }
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, recipe {recipe}, seed {seed}; {tuned}")
    if given.what == "score":
        seconds, encoder = loops[given.loop]()
        print(f"{given.loop}, {epochs} epochs: kNN {knn(encoder, train, given.test):.4f} ({seconds:.0f} s here)")
        return
    for turn in (1, 2):
        spent = {name: loop()[0] / epochs for name, loop in loops.items()}
        each = ", ".join(f"{name} {seconds:.1f} s an epoch" for name, seconds in spent.items())
        shares = ", ".join(f"{spent['stepclr'] / spent[name]:.3f} of {name}'s" for name in ("lightly", "lightly-tuned"))
        print(f"turn {turn}: {each}; stepclr takes {shares}", flush=True)


if __name__ == "__main__":
    main()
