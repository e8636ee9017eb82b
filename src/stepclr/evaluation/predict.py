"""A classifier and new images -> the probability of each class."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from torch import nn

from stepclr.data.images import ImageSet
from stepclr.data.sources import Source, open_images
from stepclr.device import default_device
from stepclr.errors import StepclrError, check_suffix
from stepclr.io import write_csv
from stepclr.model.classifier import Classifier
from stepclr.model.features import Written, fill_unreadable, resized
from stepclr.model.files import load_classifier
from stepclr.pretraining.classifier import logits
from stepclr.threads import Progress


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities `[n, C]`, float32, one row per image in the order of the source, and the names of the C classes."""

    probabilities: Float32[np.ndarray, "n classes"]
    classes: list[str]


def predict(
    classifier: str | os.PathLike[str],
    images: Source,
    progress: Progress | None = None,
    module: nn.Module | None = None,
) -> Predictions:
    """The probability of each class for every image.

    Args:
        classifier: a `classifier.safetensors`, or a run's folder that has one.
        images: anything `open_images` takes. An image that cannot be read has a row of NaN, and a warning gives their
            number.
        progress: called with (images done, images in all).
        module: where the encoder is your own module, such a module; it receives the weights.

    Raises StepclrError for a file that is not a classifier, and where no image can be read.
    """
    source, probabilities, kept, classes = _predict(load_classifier(classifier, module), images, progress)
    return Predictions(fill_unreadable(probabilities, kept, source), classes)


def write_predictions(
    classifier: str | os.PathLike[str],
    images: Source,
    out: str | os.PathLike[str],
    progress: Progress | None = None,
) -> Written:
    """Write `out` (.csv): path, predicted class, its probability, and a column `p:CLASS` for each class.

    Images that cannot be read are left out and listed in `<out>.skipped.csv`.
    """
    path = Path(out)
    check_suffix(path, [".csv"])
    source, probabilities, kept, classes = _predict(load_classifier(classifier), images, progress)
    table = [["path", "predicted", "probability", *(f"p:{name}" for name in classes)]]
    for i, row in zip(kept, probabilities.tolist(), strict=True):
        best = int(np.argmax(row))
        table.append([source.names[i], classes[best], *(f"{p:.6g}" for p in (row[best], *row))])
    write_csv(path, table)
    source.ledger.write(path.with_suffix(".skipped.csv"))
    return Written(len(kept), len(source) - len(kept))


def _predict(
    classifier: Classifier, images: Source, progress: Progress | None
) -> tuple[ImageSet, Float32[np.ndarray, "n classes"], np.ndarray, list[str]]:
    """The images, the probabilities of the readable ones, the indices of those, and the classes."""
    classifier.to(default_device())
    source = resized(open_images(images), classifier.encoder)
    predicted, kept = logits(classifier, source, progress)
    if not len(kept):
        raise StepclrError(f"no image of {source.source} can be read")
    return source, predicted.softmax(1).numpy(), kept, classifier.classes
