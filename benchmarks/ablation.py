"""Which parts of the recipe matter? The recipe `cifar10`, and the same with one part changed, for as many epochs each.

The recipe is taken with the stem small-stride2, with NT-Xent and with views of one size, as it was when most of its
settings were chosen: a run takes half as long.

    python benchmarks/ablation.py TRAIN TEST [--epochs 5] [--seeds 0,1] [--variants NAME,NAME] [--out ablation.jsonl]

TRAIN and TEST are folders with a folder a class (all of CIFAR-10: 50,000 and 10,000 images); labels only score. No
variant takes a step longer than the recipe's, so that equal epochs are equal minutes. Each encoder is scored by
`stepclr.evaluate` with all labels of TRAIN on all of TEST, by weighted kNN (k = 20, T = 0.1), with whole images of the
size of the views. With --out, each row is added to the file as it comes, and a later call skips those that are there.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rows import Stored
from timm.models.resnet import BasicBlock
from torch import nn

import stepclr
from stepclr.errors import choose
from stepclr.pretraining.model import SimCLR, build_model
from stepclr.recipes import recipe_config

BASE = replace(recipe_config("cifar10"), stem="small-stride2", loss="nt-xent", progressive=False, test_scale=1)


def blocks_begin_with_their_branch(model: SimCLR) -> None:
    """The last BatchNorm of each residual block begins with gamma 1; the recipe's begins with 0, as the identity."""
    for block in model.encoder.modules():
        if isinstance(block, BasicBlock):
            nn.init.ones_(block.bn2.weight)  # type: ignore[arg-type]


def no_shift(model: SimCLR) -> None:
    """The head's last BatchNorm has no shift, as in the code of SimCLR's authors."""
    model.head.get_submodule("4").bias.requires_grad_(False)


def no_last_batchnorm(model: SimCLR) -> None:
    """The head ends with its last linear layer."""
    del model.head[-1]  # type: ignore[operator]


@dataclass(frozen=True)
class Variant:
    """What differs from the recipe: settings, or what was done to the new model."""

    settings: dict[str, Any] = field(default_factory=dict)
    change: Callable[[SimCLR], None] | None = None


VARIANTS = {
    "the recipe": Variant(),
    "decoupled loss": Variant({"loss": "dcl"}),
    "temperature 0.2": Variant({"temperature": 0.2}),
    "gamma of the blocks begins at 1": Variant(change=blocks_begin_with_their_branch),
    "head without its last shift": Variant(change=no_shift),
    "head without its last BatchNorm": Variant(change=no_last_batchnorm),
}


def knn(variant: Variant, train: Path, test: Path, epochs: float, seed: int) -> float:
    """kNN accuracy of an encoder that was pretrained on TRAIN, given no labels: there is no kNN to watch."""

    def build(*given: Any) -> SimCLR:
        model = build_model(*given)
        if variant.change:
            variant.change(model)
        return model

    images = stepclr.open_images(train)
    images = replace(images, classes=[], labels=images.labels * 0 - 1)
    config = replace(BASE, epochs=epochs, seed=seed, **variant.settings)
    with tempfile.TemporaryDirectory() as out, patch("stepclr.pretraining.api.build_model", build):
        stepclr.pretrain(images, Path(out) / "run", config=config, progress=False)
        (row,) = stepclr.evaluate(Path(out) / "run", train, test, probe="knn", baselines=()).rows
    return row.mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    stored = Stored(given.out, "cpu", quick=False)
    for seed, name in product(map(int, given.seeds.split(",")), given.variants.split(",")):
        variant = VARIANTS[choose("variant", name, VARIANTS)]
        row = f"{name}, {given.epochs:g} epochs, seed {seed}"
        if row not in stored.done:
            top1 = knn(variant, given.train, given.test, given.epochs, seed)
            stored.add(row, {"knn": top1}, measured=True)
            print(f"{row}: kNN {100 * top1:.1f}%", flush=True)


if __name__ == "__main__":
    main()
