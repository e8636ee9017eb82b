"""The ladder: what 10, 30 and 60 minutes of pretraining reach, stepclr beside lightly, on images without labels.

    pip install '.[bench]'
    python benchmarks/ladder.py TRAIN TEST --minutes 10 --seeds 0,1 --out ladder.jsonl
    python benchmarks/ladder.py TRAIN TEST --minutes 10 --loops stepclr

TRAIN and TEST are folders with a folder a class (all of CIFAR-10: 50,000 and 10,000 images); labels only score. A row
is a loop, a number of minutes and a seed; it is trained from the beginning, with a cosine that ends with its time:

- stepclr: `stepclr pretrain TRAIN --recipe cifar10 --minutes M`, given no labels. Its M minutes are those of the whole
  command: start, decoding, the trial that decides how many epochs fit, and checkpoints.
- lightly: the loop of lightly's own CIFAR-10 benchmark (lightly_loop.py) in float32, with its network, a ResNet-18
  whose stem keeps the full resolution. Its M minutes are those of the steps alone: a trial of a minute, which does
  not count, decides how many.
- lightly-bf16: the same under bfloat16 autocast, with channels_last and with the network of stepclr's recipe.

Each encoder is scored by `stepclr.evaluate` with all labels of TRAIN on all of TEST, with the preprocessing that it was
trained with: weighted kNN (k = 20, T = 0.1) and linear evaluation. The recipe was chosen on images of TRAIN alone.

With --out, each row is added to the file as it comes, and a later call skips those that are there. Run it on a machine
that does nothing else: minutes are wall time.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from lightly_loop import NAMES, LightlyLoop
from rows import Stored

import stepclr
from stepclr.model.files import save_encoder
from stepclr.recipes import recipe_config

RECIPE = "cifar10"
BATCH = 128  # of lightly's benchmark
TRIAL = 60.0  # seconds
WARM_UP = 3  # steps


@dataclass(frozen=True)
class Trained:
    """What a loop made of its minutes."""

    encoder: str
    """Path of the run or of the encoder's file."""
    seconds: float
    epochs: float


def ours(train: Path, minutes: float, seed: int, out: Path) -> Trained:
    """`stepclr.pretrain`, given images without their labels: there is no kNN to watch."""
    images = stepclr.open_images(train)
    images = replace(images, classes=[], labels=images.labels * 0 - 1)
    config = replace(recipe_config(RECIPE), epochs=None, minutes=minutes, seed=seed)
    begun = time.perf_counter()
    run = stepclr.pretrain(images, out, config=config, progress=False)
    return Trained(str(out), time.perf_counter() - begun, run.config.epochs)


def lightly(train: Path, minutes: float, seed: int, out: Path, bf16: bool) -> Trained:
    """lightly's loop, for as many steps as fit."""
    network, stem = "resnet18", "small"
    if bf16:
        recipe = recipe_config(RECIPE)
        network, stem = str(recipe.encoder), str(recipe.stem)

    def loop(length: int) -> LightlyLoop:
        torch.manual_seed(seed)
        return LightlyLoop(train, 32, stem, length, BATCH, bf16, network)

    taken, begun = 0, 0.0
    for taken, _ in enumerate(loop(10**6).steps(endless=True)):
        if taken == WARM_UP:
            begun = time.perf_counter()
        if taken > WARM_UP and time.perf_counter() - begun > TRIAL:
            break
    pace = (time.perf_counter() - begun) / (taken - WARM_UP)

    training = loop(int(60 * minutes / pace))
    begun = time.perf_counter()
    images = sum(training.steps())
    seconds = time.perf_counter() - begun
    save_encoder(training.encoder, out)
    return Trained(str(out), seconds, images / len(stepclr.open_images(train)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--minutes", default="10,30,60")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--loops", default=",".join(("stepclr", *NAMES)))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    versions = f"torch {torch.__version__}, lightly {version('lightly')}"
    print(f"{torch.get_num_threads()} threads, {versions}, recipe {RECIPE}", flush=True)
    stored = Stored(given.out, "cpu", quick=False)
    for minutes, seed, name in product(given.minutes.split(","), given.seeds.split(","), given.loops.split(",")):
        row = f"{name}, {minutes} minutes, seed {seed}"
        if row in stored.done:
            continue
        result = measured(name, given.train, given.test, float(minutes), int(seed))
        stored.add(row, result, measured=True)
        print(f"{row}: {result}", flush=True)


def measured(name: str, train: Path, test: Path, minutes: float, seed: int) -> dict[str, float]:
    """Train and score one row."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "encoder.safetensors"
        if name == "stepclr":
            trained = ours(train, minutes, seed, Path(folder) / "run")
        else:
            trained = lightly(train, minutes, seed, out, NAMES[name])
        scores = stepclr.evaluate(trained.encoder, train, test, baselines=())
    top1 = {one.method: one.mean for one in scores.rows}
    return {"knn": top1["knn"], "linear": top1["simclr"], "seconds": trained.seconds, "epochs": trained.epochs}


if __name__ == "__main__":
    main()
