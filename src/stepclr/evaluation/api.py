"""The protocol: an encoder, labelled images to learn from and others to score on -> evaluation.json.

All predictions are made first; then, once, the labels of the test images are read: no number can be chosen on them.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepclr.data.images import ImageSet
from stepclr.data.sources import Source, open_images
from stepclr.device import default_device
from stepclr.distributed import World, join
from stepclr.errors import StepclrError, choose
from stepclr.evaluation import linear
from stepclr.evaluation.confusion import MOST, confusion
from stepclr.evaluation.linear import Fit
from stepclr.evaluation.methods import METHODS, Method, Task, method
from stepclr.evaluation.prepare import prepare, score_row, shared_classes
from stepclr.evaluation.splits import Budget, Draw, draw_all, read_budgets
from stepclr.model.files import load_encoder, state_checksum
from stepclr.pretraining.run import Run
from stepclr.threads import Progress

PROBES = {"linear": "simclr", "knn": "knn"}  # and the row that each gives
SHOWN = ("simclr", "finetuned", "knn")  # whose mistakes are told: the first of these
BASELINES = ("pixels", "random", "scratch")
Json = dict[str, Any]
Predictions = dict[tuple[str, Budget], list[Fit]]


def evaluate(
    run: str | os.PathLike[str],
    train: Source,
    test: Source,
    labels_per_class: Budget | Sequence[Budget] = "all",
    draws: int = 5,
    seed: int = 0,
    *,
    probe: str | Iterable[str] = ("linear", "knn"),
    baselines: str | Iterable[str] = ("pixels", "random"),
    scratch_steps: int = 1000,
    finetune: bool = False,
    progress: Progress | None = None,
) -> Json:
    """Top-1 of a run's frozen encoder with few labels, beside baselines without pretraining (SimCLR section 4, App. B).

    Args:
        run: a run's folder, where the result is written as `evaluation.json`, or an encoder file.
        train, test: labelled images to learn from and to score on, anything `open_images` takes. Images without a
            label are left out and counted; so are those outside the classes that the run was pretrained on, if any were
            chosen.
        labels_per_class: a count, "all", or several of them (a sequence, or one string with commas).
        draws: how many random draws of the labels; of "all" there is one.
        seed: of the draws and of the baselines' initializations, 0 or above.
        probe: "linear" (linear evaluation, row simclr), "knn" (weighted kNN, row knn: of each draw, and of all
            of train), or both.
        baselines: any of "pixels" and "random" (linear evaluation of these) and "scratch" (supervised training; slow).
        scratch_steps: optimizer steps of 32 images that scratch trains for.
        finetune: score fine-tuning by the same draws too (row finetuned), with the settings of `stepclr.finetune`.
        progress: called with (done, total) after each draw of each method.

    Returns `{"rows": [{"method", "labels_per_class", "mean", "std", "values"}], "protocol": {...}}`: a value is the
    top-1 (0 to 1) of one draw, std the sample standard deviation over the draws, None where there is one value.
    The protocol's "confusion" says which classes the run's own method takes for which, with the most labels it had.

    Raises StepclrError for an unknown name, classes that differ between train and test, and a class with too few
    labels; RuntimeError if the encoder did not stay as it was, or a linear layer did not converge.
    """
    budgets = read_budgets(labels_per_class)
    wanted = [PROBES[name] for name in _chosen("probe", probe, PROBES)] + _chosen("baseline", baselines, BASELINES)
    wanted += ["finetuned"] if finetune else []
    names = [name for name in METHODS if name in wanted]
    for what, value, least in (("draws", draws, 1), ("seed", seed, 0), ("scratch_steps", scratch_steps, 1)):
        if value < least:
            raise StepclrError(f"{what} must be at least {least}, not {value}")
    if not names:
        raise StepclrError(f"no probe and no baseline to score; there are: {', '.join([*PROBES, *BASELINES])}")
    world = join()
    encoder, home = load_encoder(run).to(default_device()), Run(Path(run))
    before = state_checksum(encoder.state_dict())
    train, test = open_images(train), open_images(test)
    classes = shared_classes(encoder, train, test)
    draw_all(train.keep(classes).labels, classes, budgets, 1, seed)  # too few labels: better said now than later

    train, h, train_facts = prepare(encoder, train, classes, world)
    test, h_test, test_facts = prepare(encoder, test, classes, world)
    task = Task(encoder, train, test, h, h_test, seed, scratch_steps, home.config if home.exists() else {})
    plan = draw_all(train.labels, classes, budgets, draws, seed)
    # kNN costs nothing and has nothing to choose: all of train is always told.
    banks = draw_all(train.labels, classes, list(dict.fromkeys([*budgets, "all"])), draws, seed)
    plans = {name: banks if name == "knn" else plan for name in names}
    predictions, settings = _predict(task, plans, progress, world)
    after = state_checksum(encoder.state_dict())
    if after != before:
        raise RuntimeError("the encoder's weights or buffers changed while it was evaluated: its scores do not count")
    truth = test.labels  # the one place that sees them
    shown = next((name for name in SHOWN if name in names), None)
    result = {
        "rows": _score(predictions, truth),
        "protocol": {
            "run": os.fspath(run),
            "encoder": {"name": encoder.name, "stem": encoder.stem, "size": encoder.size},
            "encoder_sha256": {"before": before, "after": after},
            "representation": f"{encoder.num_features} features, float32, eval mode, center crop",
            "classes": classes,
            "train": train_facts,
            "test": test_facts,
            "test_labels": "read once, after the last prediction",
            "labels_per_class": budgets,
            "draws": draws,
            "seed": seed,
            "std": "sample standard deviation over the draws (ddof 1); null where there is one value",
            "linear_evaluation": linear.SETTINGS,
            "methods": settings,
            "confusion": _confused(shown, predictions, truth, classes, test) if shown else None,
        },
    }
    if home.folder.is_dir() and world.first:
        home.write("evaluation.json", json.dumps(result, indent=2) + "\n")
    return result


def _chosen(what: str, given: str | Iterable[str], choices: Iterable[str]) -> list[str]:
    names = given.split(",") if isinstance(given, str) else given
    return [choose(what, name.strip(), choices) for name in names]


def _predict(
    task: Task, plans: dict[str, list[Draw]], progress: Progress | None, world: World
) -> tuple[Predictions, dict[str, Json]]:
    """Every method's fits, by (method, budget), and its settings with what it chose. Ranks share out the draws."""
    done, total = count(world.size, world.size), sum(len(plan) for plan in plans.values())
    predictions: Predictions = {}
    settings: dict[str, Json] = {}

    def counted() -> None:
        if progress:
            progress(min(total, next(done)), total)

    for name, plan in plans.items():
        how = method(name, task)
        chosen: dict[str, list[float]] = {}
        for draw, fit in zip(plan, _fits(how, plan, world, counted), strict=True):
            predictions.setdefault((name, draw.budget), []).append(fit)
            chosen.setdefault(str(draw.budget), []).append(fit.chosen)
        settings[name] = {**how.settings, how.chooses: chosen}
    return predictions, settings


