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
- lightly-bf16: the same under bfloat16 autocast, with channels_last and with the network of stepclr's recipe, but for
  its stem, small-stride2: the loop has no smaller views to begin with, and full resolution takes three times as long.
- lightly-recipe: that, with the recipe's settings too (rate and its warm-up, decay, temperature, head and crops).
- stepclr-alike: stepclr with that stem and what lightly's loop has (NT-Xent, views of one size): what is left of the
  difference to lightly-recipe is how many images each loop gets through.

Each encoder is scored by `stepclr.evaluate` with all labels of TRAIN on all of TEST: weighted kNN (k = 20, T = 0.1) and
linear evaluation, with whole images of the size of its views (32 px) and of 1.5 times that (48 px), as the recipe has
them. The recipe was chosen on images of TRAIN alone.

With --out, each row is added to the file as it comes, and a later call skips those that are there. Minutes are wall
time: run it on a machine that does nothing else. What a row reaches depends only on its number of epochs, so with
`--pace-of 10` the length of a row follows from the row of 10 minutes of the same loop in --out (its epochs per second),
and the machine may do other things meanwhile. Such rows are not "clocked": lightly's network in bfloat16 then goes
through stepclr's layers for the CPU, the same sums in less time, and a stopped row of stepclr resumes from a folder
beside --out.
"""

import argparse
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lightly_loop import NAMES, LightlyLoop, Settings
from rows import Stored

import stepclr
from stepclr.config import ResolvedConfig
from stepclr.model.files import load_encoder, save_encoder
from stepclr.pretraining.optim import scaled_lr
from stepclr.pretraining.resolve import resolve
from stepclr.recipes import recipe_config

RECIPE = "cifar10"
BATCH = 128  # of lightly's benchmark
TRIAL = 60.0  # seconds
WARM_UP = 3  # steps
WITH_RECIPE = "lightly-recipe"
STEM = "small-stride2"  # of all loops but those with a stem of their own: stepclr and lightly
OURS: dict[str, dict[str, Any]] = {
    "stepclr": {},
    "stepclr-alike": {"stem": STEM, "loss": "nt-xent", "progressive": False},
}
LOOPS = (*OURS, *NAMES, WITH_RECIPE)
SIZE = 32  # of the views
SIZES = (32, 48)  # of the whole images that are scored


@dataclass(frozen=True)
class Trained:
    """What a loop made of its minutes."""

    encoder: str
    """Path of the run or of the encoder's file."""
    seconds: float
    epochs: float


def ours(train: Path, minutes: float, epochs: float | None, seed: int, out: Path, name: str) -> Trained:
    """`stepclr.pretrain`, given images without their labels: there is no kNN to watch."""
    images = stepclr.open_images(train)
    images = replace(images, classes=[], labels=images.labels * 0 - 1)
    length: dict[str, Any] = {"epochs": epochs, "minutes": None if epochs else minutes}
    config = replace(recipe_config(RECIPE), seed=seed, **length, **OURS[name])
    begun = time.perf_counter()
    run = stepclr.pretrain(images, out, config=config, progress=False, resume=True)
    return Trained(str(out), time.perf_counter() - begun, run.config.epochs)


def lightly(train: Path, minutes: float, epochs: float | None, seed: int, out: Path, name: str) -> Trained:
    """lightly's loop, for so many epochs, or for as many steps as fit."""
    images = stepclr.open_images(train)
    network, stem, bf16, settings = "resnet18", "small", False, Settings()
    if name != "lightly":
        recipe = resolve(recipe_config(RECIPE), images)
        network, stem, bf16 = recipe.encoder, STEM, True
        if name == WITH_RECIPE:
            settings = settings_of(recipe)

    def loop(length: int) -> LightlyLoop:
        torch.manual_seed(seed)
        return LightlyLoop(train, SIZE, stem, length, BATCH, bf16, network, settings=settings)

    length = int(epochs * len(images) / BATCH) if epochs else int(60 * minutes / pace_of(loop(10**6)))
    training = loop(length)
    # Where nothing is timed, what computes the network may be the faster one.
    with training.stepclr_layers() if epochs and bf16 else nullcontext():
        begun = time.perf_counter()
        seen = sum(training.steps())
        seconds = time.perf_counter() - begun
    save_encoder(training.encoder, out)
    return Trained(str(out), seconds, seen / len(images))


