"""Which views? Every augmentation policy with the same images, encoder, schedule and seeds, scored on held-out ones.

    python benchmarks/policies.py TRAIN TEST [--per-class 200] [--epochs 12] [--seeds 0,1] [--out runs/policies]

TRAIN and TEST are folders with a folder a class. `--per-class` images of each class of TRAIN are pretrained on
without their labels; then, with them, they are the bank of weighted kNN and what the linear layer learns from. Nothing
is chosen here: a policy has its defaults. Runs that are there already are not repeated: the script can be stopped.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import stepclr
from stepclr.recipes import recipe_config

POLICIES: dict[str, dict[str, Any]] = {
    "simclr": {"policy": "simclr"},
    "simaugment": {"policy": "simaugment"},
    "simaugment without warp": {"policy": "simaugment", "warp": 0.0},
    "autoaugment": {"policy": "autoaugment"},
    "randaugment": {"policy": "randaugment"},
    "stacked": {"policy": "stacked"},
}


def first_of_each_class(source: str, count: int) -> stepclr.ImageSet:
    """The first `count` images of each class, by name."""
    images = stepclr.open_images(source)
    rows = [np.flatnonzero(images.labels == label)[:count] for label in range(len(images.classes))]
    return images.take(np.concatenate(rows))


def score(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Top-1 of one policy and seed, by weighted kNN and by linear evaluation, and the minutes of its training."""
    out = arguments.out / f"{name.replace(' ', '-')}-{seed}"
    train = first_of_each_class(arguments.train, arguments.per_class)
    if not (out / "evaluation.json").exists():
        config = recipe_config("stl10")
        stepclr.pretrain(
            train, out, config=config, resume=(out / "config.json").exists(), epochs=arguments.epochs, batch_size=128,
            seed=seed, **POLICIES[name],
        )  # fmt: skip
        stepclr.evaluate(out, train, arguments.test, baselines=())
    rows = json.loads((out / "evaluation.json").read_text())["rows"]
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    scores = {row["method"]: row["mean"] for row in rows if row["labels_per_class"] == "all"}
    return {"knn": scores["knn"], "linear": scores["simclr"], "minutes": last["seconds"] / 60}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--per-class", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--out", type=Path, default=Path("runs/policies"))
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    print("| policy | kNN, each seed | mean | linear, each seed | mean | minutes |\n|---|---|---|---|---|---|")
    for name in POLICIES:
        found = [score(name, seed, arguments) for seed in seeds]
        cells = []
        for key in ("knn", "linear"):
            values = [one[key] for one in found]
            cells += [", ".join(f"{value:.3f}" for value in values), f"{np.mean(values):.3f}"]
        minutes = np.mean([one["minutes"] for one in found])
        print(f"| {name} | {' | '.join(cells)} | {minutes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
