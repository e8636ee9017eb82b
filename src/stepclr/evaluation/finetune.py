"""Fine-tuning: the whole network learns from few labels."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepclr.data.images import ImageSet
from stepclr.data.sources import Source, open_images
from stepclr.device import default_device
from stepclr.errors import StepclrError, check_suffix, choose
from stepclr.evaluation.init_from import Start, starting_point
from stepclr.evaluation.prepare import all_logits, prepare, score_row, shared_classes
from stepclr.evaluation.splits import Budget, Draw, draw_all, read_budgets
from stepclr.model.classifier import Classifier
from stepclr.model.files import CLASSIFIER, save_classifier
from stepclr.pretraining.batches import steps_per_epoch
from stepclr.pretraining.classifier import MOMENTUM, Supervised, train_classifier
from stepclr.pretraining.loop import Diverged
from stepclr.pretraining.resolve import CONTRASTIVE
from stepclr.pretraining.run import Run
from stepclr.threads import Progress

EPOCHS, LEAST_STEPS = 60, 500
RATES = {"sgd": 0.05, "lars": 0.08}  # SimCLR App. B.5; SimCLRv2 App. B: 0.005 sqrt(B)
OPTIMIZERS = {"sgd": f"SGD, Nesterov momentum {MOMENTUM}", "lars": f"LARS, momentum {MOMENTUM}"}
SMALLEST, LARGEST, BATCHES = 32, 256, 16  # a batch has a 16th of the images, within these


@dataclass(frozen=True)
class Finetuning:
    """Settings of fine-tuning. epochs None: 60, and at least 500 steps. batch_size None: see above.

    optimizer: "sgd", as in SimCLR, or "lars", as in SimCLRv2. lr: peak rate at batch B = 256, times sqrt(B/256); None:
    that of the paper. SimCLR scales by B/256, which at B = 32 learns too little in 500 steps: .62, and .65 with the
    root (10 labels a class of sample:train, top-1 on others of it, 2 draws).
    """

    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str = "sgd"
    lr: float | None = None
    min_area: float = 0.2
    bf16: bool = False

    @classmethod
    def of_run(cls, config: dict[str, Any], min_area: float | None = None, **given: Any) -> "Finetuning":
        """Crop and precision are the run's own, if nothing else is given."""
        min_area = config.get("min_area", 0.2) if min_area is None else min_area
        return cls(min_area=min_area, bf16=config.get("precision") == "bf16", **given)

    def training(self, n: int) -> Supervised:
        """The training on n images."""
        batch = min(n, self.batch_size or min(LARGEST, max(SMALLEST, n // BATCHES)))
        per_epoch = steps_per_epoch(n, batch)
        epochs = self.epochs or max(EPOCHS, math.ceil(LEAST_STEPS / per_epoch))
        rate = self.peak * math.sqrt(batch / 256)
        return Supervised(epochs * per_epoch, batch, rate, self.min_area, self.bf16, optimizer=self.optimizer)

    @property
    def peak(self) -> float:
        """The rate at batch 256."""
        return RATES[self.optimizer] if self.lr is None else self.lr

    def describe(self) -> dict[str, Any]:
        """What a reader of the score has to know."""
        return {
            "fine-tuning of": "the run's encoder and a linear classifier, all weights",
            "views": f"crop (area from {self.min_area}) and flip",
            "epochs": self.epochs or f"{EPOCHS}, and at least {LEAST_STEPS} steps",
            "batch": self.batch_size or f"a {BATCHES}th of the images, {SMALLEST} to {LARGEST}",
            "lr_at_batch_256": self.peak,
            "lr_scaling": "sqrt",
            "optimizer": f"{OPTIMIZERS[self.optimizer]}, no weight decay, no warm-up, cosine per step to 0",
            "precision": "bf16" if self.bf16 else "fp32",
            "tested": "eval mode, float32, center crop",
        }


def finetune(
    run: str | os.PathLike[str],
    train: Source,
    test: Source | None = None,
    labels_per_class: Budget | Sequence[Budget] = "all",
    draws: int = 1,
    seed: int = 0,
    *,
    start: str = "encoder",
    out: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str = "sgd",
    lr: float | None = None,
    min_area: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a classifier, the whole network, from a run's encoder and few labels (SimCLR App. B.5).

    Args:
        run: a run's folder, or an encoder file; it is not changed. The result is written into a folder as
            `finetune.json`.
        train: labelled images, anything `open_images` takes; those without a label, or of other classes than the run
            was pretrained on (if any were chosen), are left out and counted.
        test: labelled images to score on, or None. Their labels are read once, after the last prediction.
        labels_per_class: a count, "all", or several of them (a sequence, or one string with commas).
        draws: how many random draws of the labels to score; of "all" there is one. The same as evaluation's.
        seed: of the draws, the linear layer, the order and the views.
        start: "encoder"; "head.1" or "head.2" keeps so many layers of the projection head (SimCLRv2 section 3).
        out: the file for the classifier of the largest budget's first draw; by default the run's
            `classifier.safetensors`.
        epochs: passes over the drawn images; by default 60, and at least 500 steps.
        batch_size: by default a 16th of the drawn images, but at least 32 and at most 256. Of fewer images than
            that, all are one batch.
        optimizer: "sgd" (SimCLR) or "lars" (SimCLRv2).
        lr: peak learning rate at batch 256, 0.05 for sgd and 0.08 for lars; grows with the root of the batch.
        min_area: smallest crop, share of the image; by default the run's.
        progress: called with (steps done, steps in all).

    Returns `{"rows": [...], "protocol": {...}}`, rows as those of `evaluate`, empty where there is no `test`.
    Raises StepclrError for an unknown start, a head that is not there or does not fit, classes that differ between
    train and test, and a class with too few labels; `Diverged` when a weight is not finite.
    """
    budgets = read_budgets(labels_per_class)
    for what, value, least in (
        ("draws", draws, 1), ("seed", seed, 0), ("epochs", epochs, 1), ("batch_size", batch_size, 2)
    ):  # fmt: skip
        if value is not None and value < least:
            raise StepclrError(f"{what} must be at least {least}, not {value}")
    choose("optimizer", optimizer, RATES)
    if lr is not None and not lr > 0:
        raise StepclrError(f"lr must be above 0, not {lr}")
    home = Run(Path(run))
    begin = starting_point(home, start)
    begin.encoder.to(default_device())
    config = home.config if home.exists() else {}
    path = _place(home, config, out)
    how = Finetuning.of_run(config, min_area, epochs=epochs, batch_size=batch_size, optimizer=optimizer, lr=lr)
    train, test = open_images(train), None if test is None else open_images(test)
    classes = shared_classes(begin.encoder, train, test)
    draw_all(train.keep(classes).labels, classes, budgets, 1, seed)  # too few labels: better said now than later

    train, _, train_facts = prepare(begin.encoder, train, classes)
    test_facts = None
    if test is not None:
        test, _, test_facts = prepare(begin.encoder, test, classes)
    plan = draw_all(train.labels, classes, budgets, draws, seed)
    largest = max(budgets, key=lambda budget: math.inf if budget == "all" else budget)
    written = next(draw for draw in plan if draw.budget == largest)
    plan = [written] if test is None else plan
    done, total = count(1), sum(how.training(len(draw.rows)).steps for draw in plan)
    predictions: dict[Budget, list[NDArray[np.int64]]] = {}
    for draw in plan:
        after_step = (lambda: progress(next(done), total)) if progress else None
        classifier = finetuned(begin, classes, train, draw, how, after_step)
        if draw is written:
            save_classifier(classifier, path)
        if test is not None:
            predictions.setdefault(draw.budget, []).append(all_logits(classifier, test).argmax(1).numpy())
    truth = test.labels if test is not None else np.empty(0, np.int64)
    result = {
        "rows": [score_row("finetuned", budget, found, truth) for budget, found in predictions.items()],
        "protocol": {
            "run": os.fspath(run),
            "start": start,
            "classifier": {"file": os.fspath(path), "labels_per_class": largest, "draw": written.number},
            "classes": classes,
            "train": train_facts,
            "test": test_facts,
            "test_labels": "read once, after the last prediction",
            "labels_per_class": budgets,
            "draws": draws,
            "seed": seed,
            "std": "sample standard deviation over the draws (ddof 1); null where there is one value",
            "methods": {"finetuned": how.describe()},
        },
    }
    if home.folder.is_dir():
        home.write("finetune.json", json.dumps(result, indent=2) + "\n")
    return result


def finetuned(
    begin: Start,
    classes: Sequence[str],
    train: ImageSet,
    draw: Draw,
    how: Finetuning,
    after_step: Callable[[], object] | None = None,
) -> Classifier:
    """The classifier that one draw of train makes of `begin`, which is left as it is; a function of the arguments."""
    classifier = begin.classifier(classes, draw.seed)
    train_classifier(classifier, train.take(draw.rows), how.training(len(draw.rows)), draw.seed, after_step)
    if not all(bool(weight.isfinite().all()) for weight in classifier.parameters()):
        raise Diverged(f"fine-tuning diverged at --lr {how.peak:g}: a weight is not finite; try a lower one")
    return classifier


def _place(run: Run, config: dict[str, Any], out: str | os.PathLike[str] | None) -> Path:
    """The file for the classifier; one that pretraining itself made is not overwritten."""
    if out is None and not run.folder.is_dir():
        raise StepclrError(f"{run.folder} is no folder: name a file for the classifier with --out")
    own = config.get("loss", CONTRASTIVE[0]) not in CONTRASTIVE or config.get("linear_epochs", 0)
    path = run.folder / CLASSIFIER if out is None else Path(out)
    if own and path.resolve() == (run.folder / CLASSIFIER).resolve():
        raise StepclrError(f"{path} is the classifier that the run was trained with: name another file with --out")
    check_suffix(path, [".safetensors"])
    return path
