"""Accuracy per minute: stepclr's CPU recipe against lightly's own CIFAR-10 benchmark, on images without labels.

    pip install '.[bench]'
    python benchmarks/accuracy_per_minute.py speed TRAIN [--epochs 2]
    python benchmarks/accuracy_per_minute.py score TRAIN TEST --loop lightly --epochs 15 [--seed 0]
    python benchmarks/accuracy_per_minute.py score TRAIN TEST --loop lightly-bf16 --epochs 15
    python benchmarks/accuracy_per_minute.py score TRAIN TEST --loop stepclr --epochs 6

TRAIN and TEST are folders with a folder a class (RESULTS.md: 1,000 and 500 files of each CIFAR-10 class); labels only
score. Everyone trains a ResNet-18 with stem `small-stride2` at 32 px. "lightly" is the loop of its own benchmark in
float32 (lightly_loop.py), "lightly-bf16" the same under autocast and with channels_last, and "stepclr" is `--recipe` as
it stands. What a loop reaches after so many epochs does not depend on the machine's speed, and what an epoch takes not
on the schedule: `speed` times all three in turn, in one run on a quiet machine, and `score` trains one to the end, with
the cosine of that many epochs. The product is the time that a score takes.

The score is weighted kNN (k = 20, T = 0.1, float32 h of the last epoch, TRAIN with its labels as the bank, TEST as the
queries), each encoder with the preprocessing that it was trained with. Seconds are wall time: lightly's of so many
epochs, from the first batch asked for on; stepclr's of the whole `pretrain` call over so many epochs, start, decoding
and checkpoints included; a progressive recipe is timed over its whole schedule. Nobody watches kNN meanwhile. Numbers
of epochs are chosen beforehand, on other images.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from lightly_loop import NAMES, LightlyLoop

import stepclr
from stepclr.metrics import weighted_knn
from stepclr.model.features import represent
from stepclr.recipes import recipe_config

SIZE = 32
STEM: Literal["small-stride2"] = "small-stride2"


def knn(encoder: stepclr.Encoder, train: Path, test: Path) -> float:
    """Top-1 by weighted kNN."""
    bank, queries = stepclr.open_images(train), stepclr.open_images(test)
    (known, kept), (h, rows) = represent(encoder, bank), represent(encoder, queries)
    found = weighted_knn(known, torch.from_numpy(bank.labels[kept]), h)
    return float((found == torch.from_numpy(queries.labels[rows])).double().mean())


def lightly(train: Path, epochs: int, seed: int, bf16: bool) -> tuple[float, stepclr.Encoder]:
    """Seconds and encoder of lightly's loop."""
    torch.manual_seed(seed)
    loop = LightlyLoop(train, SIZE, STEM, epochs, bf16=bf16)
    begun = time.perf_counter()
    for _ in loop.steps():
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
    parser.add_argument("--loop", choices=(*NAMES, "stepclr"), default="stepclr")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    train, recipe, epochs, seed = given.train, given.recipe, given.epochs, given.seed
    loops: dict[str, Callable[[], tuple[float, stepclr.Encoder]]] = {
        **{name: partial(lightly, train, epochs, seed, bf16) for name, bf16 in NAMES.items()},
        "stepclr": partial(ours, train, recipe, epochs, seed),
    }
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, lightly {version('lightly')}, recipe {recipe}, "
        f"seed {seed}"
    )
    if given.what == "score":
        seconds, encoder = loops[given.loop]()
        print(f"{given.loop}, {epochs} epochs: kNN {knn(encoder, train, given.test):.4f} ({seconds:.0f} s here)")
        return
    for turn in (1, 2):
        spent = {name: loop()[0] / epochs for name, loop in loops.items()}
        each = ", ".join(f"{name} {seconds:.1f} s an epoch" for name, seconds in spent.items())
        shares = ", ".join(f"{spent['stepclr'] / spent[name]:.3f} of {name}'s" for name in NAMES)
        print(f"turn {turn}: {each}; stepclr takes {shares}", flush=True)


if __name__ == "__main__":
    main()
