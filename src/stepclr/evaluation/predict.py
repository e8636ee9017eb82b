"""A classifier and new images -> the probability of each class, as an array and as a table."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from torch import nn

from stepclr.data.images import ImageSet
from stepclr.data.sources import Source, open_images
from stepclr.device import default_device
from stepclr.errors import StepclrError
from stepclr.evaluation.results import margins
from stepclr.io import write_table
from stepclr.model.classifier import Classifier
from stepclr.model.features import fill_unreadable, resized
from stepclr.model.files import load_classifier
from stepclr.pretraining.classifier import logits
from stepclr.threads import Progress

COLUMNS = ("path", "predicted", "probability")  # of a table, before those of the classes
DIGITS = 6  # significant ones of a probability in a table


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities `[n, C]`, float32, one row per image in the order of the source.

    classes: the names of the C classes. names: the names of the n images.
    """

    probabilities: Float32[np.ndarray, "n classes"]
    classes: list[str]
    names: Sequence[str]


@dataclass(frozen=True, eq=False)
class Classified:
    """The readable images of a source and the probability of each class, `[n, C]`; `skipped` counts the others."""

    images: ImageSet
    probabilities: Float32[np.ndarray, "n classes"]
    classes: list[str]
    skipped: int

    def least_certain_first(self) -> "Classified":
        """The same images, by rising margin."""
        order = np.argsort(margins(self.probabilities), kind="stable")
        return replace(self, images=self.images.take(order), probabilities=self.probabilities[order])

    def write(self, path: Path) -> None:
        """Write a table: path, predicted class, its probability, and a column `p:CLASS` for each class.

        The suffix, .csv, .parquet or .json, is the format. What was not read goes to `<path>.skipped.csv`.
        """
        header = [*COLUMNS, *(f"p:{name}" for name in self.classes)]
        rows = []
        for i, row in enumerate(self.probabilities.tolist()):
            best = int(np.argmax(row))
            rounded = [float(f"{p:.{DIGITS}g}") for p in row]
            rows.append([self.images.names[i], self.classes[best], rounded[best], *rounded])
        write_table(path, header, rows)
        self.images.ledger.write(path.with_suffix(".skipped.csv"))


def predict(
    classifier: str | os.PathLike[str],
    images: Source,
    progress: Progress | None = None,
    module: nn.Module | None = None,
) -> Predictions:
    """The probability of each class for every image.

    Args:
        classifier: a `classifier.safetensors`, or a run's folder that has one.
        images: anything `open_images` takes, such as a folder, an image file or a list of image files. An image that
            cannot be read has a row of NaN, and a warning gives their number.
        progress: called with (images done, images in all).
        module: where the encoder is your own module, such a module; it receives the weights.

    Raises StepclrError for a file that is not a classifier, and where no image can be read.
    """
    source, probabilities, kept, classes = _predict(load_classifier(classifier, module), images, progress)
    return Predictions(fill_unreadable(probabilities, kept, source), classes, source.names)


def classify(classifier: str | os.PathLike[str], images: Source, progress: Progress | None = None) -> Classified:
    """`predict` without the images that cannot be read."""
    source, probabilities, kept, classes = _predict(load_classifier(classifier), images, progress)
    return Classified(source.take(kept), probabilities, classes, len(source.skipped))


def _predict(
    classifier: Classifier, images: Source, progress: Progress | None
) -> tuple[ImageSet, Float32[np.ndarray, "n classes"], np.ndarray, list[str]]:
    """The images, the probabilities of the readable ones, the indices of those, and the classes."""
    classifier.to(default_device())
    source = resized(open_images(images), classifier.encoder)
    predicted, kept = logits(classifier, source, progress)
    if not len(kept):
        raise StepclrError(f"{source.source}: no image can be read; the first, {': '.join(source.skipped[0])}")
    return source, predicted.softmax(1).numpy(), kept, classifier.classes
