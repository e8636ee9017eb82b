"""How many images each class has, in words too, and whether the folders of a source are classes at all."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from stepclr.data.images import ImageSet
from stepclr.data.joined import counts_of_parts
from stepclr.errors import StepclrError

LISTED = 12  # classes that a heading names
TRAIN = {"train", "training", "trainset"}
HELD_OUT = {"test", "testing", "testset", "val", "valid", "validation", "dev", "eval", "holdout", "unlabeled"}
HELD_OUT |= {"unlabelled"}


def class_counts(images: ImageSet) -> dict[str, int]:
    """The number of images of each class."""
    counts = np.bincount(images.labels[images.labels >= 0], minlength=len(images.classes)).tolist()
    return dict(zip(images.classes, counts, strict=True))


def present_classes(images: ImageSet) -> list[str]:
    """The classes that have images."""
    return [name for name, n in class_counts(images).items() if n]


def describe_classes(counts: dict[str, int], unlabeled: int) -> str:
    """Classes and counts in words, such as "2 classes: dog 40, cat 12; 3 images without a label".

    The largest class comes first; of many classes the smallest are shown too.
    """
    if not any(counts.values()):
        return "no labels"
    ordered = [f"{name} {n:,}" for name, n in sorted(counts.items(), key=lambda item: -item[1])]
    if len(ordered) > LISTED:
        ordered[LISTED - 2 : -2] = ["..."]
    words = f"{len(counts):,} classes: " if len(counts) > 1 else "1 class: "
    rest = f"; {unlabeled:,} image{'s' * (unlabeled > 1)} without a label" if unlabeled else ""
    return f"{words}{', '.join(ordered)}{rest}"


def heading(images: ImageSet, labels_elsewhere: bool = False) -> str:
    """What every command says of a source before it begins: images, classes, and what is left out.

    Classes that are named like splits are a warning. labels_elsewhere: whether the images may have labels that the
    source does not know of, such as those of an index.
    """
    words = f"{images.source}: {len(images):,} images"
    if (images.labels >= 0).any() or not labels_elsewhere:
        words += f", {describe_classes(class_counts(images), int((images.labels < 0).sum()))}"
    lines = [words, *source_lines(images)]
    lines += images.ledger.lines_of_ignored()
    if warning := split_folders(images):
        lines.append(f"warning: {warning}")
    return "\n".join(lines)


def source_lines(images: ImageSet) -> list[str]:
    """How many images are from which of several sources, and where the labels are from, if not from a source."""
    counts = counts_of_parts(images)
    lines = [f"images: {counts}"] if counts else []
    labeling = images.labeling
    if labeling is None:
        return lines
    given = ", ".join(f"{name} gives a label to {n:,} images" for name, n in labeling.labeled.items())
    lines.append(f"labels: {given}" + ("; the names of folders do not count" if labeling.replaced else ""))
    if labeling.missing:
        lines.append(f"labels: {labeling.missing}")
    if labeling.split:
        lines.append(f"labels: of the split {labeling.split}")
    return lines


def of_these_classes(images: ImageSet, classes: list[str]) -> ImageSet:
    """The labeled images of these classes, with positions in them as labels; some classes may have no image."""
    present = [name for name in classes if name in images.classes]
    if not present:
        raise StepclrError(f"{images.source} has no image of {', '.join(classes)}")
    kept = images.keep(present)
    number = np.array([classes.index(name) for name in present])
    return replace(kept, labels=number[kept.labels], classes=classes)


def split_folders(images: ImageSet) -> str:
    """Why the classes are not classes, if they are named like splits of a data set ("train" beside "test"); else "".

    Classes that were chosen by name are meant.
    """
    words = {name: set(re.findall("[a-z]+", name.casefold())) for name in images.classes}
    train = [name for name in words if words[name] & TRAIN]
    held_out = [name for name in words if words[name] & HELD_OUT and name not in train]
    splits = [*train, *held_out]
    only_splits = bool(splits) and all(words[name] <= TRAIN | HELD_OUT for name in words)
    if images.chosen is not None or not (only_splits or (train and held_out)):
        return ""
    shown = ", ".join(repr(name) for name in splits)
    folder = Path(images.source) / splits[0]
    instead = f"give {folder}" if folder.is_dir() else f"give the images of {splits[0]!r} alone"
    return f"{images.source} has the classes {shown}, which name splits of a data set, not classes; {instead}"


def check_classes(images: ImageSet, classes: Iterable[str] | None = None) -> None:
    """Raise StepclrError unless the labels can be learned: two classes or more, which are not splits.

    classes: those to tell apart, where they are not those of `images`.
    """
    if why := split_folders(images):
        raise StepclrError(why)
    present = present_classes(images)
    if not present:
        raise StepclrError(f"{images.source} has no labels")
    wanted = list(classes if classes is not None else present)
    if len(wanted) > 1:
        return
    folder = Path(images.source) / wanted[0]
    inside = folder.is_dir() and any(path.is_dir() for path in folder.iterdir())
    instead = f"; if its folders are the classes, give {folder}" if inside else ""
    raise StepclrError(
        f"{images.source} has one class, {wanted[0]!r}; there must be two or more to tell apart{instead}"
    )