def settings_of(recipe: ResolvedConfig) -> Settings:
    """The settings of a recipe of stepclr in the terms of lightly's loop; a run here is shorter than 100 epochs."""
    return Settings(
        lr=scaled_lr(recipe.lr, BATCH, recipe.lr_scaling) / BATCH,
        warmup=0.1,
        nesterov=True,
        weight_decay=recipe.weight_decay,
        temperature=recipe.temperature,
        hidden=int(str(recipe.head).split("-")[0]),
        min_area=recipe.min_area,
    )


def pace_of(loop: LightlyLoop) -> float:
    """Seconds that a step takes, by a trial of a minute."""
    taken, begun = 0, 0.0
    for taken, _ in enumerate(loop.steps(endless=True)):
        if taken == WARM_UP:
            begun = time.perf_counter()
        if taken > WARM_UP and time.perf_counter() - begun > TRIAL:
            break
    return (time.perf_counter() - begun) / (taken - WARM_UP)


def paced(done: dict[str, Any], name: str, of: str, minutes: float) -> float:
    """How many epochs fit into `minutes` at the pace of the clocked row of `of` minutes."""
    rows = [result for row, result in done.items() if row.startswith(f"{name}, {of} minutes") and result["clocked"]]
    if not rows:
        raise SystemExit(f"--pace-of {of}: --out has no clocked row of {name} with {of} minutes")
    per_second = float(rows[0]["epochs"] / rows[0]["seconds"])
    return round(per_second * 60 * minutes, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--minutes", default="10,30,60")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--loops", default=",".join(LOOPS))
    parser.add_argument("--pace-of", metavar="MINUTES")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.pace_of and not given.out:
        parser.error("--pace-of needs --out, the file with the rows whose pace counts")
    versions = f"torch {torch.__version__}, lightly {version('lightly')}"
    print(f"{torch.get_num_threads()} threads, {versions}, recipe {RECIPE}", flush=True)
    stored = Stored(given.out, "cpu", quick=False)
    for minutes, seed, name in product(given.minutes.split(","), given.seeds.split(","), given.loops.split(",")):
        row = f"{name}, {minutes} minutes, seed {seed}"
        if row in stored.done:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            epochs, folder = None, Path(temporary)
            if given.pace_of:
                epochs = paced(stored.done, name, given.pace_of, float(minutes))
                folder = given.out.with_suffix(".runs") / row.replace(", ", "-").replace(" ", "-")
                folder.mkdir(parents=True, exist_ok=True)
            trained = train(name, given.train, float(minutes), epochs, int(seed), folder)
            result = {"seconds": trained.seconds, "epochs": trained.epochs, "clocked": not given.pace_of}
            for size in SIZES:
                result |= scored(trained, size, given.train, given.test)
        stored.add(row, result, measured=True)
        print(f"{row}: {result}", flush=True)


def train(name: str, images: Path, minutes: float, epochs: float | None, seed: int, folder: Path) -> Trained:
    """Train the encoder of a row, for so many epochs, or for as many as fit."""
    if name in OURS:
        return ours(images, minutes, epochs, seed, folder / "run", name)
    return lightly(images, minutes, epochs, seed, folder / "encoder.safetensors", name)


def scored(trained: Trained, size: int, train: Path, test: Path) -> dict[str, float]:
    """Its accuracies, where it represents whole images of this size."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.safetensors"
        save_encoder(load_encoder(trained.encoder).represent_at(size), path)
        scores = stepclr.evaluate(path, train, test, baselines=())
    top1 = {one.method: one.mean for one in scores.rows}
    return {f"knn at {size} px": top1["knn"], f"linear at {size} px": top1["simclr"]}


if __name__ == "__main__":
    main()
