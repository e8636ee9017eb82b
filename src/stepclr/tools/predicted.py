"""Predictions for people to look at: a short table for the screen, and a contact sheet of each class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table

from stepclr.errors import one_line
from stepclr.evaluation.predict import Classified
from stepclr.tools.images import contact_sheet, jpeg_thumbnail, stacked

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
        best, second = np.argsort(-row, kind="stable")[:2]
        cells = [predictions.images.names[i]]
        for label in (best, second):
            cells += [predictions.classes[label], f"{100 * row[label]:.1f} %"]
        table.add_row(*map(one_line, cells))
    return table


def prediction_sheet(predictions: Classified) -> Image.Image:
    """Of each predicted class a row of the COLUMNS most certain images, by margin, and a row of the least certain.

    The class that was predicted most often comes first; of more than SHEET_CLASSES the rarest are left out.
    """
    predicted, margins = predictions.probabilities.argmax(1), predictions.margins()
    rows = []
    for label in np.argsort(-np.bincount(predicted), kind="stable")[:SHEET_CLASSES]:
        members = np.flatnonzero(predicted == label)
        ordered = members[np.argsort(-margins[members], kind="stable")]
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
