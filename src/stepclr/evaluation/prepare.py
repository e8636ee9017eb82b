"""Train and test as every method meets them, and a row of scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int
from torch import Tensor

from stepclr.data.decode import source_side
from stepclr.data.images import ImageSet
from stepclr.distributed import ALONE, World
from stepclr.errors import StepclrError, choose
from stepclr.evaluation.splits import Budget
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import Encoder
from stepclr.model.features import represent
from stepclr.pretraining.classifier import logits


def shared_classes(encoder: Encoder, train: ImageSet, test: ImageSet | None = None) -> list[str]:
    """The classes to tell apart: those that were chosen for pretraining, if any, else those of train.

    Raises StepclrError where train or test lacks one of them, has no labels, or, if none were chosen, test has another.
    """
    both = [train] if test is None else [train, test]
    for images in both:
        if not images.classes:
            raise StepclrError(f"{images.source} has no labels; train and test both need them")
    classes = encoder.classes or train.classes
    pairs = [(name, images) for images in both for name in classes]
    if not encoder.classes and test is not None:
        pairs += [(name, train) for name in test.classes]
    for name, images in pairs:
        choose(f"class of {images.source}", name, images.classes)
    if len(classes) < 2:
        raise StepclrError(f"{train.source} has one class, {classes[0]!r}; there must be two or more to tell apart")
    return list(classes)


def prepare(
    encoder: Encoder, images: ImageSet, classes: list[str], world: World = ALONE
) -> tuple[ImageSet, np.ndarray, dict[str, Any]]:
    """The readable labelled images of these classes (labels in their order), their h, and how many were left out."""
    labelled = images.keep(images.classes)
    among = labelled.keep(classes)
    with world.in_turn():
        readable = among.decoded(source_side(encoder.size))
    h, kept = represent(encoder, readable, world=world)
    facts = {
        "source": images.source,
        "images": len(kept),
        "left_out_without_label": len(images) - len(labelled),
        "left_out_of_other_classes": len(labelled) - len(among),
        "left_out_unreadable": len(among) - len(kept),
    }
    return readable.take(kept), h.numpy(), facts


def features(encoder: Encoder, images: ImageSet) -> Float32[np.ndarray, "n f"]:
    """h of every image, float32; StepclrError if one that could be read before now cannot."""
    h, kept = represent(encoder, images)
    _check_all(images, kept)
    return h.numpy()


def all_logits(classifier: Classifier, images: ImageSet) -> Float[Tensor, "n c"]:
    """Logits of every image, float32; StepclrError if one that could be read before now cannot."""
    found, kept = logits(classifier, images)
    _check_all(images, kept)
    return found


def _check_all(images: ImageSet, kept: Int[np.ndarray, " n"]) -> None:
    if len(kept) < len(images):
        raise StepclrError(f"{images.source}: {len(images) - len(kept)} images cannot be read any more; start again")


def score_row(
    method: str, budget: Budget, predictions: Sequence[Int[np.ndarray, " m"]], truth: Int[np.ndarray, " m"]
) -> dict[str, Any]:
    """A row of evaluation.json: top-1 of each draw's predictions, their mean and sample standard deviation."""
    values = [float((predicted == truth).mean()) for predicted in predictions]
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    mean = float(np.mean(values))
    return {"method": method, "labels_per_class": budget, "mean": mean, "std": std, "values": values}
