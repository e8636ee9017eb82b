"""Predictions for people to look at: a short table for the screen, and a contact sheet of each class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table

from stepclr.errors import one_line
from stepclr.evaluation.predict import Classified
from stepclr.evaluation.results import margins, measures, ranking
from stepclr.metrics import in_percent
from stepclr.tools.images import contact_sheet, jpeg_thumbnail, stacked
from stepclr.tools.scores import measures_for, measures_words

SCREEN_ROWS = 20
COLUMNS = 6  # images in a row of the sheet
SHEET_CLASSES = 50


def prediction_table(predictions: Classified) -> Table:
    """The first SCREEN_ROWS images: each with the best and the second best class and their probabilities."""
    table = Table()
    table.add_column("image", overflow="fold")
    for place in ("best", "second"):
        table.add_column(place, overflow="fold")
        table.add_column("probability", justify="right")
    for i, row in enumerate(predictions.probabilities[:SCREEN_ROWS]):
        cells = [predictions.images.names[i]]
        for label in np.argsort(-row, kind="stable")[:2]:
            cells += [predictions.classes[label], in_percent(row[label])]
        table.add_row(*map(one_line, cells))
    return table


def labeled_words(predictions: Classified) -> str:
    """How well the predictions agree with the images' own labels, in a sentence; "" without such labels."""
    images, classes = predictions.images, predictions.classes
    position = np.array([classes.index(name) if name in classes else -1 for name in images.classes] + [-1])
    truth = position[images.labels]  # a label of -1 is the last
    known = truth >= 0
    if not known.any():
        return ""
    values = measures(ranking(predictions.probabilities[known]), truth[known])
    counts = np.bincount(truth[known])
    words = measures_words(values, measures_for(counts[counts > 0].tolist()))
    return (
        f"{int(known.sum()):,} image{'s have' if known.sum() > 1 else ' has'} a label among the classes: {words}; "
        "this is no test where the classifier was trained on these images"
    )


def prediction_sheet(predictions: Classified) -> Image.Image:
    """For each predicted class, a row of the COLUMNS most certain images, by margin, and a row of the least certain.

    The class that was predicted most often comes first; of more than SHEET_CLASSES the rarest are left out.
    """
    predicted, certainty = predictions.probabilities.argmax(1), margins(predictions.probabilities)
    rows = []
    for label in np.argsort(-np.bincount(predicted), kind="stable")[:SHEET_CLASSES]:
        members = np.flatnonzero(predicted == label)
        ordered = members[np.argsort(-certainty[members], kind="stable")]
        rows += [ordered[:COLUMNS], ordered[COLUMNS:][-COLUMNS:]]
    return stacked([_row(predictions, indices.tolist()) for indices in rows if len(indices)])


def _row(predictions: Classified, indices: Sequence[int]) -> Image.Image:
    thumbnails, captions = [], []
    for i in indices:
        label = int(predictions.probabilities[i].argmax())
        thumbnails.append(jpeg_thumbnail(predictions.images.read([i])[0]))
        captions.append(
            f"{100 * predictions.probabilities[i, label]:.1f} % {predictions.classes[label]}\n"
            f"{Path(predictions.images.names[i]).name}"
        )
    return contact_sheet(thumbnails, captions, COLUMNS)
