"""The rows of the table: each method turns a labelled draw into predicted classes of the test images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray

from stepclr.data.images import ImageSet
from stepclr.evaluation import baselines
from stepclr.evaluation.finetune import Finetuning, finetuned
from stepclr.evaluation.init_from import Start
from stepclr.evaluation.linear import Fit, linear_evaluation
from stepclr.evaluation.prepare import all_logits, features
from stepclr.evaluation.scratch import Scratch
from stepclr.evaluation.splits import Draw, mix
from stepclr.metrics import weighted_knn
from stepclr.model.encoder import Encoder

METHODS = ("pixels", "random", "scratch", "simclr", "finetuned", "knn")  # in the order of the table
NEIGHBORS, TEMPERATURE = 20, 0.1  # of weighted kNN
Features = tuple[NDArray[np.float32], NDArray[np.float32]]  # of train, of test


@dataclass(frozen=True, eq=False)
class Task:
    """What a method is given: the frozen encoder, the images of train and test with their h, and the settings."""

    encoder: Encoder
    train: ImageSet
    test: ImageSet
    h: Float32[np.ndarray, "n f"]
    h_test: Float32[np.ndarray, "m f"]
    seed: int
    scratch_steps: int
    config: dict[str, Any]  # the run's config.json, where there is one


class Method(NamedTuple):
    """`predict` makes a row's values, a draw at a time; `chooses` names what it decides on the draw alone.

    `by_budget`: a budget's first draw decides for the others.
    """

    predict: Callable[[Draw], Fit]
    chooses: str
    settings: dict[str, Any]
    by_budget: bool = False


def method(name: str, task: Task) -> Method:
    """The method of that name, ready for the draws of this task in their order."""
    if name == "pixels":
        h = _both(task, baselines.pixels(task.encoder))
        return _linear(task, lambda _: h, baselines.PIXELS)
    if name == "random":
        # Draw k has one initialization for all budgets, and they come one after the other.
        return _linear(task, lru_cache(maxsize=1)(lambda number: _random(task, number)), baselines.RANDOM)
    if name == "scratch":
        min_area, bf16 = task.config.get("min_area", 0.2), task.config.get("precision") == "bf16"
        scratch = Scratch(task.encoder, task.train, task.test, task.scratch_steps, min_area, bf16)
        return Method(scratch, "rate", scratch.settings(), by_budget=True)
    if name == "simclr":
        return _linear(task, lambda _: (task.h, task.h_test), "the run's encoder, frozen")
    if name == "finetuned":
        return _finetuned(task)
    return _knn(task)


def _both(task: Task, encoder: Encoder) -> Features:
    return features(encoder, task.train), features(encoder, task.test)


def _random(task: Task, number: int) -> Features:
    encoder = baselines.fresh(task.encoder, mix(task.seed, number))
    baselines.set_batchnorm_statistics(encoder, task.train)
    return _both(task, encoder)


def _linear(task: Task, features_of: Callable[[int], Features], what: str) -> Method:
    labels = task.train.labels

    def predict(draw: Draw) -> Fit:
        h, h_test = features_of(draw.number)
        return linear_evaluation(h[draw.rows], labels[draw.rows], h_test, draw.seed)

    return Method(predict, "l2", {"linear evaluation of": what})


def _finetuned(task: Task) -> Method:
    how = Finetuning.of_run(task.config)

    def predict(draw: Draw) -> Fit:
        classifier = finetuned(Start(task.encoder), task.train.classes, task.train, draw, how)
        return Fit(all_logits(classifier, task.test).argmax(1).numpy(), how.training(len(draw.rows)).steps)

    return Method(predict, "steps", how.describe())


def _knn(task: Task) -> Method:
    def predict(draw: Draw) -> Fit:
        bank, labels = torch.from_numpy(task.h[draw.rows]), torch.from_numpy(task.train.labels[draw.rows])
        predicted = weighted_knn(bank, labels, torch.from_numpy(task.h_test), NEIGHBORS, TEMPERATURE)
        return Fit(predicted.numpy(), min(NEIGHBORS, len(bank)))

    return Method(predict, "k", {"weighted kNN of": "the run's encoder, frozen", "bank": "the draw", "T": TEMPERATURE})
