"""kNN over training time: stepclr's CPU recipe against lightly's documented loop, one after the other on one machine.

    pip install '.[bench]'
    python benchmarks/accuracy_per_minute.py TRAIN TEST [--epochs 15] [--recipe cifar10] [--short 4] [--middle 6]

TRAIN and TEST are folders with a folder a class (RESULTS.md: 1,000 and 500 files of each CIFAR-10 class); labels only
score. Everyone trains a ResNet-18 with stem `small-stride2`, at 32 px. Five runs, in this order:

1. lightly: the loop as its page has it, batch 256, for `--epochs`;
2. lightly, tuned: the same with the recipe's temperature, crop scale, batch and (peak) learning rate;
3. stepclr, `--recipe` for `--short` epochs, to reach the first run's score;
4. stepclr for `--middle` epochs, to reach the second run's;
5. stepclr for as many epochs as fit into the first run's time, by the speed of runs 3 and 4.

The score is weighted kNN (k = 20, T = 0.1, float32 h of the last epoch, TRAIN with its labels as the bank, TEST as the
queries). Seconds are wall time of training: lightly's from the first batch asked for to the last step; stepclr's of the
whole `pretrain` call, reading and decoding included, less the watching of kNN, which `--monitor` would do and lightly's
loop does not. Numbers of epochs are chosen beforehand, on other pictures.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from lightly_loop import LightlyLoop, Settings

import stepclr
from stepclr.model import represent
from stepclr.pretrain.optimizer import peak_rate
from stepclr.pretrain.settle import settle
from stepclr.recipes import recipe_config
from stepclr.signals import weighted_knn

SIZE = 32
STEM: Literal["small-stride2"] = "small-stride2"


def knn(encoder: stepclr.Encoder, train: Path, test: Path) -> float:
    """Top-1 by weighted kNN."""
    bank, queries = stepclr.open_images(train), stepclr.open_images(test)
    (known, kept), (h, rows) = represent(encoder, bank), represent(encoder, queries)
    found = weighted_knn(known, torch.from_numpy(bank.labels[kept]), h)
    return float((found == torch.from_numpy(queries.labels[rows])).double().mean())


def lightly(train: Path, test: Path, epochs: int, settings: Settings, seed: int) -> tuple[float, float]:
    """(seconds, kNN) of lightly's loop."""
    torch.manual_seed(seed)
    loop = LightlyLoop(train, SIZE, STEM, settings)
    begun = time.perf_counter()
    for _ in loop.steps(epochs):
        pass
    return time.perf_counter() - begun, knn(loop.encoder, train, test)


def ours(train: Path, test: Path, epochs: int, recipe: str, seed: int) -> tuple[float, float]:
    """(seconds, kNN) of `stepclr.pretrain`, which watches nothing: it is given pictures without their labels."""
    images = replace(stepclr.open_images(train), classes=[])
    images = replace(images, labels=images.labels * 0 - 1)
    with tempfile.TemporaryDirectory() as out:
        config = replace(recipe_config(recipe), encoder="resnet18", stem=STEM, epochs=epochs, seed=seed)
        begun = time.perf_counter()
        run = stepclr.pretrain(images, Path(out) / "run", config=config, progress=False)
        return time.perf_counter() - begun, knn(run.encoder(), train, test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--short", type=int, default=4)
    parser.add_argument("--middle", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    train, test, seed = given.train, given.test, given.seed
    config = settle(recipe_config(given.recipe), stepclr.open_images(train))
    tuned = Settings(config.batch_size, config.temperature, config.crop_area, peak_rate(config))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, recipe {given.recipe}, seed {seed}; {tuned}")
    print("| run | epochs | seconds | kNN | share of lightly's time | of lightly's, tuned |\n|---|---|---|---|---|---|")
    times: list[float] = []

    def row(name: str, epochs: int, measured: tuple[float, float]) -> None:
        times.append(measured[0])
        shares = " | ".join(f"{measured[0] / base:.0%}" for base in times[:2]) + (" |" if len(times) < 2 else "")
        print(f"| {name} | {epochs} | {measured[0]:.0f} | {measured[1]:.4f} | {shares} |", flush=True)

    row("lightly", given.epochs, lightly(train, test, given.epochs, Settings(), seed))
    row("lightly, tuned", given.epochs, lightly(train, test, given.epochs, tuned, seed))
    for epochs in (given.short, given.middle):
        row("stepclr", epochs, ours(train, test, epochs, given.recipe, seed))
    full = max(1, int(times[0] / (times[-1] + times[-2]) * (given.short + given.middle)))
    row("stepclr", full, ours(train, test, full, given.recipe, seed))


if __name__ == "__main__":
    main()
