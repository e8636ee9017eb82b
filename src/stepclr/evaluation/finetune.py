"""Fine-tuning: the whole network learns from few labels (SimCLR App. B.5, SimCLRv2 section 3)."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from stepclr.data.images import ImageSet
from stepclr.data.sources import Source, open_train_test
from stepclr.device import default_device
from stepclr.errors import StepclrError, check_number, check_suffix, check_used, check_whole, choose
from stepclr.evaluation.holdout import check_holdout
from stepclr.evaluation.init_from import InitialWeights, initial_weights
from stepclr.evaluation.prepare import MIN_AREA, PreparedImages, all_logits, prepare, training_defaults
from stepclr.evaluation.results import (
    FINETUNING,
    MAX_CLASSES,
    Scores,
    confusion,
    least_certain,
    measures,
    ranking,
    score,
)
from stepclr.evaluation.splits import LabelsPerClass, Split, check_draws, labels_words, parse_labels_per_class
from stepclr.io import check_writable
from stepclr.model.classifier import Classifier
from stepclr.model.files import CLASSIFIER, is_classifier, save_classifier, state_checksum
from stepclr.model.timm_weights import from_anywhere
from stepclr.model.weights import is_finite
from stepclr.pretraining.batches import steps_per_epoch
from stepclr.pretraining.classifier import AfterStep, Supervised, crop_words, train_classifier
from stepclr.pretraining.loop import Diverged
from stepclr.pretraining.optim import MOMENTUM, scaled_lr
from stepclr.pretraining.run import Run
from stepclr.threads import Announce, Progress, silent
from stepclr.views.policies import FLIP

EPOCHS, MIN_STEPS = 60, 500
RATES = {"sgd": 0.05, "lars": 0.08}  # SimCLR App. B.5; SimCLRv2 App. B: 0.005 sqrt(B)
OPTIMIZERS = {
    "sgd": f"SGD, Nesterov momentum {MOMENTUM}",
    "lars": f"LARS, momentum {MOMENTUM}, the linear layer not adapted",
}
MIN_BATCH, MAX_BATCH, BATCHES = 32, 256, 16  # a batch is a 16th of the images, within these limits


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of fine-tuning, as `finetune` documents them.

    The peak rate is that of batch 256 times sqrt(B / 256). SimCLR scales by B / 256, which at B = 32 learns too little
    in 500 steps: .62 against .65 with the root (10 labels per class of sample:train, top-1 on others of it, 2 draws).
    """

    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str = "sgd"
    lr: float | None = None
    min_area: float = MIN_AREA
    bf16: bool = False
    zero_init: bool = False
    flip: float = FLIP

    def __post_init__(self) -> None:
        check_whole("epochs", self.epochs, 1)
        check_whole("batch_size", self.batch_size, 2)
        choose("optimizer", self.optimizer, RATES)
        check_number("lr", self.lr, above=0)

    @property
    def peak(self) -> float:
        """The peak learning rate at batch 256."""
        return RATES[self.optimizer] if self.lr is None else self.lr

    def training(self, n: int) -> Supervised:
        """The training on n images."""
        batch = min(n, self.batch_size or min(MAX_BATCH, max(MIN_BATCH, n // BATCHES)))
        per_epoch = steps_per_epoch(n, batch)
        epochs = self.epochs or max(EPOCHS, math.ceil(MIN_STEPS / per_epoch))
        rate = scaled_lr(self.peak, batch, "sqrt")
        given = epochs * per_epoch, batch, rate, self.min_area, self.bf16
        return Supervised(*given, optimizer=self.optimizer, flip=self.flip)

    def describe(self) -> dict[str, Any]:
        """The part of the protocol that describes this method."""
        return {
            "fine-tuning of": "the run's encoder and a linear classifier, all weights",
            "views": crop_words(self.min_area, self.flip),
            "epochs": self.epochs or f"{EPOCHS}, and at least {MIN_STEPS} steps",
            "batch": self.batch_size or f"a {BATCHES}th of the images, {MIN_BATCH} to {MAX_BATCH}",
            "lr_at_batch_256": self.peak,
            "lr_scaling": "sqrt",
            "optimizer": f"{OPTIMIZERS[self.optimizer]}, no weight decay, no warm-up, cosine per step to 0",
            "linear layer starts at": "0" if self.zero_init else "torch's default, random",
            "precision": "bf16" if self.bf16 else "fp32",
            "tested": "eval mode, float32, center crop",
        }


def finetune(
    run: str | os.PathLike[str],
    train: Source,
    test: Source | None = None,
    labels_per_class: LabelsPerClass | Sequence[LabelsPerClass] = "all",
    draws: int = 1,
    seed: int = 0,
    *,
    holdout: float | None = None,
    start: str = "encoder",
    out: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str = "sgd",
    lr: float | None = None,
    min_area: float | None = None,
    zero_init: bool = False,
    progress: Progress | None = None,
    announce: Announce = silent,
    module: nn.Module | None = None,
) -> Scores:
    """Train a classifier, the whole network, from a run's encoder and few labels (SimCLR App. B.5).

    Args:
        run: a run's folder, an encoder file or "timm:NAME"; it is not changed. The result is written into a folder as
            `finetune.json`.
        train: labeled images, anything `open_images` takes; those without a label, or of classes other than those
            chosen for pretraining (if any), are left out and counted.
        test: labeled images to score on, or None: those of train that a table's column `split` holds out, if there are
            any. Their labels are read once, after the last prediction.
        holdout: instead of test, the share of train to hold out: the classifier is trained without them and scored on
            them. They are the same images as those of `evaluate`.
        labels_per_class: a count, a share such as "1%" of the labels of each class, "all", or several of them (a
            sequence, or one string with commas).
        draws: how many random label splits to score for each of `labels_per_class`; for "all" there is one. They are
            the same splits as those of `evaluate`.
        seed: of the holdout, the splits, the linear layer, the batch order and the views.
        start: "encoder", or "head.1" or "head.2" to keep that many layers of the projection head (SimCLRv2 section 3).
        out: the file for the classifier of the first split with the most labels; by default the run's
            `classifier.safetensors`.
        epochs: passes over the split's images; by default 60, and at least 500 steps.
        batch_size: by default a 16th of the split's images, but at least 32 and at most 256. Fewer images than that
            are one batch.
        optimizer: "sgd" (SimCLR) or "lars" (SimCLRv2), which does not adapt the linear layer's rate.
        lr: peak learning rate at batch 256, by default 0.05 for sgd and 0.08 for lars; times sqrt(batch / 256).
        min_area: smallest crop, share of the image; by default the run's.
        zero_init: start the linear layer at 0, where torch draws it at random.
        progress: called with (steps done, steps in all).
        announce: called with what is done next in words, such as "fine-tuning, 10 labels per class".
        module: where the run was pretrained with your own module, such a module; it receives the weights.

    Returns the scores, whose rows are empty where there is nothing to score on; `protocol["classifier"]` names the file
    and has the top-1 of this very classifier. `to_dict()` is `finetune.json`.

    Raises StepclrError for an unknown start, a head that does not exist or does not fit, a class that test
    has and train lacks, a class with too few labels, and a holdout that leaves a class without an image on one side;
    `Diverged` when a weight is not finite.
    """
    per_class = parse_labels_per_class(labels_per_class)
    check_holdout(test, holdout)
    check_whole("seed", seed, 0)
    folder = Run(Path(run))
    run_area, bf16, flip = training_defaults(folder)
    area = run_area if min_area is None else min_area
    settings = FinetuneSettings(epochs, batch_size, optimizer, lr, area, bf16, zero_init, flip)
    initial = initial_weights(folder, start, module)
    initial.encoder.to(default_device())
    path = _classifier_file(folder, out)
    if folder.folder.is_dir():
        check_writable(folder.folder)
    train, test = open_train_test(train, test, holds_out=holdout is None)
    scored = test is not None or holdout is not None
    to_score = "scores: give test, or holdout=0.2"
    check_used("draws", draws != 1, scored, to_score)
    check_used("more than one number in labels_per_class", len(per_class) > 1, scored, to_score)
    check_draws(draws, 1, per_class)
    announce("the images and their representations")
    of_encoder = state_checksum(initial.encoder.state_dict())
    images = prepare(initial.encoder, train, test, per_class, draws, seed, holdout, announce=announce)

    saved = max(images.splits, key=lambda split: len(split.indices))  # the first of those with the most labels
    splits = images.splits if scored else [saved]
    done, total = count(1), sum(settings.training(len(split.indices)).steps for split in splits)

    def after_step() -> None:
        if progress:
            progress(next(done), total)

    predictions: dict[LabelsPerClass, list[NDArray[np.int64]]] = {}
    logits_of_saved: Float[Tensor, "m c"] | None = None
    for split in splits:
        announce(f"fine-tuning, {labels_words(split.labels_per_class)}")
        classifier = finetuned(initial, images.train, split, settings, after_step)
        if split is saved:
            save_classifier(classifier, path)
            checksum = state_checksum(classifier.state_dict())
        if scored:
            logits = all_logits(classifier, images.test)
            predictions.setdefault(split.labels_per_class, []).append(ranking(logits.numpy()))
            if split is saved:
                logits_of_saved = logits

    # From here on, the labels of the test images are read.
    labels = {split.labels_per_class: len(split.indices) for split in splits}
    rows = [
        score("finetuned", budget, labels[budget], ranked, images.test.labels, images.clean, images.classes)
        for budget, ranked in predictions.items()
    ]
    protocol = {
        "run": from_anywhere(run),
        "start": start,
        "of_encoder": of_encoder,
        **images.protocol,
        **images.known_to(run, [], initial.encoder),
        "methods": {"finetuned": settings.describe()},
        **_about_the_saved(path, checksum, saved, images, logits_of_saved),
    }
    scores = Scores(rows, protocol)
    if folder.folder.is_dir():
        folder.write(FINETUNING, scores.to_json())
    return scores


def finetuned(
    initial: InitialWeights,
    train: ImageSet,
    split: Split,
    settings: FinetuneSettings,
    after_step: AfterStep | None = None,
) -> Classifier:
    """The classifier that one split of train makes of `initial`, which stays as it is; a function of the arguments."""
    classifier = initial.classifier(train.classes, split.seed)
    if settings.zero_init:
        for weight in classifier.linear.parameters():
            nn.init.zeros_(weight)
    training = settings.training(len(split.indices))
    train_classifier(classifier, train.take(split.indices), training, split.seed, after_step)
    if not is_finite(classifier):
        raise Diverged(f"fine-tuning diverged with lr {settings.peak:g}: a weight is not finite; try a lower lr")
    return classifier


def _about_the_saved(
    path: Path, checksum: str, split: Split, images: PreparedImages, logits: Float[Tensor, "m c"] | None
) -> dict[str, Any]:
    """What the protocol says of the classifier that is saved, of `split`; `logits` of the test images, if any."""
    made = {
        "file": os.path.abspath(path),
        "labels_per_class": split.labels_per_class,
        "labels": len(split.indices),
        "draw": split.number,
        "sha256": checksum,
        "top1": None,
    }
    if logits is None:
        return {"classifier": made, "confusion": None, "unsure": []}
    truth, names, classes = images.test.labels, images.test.names, images.classes
    ranked = ranking(logits.numpy())
    table = None
    if len(classes) <= MAX_CLASSES:
        table = confusion("finetuned", split.labels_per_class, [ranked[:, 0]], truth, classes, names)
    return {
        "classifier": made | measures(ranked, truth),
        "confusion": table,
        "unsure": least_certain(logits.softmax(1).numpy(), truth, classes, names),
    }


def _classifier_file(run: Run, out: str | os.PathLike[str] | None) -> Path:
    """The file for the classifier; one that pretraining itself trained is not overwritten."""
    if out is None and not run.folder.is_dir():
        raise StepclrError(f"{run.folder} is not a folder, so out must name a file for the classifier")
    path = run.folder / CLASSIFIER if out is None else Path(out)
    place = Run(path.parent)
    if place.exists() and path.name == CLASSIFIER and place.trains_classifier:
        raise StepclrError(f"{path} is the classifier that pretraining trained; out must name another file")
    check_suffix(path, [".safetensors"])
    check_writable(path)
    if path.exists() and not is_classifier(path):  # such as the run's own encoder
        raise StepclrError(f"{path} exists and is not a classifier: choose another out")
    return path
