"""No test images: a share of the labeled ones is held out to score on, and versions of one image stay on one side."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from stepclr.data.images import ImageSet
from stepclr.data.labels import class_counts
from stepclr.data.sources import Source
from stepclr.errors import StepclrError

USUAL_SHARE = 0.2  # what commands that the package prints hold out
STREAM = (0, 0, 1)  # added to the seed, so that the draw has other random numbers than any label split
SHARES = [percent / 100 for percent in range(1, 100)]  # the nearest one that works is looked for among these
Groups = Sequence[Sequence[int]]


def check_holdout(test: Source | None, holdout: float | None) -> None:
    """Raise StepclrError for a share that is not between 0 and 1, and where test images are given as well."""
    if holdout is None:
        return
    if not 0 < holdout < 1:
        raise StepclrError(f"holdout must be a share between 0 and 1, such as {USUAL_SHARE}, not {holdout}")
    if test is not None:
        raise StepclrError(f"test and holdout={holdout:g} both say what to score on; give one of them")


def held_out(
    labels: Int[np.ndarray, " n"], classes: Sequence[str], share: float, seed: int, groups: Groups = ()
) -> Bool[np.ndarray, " n"]:
    """Which images are held out: `share` of each class, rounded; a function of the arguments.

    Labels are positions in `classes`. Each of `groups`, which have no image in common, stays on one side; so a class
    may get as near to its share only as its groups allow.

    Raises StepclrError, with the nearest share that works, where a class would have no image on one side.
    """
    grouped = {i for group in groups for i in group}
    units = [*groups, *([i] for i in range(len(labels)) if i not in grouped)]
    of_classes = [Counter(labels[unit].tolist()) for unit in units]

    def draw(share: float) -> Bool[np.ndarray, " n"]:
        """Take units in random order if that brings all of their classes nearer to the share."""
        counts = np.bincount(labels, minlength=len(classes))
        missing = np.floor(share * counts + 0.5).astype(int).tolist()
        mask = np.zeros(len(labels), bool)
        for number in np.random.default_rng([seed, *STREAM]).permutation(len(units)).tolist():
            sizes = of_classes[number]
            if all(size < 2 * missing[label] for label, size in sizes.items()):
                mask[units[number]] = True
                for label, size in sizes.items():
                    missing[label] -= size
        return mask

    def lacks(mask: Bool[np.ndarray, " n"]) -> tuple[int, str] | None:
        """The first class that has no image on one side, and what for."""
        for side, there in (("score on", labels[mask]), ("train on", labels[~mask])):
            counts = np.bincount(there, minlength=len(classes))
            if not counts.all():
                return int(counts.argmin()), side
        return None

    mask = draw(share)
    lacking = lacks(mask)
    if lacking is None:
        return mask
    label, side = lacking
    images, different = int((labels == label).sum()), sum(label in sizes for sizes in of_classes)
    versions = f", {different} without near duplicates" if different < images else ""
    nearest_first = sorted(SHARES, key=lambda other: abs(other - share))
    nearest = next((other for other in nearest_first if lacks(draw(other)) is None), None)
    instead = f"the nearest share that works is {nearest}" if nearest else "no other share works: label more images"
    if images == 1:
        instead += ", or do without this one"
    raise StepclrError(
        f"holdout={share:g} leaves no image of class {classes[label]!r} to {side} (labeled: {images}{versions}); "
        f"{instead}"
    )


def describe_holdout(share: float, seed: int, train: ImageSet, test: ImageSet, groups: Groups) -> dict[str, Any]:
    """The part of the protocol that describes the holdout, with a checksum of the names of the images held out."""
    return {
        "share": share,
        "seed": seed,
        "train": class_counts(train),
        "test": class_counts(test),
        "groups_kept_together": len(groups),
        "images_in_groups": sum(map(len, groups)),
        "names_checksum": test.names_checksum(),
    }