def _fits(how: Method, plan: list[Draw], world: World, counted: Callable[[], object]) -> list[Fit]:
    """A method's fits of all draws of its plan; this rank works out its share of them, and is told the others."""
    budgets = list(dict.fromkeys(draw.budget for draw in plan))
    own = {}
    for number, draw in enumerate(plan):
        turn = budgets.index(draw.budget) if how.by_budget else number
        if turn % world.size == world.rank:
            fit = how.predict(draw)
            own[number] = [fit.predicted.tolist(), fit.chosen]
            counted()
    every = {int(number): fit for fits in world.objects(own) for number, fit in fits.items()}
    return [Fit(np.array(predicted), chosen) for _, (predicted, chosen) in sorted(every.items())]


def _score(predictions: Predictions, truth: NDArray[np.int64]) -> list[Json]:
    return [
        score_row(name, budget, [fit.predicted for fit in fits], truth) for (name, budget), fits in predictions.items()
    ]


def _confused(
    name: str, predictions: Predictions, truth: NDArray[np.int64], classes: list[str], test: ImageSet
) -> Json | None:
    """Which classes the method takes for which, at its last budget; None where there are too many to read."""
    if len(classes) > MOST:
        return None
    budget, fits = [(budget, fits) for (method, budget), fits in predictions.items() if method == name][-1]
    return confusion(name, budget, [fit.predicted for fit in fits], truth, classes, test.names)
