"""Labels of a set: the classes in words, whether they are classes at all, and what tables say of labels and splits."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from stepclr.data.folders import FolderStore
from stepclr.data.images import ImageSet, Labeling
from stepclr.data.joined import Joined, counts_of_parts
from stepclr.data.label_csv import Labels, Section, check_found, missing_words, read_labels
from stepclr.errors import StepclrError, choose

LISTED = 12  # classes that a heading names
TRAIN = {"train", "training", "trainset"}
HELD_OUT = {"test", "testing", "testset", "val", "valid", "validation", "dev", "eval", "holdout", "unlabeled"}
HELD_OUT |= {"unlabelled"}
SPLITS = ("train", "test")  # of tables


# The classes.


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
    words = f"{images.source}: {len(images):,} image{'s' * (len(images) != 1)}"
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
    """Why the classes are splits of a data set, if their names say so ("train" and "test"); "" if they are classes.

    Classes that the user has chosen by name are always classes.
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


# Labels and splits that tables give, in the place of those that the source has.


def label_images(images: ImageSet, tables: object, missing: str = "refuse") -> ImageSet:
    """The images with the labels of tables (as `read_labels` takes them) instead of their own.

    Where the set has several sources, those of which the tables name no image keep their own labels.
    missing: "refuse" raises StepclrError for paths that are not in the source; "list" enters them in `labeling`.
    """
    labels = _read([images], tables)
    if missing == "refuse":
        check_found(labels, images.source)
    return _labeled(images, labels, 0)


def label_both(train: ImageSet, test: ImageSet, tables: object, missing: str = "refuse") -> tuple[ImageSet, ImageSet]:
    """`label_images` of two sets by the same tables: each path is in one of them; a set that is not named stays."""
    labels = _read([train, test], tables)
    if missing == "refuse":
        check_found(labels, f"{train.source} or {test.source}")
    sets = []
    for images, start in ((train, 0), (test, len(train))):
        named = any(start <= i < start + len(images) for i in labels.rows)
        sets.append(_labeled(images, labels, start) if named else images)
    return sets[0], sets[1]


def of_split(images: ImageSet, split: str) -> ImageSet:
    """The images of one split of the tables: "test", or "train", which is all others, also those without a row."""
    labeling = images.labeling
    choose("split", split, SPLITS)
    if labeling is None or not labeling.has_splits:
        raise StepclrError(f"split={split!r} needs labels that have a column split")
    held_out = np.array([labeling.rows.get(name, ("", ""))[1] == "test" for name in images.names], bool)
    chosen = held_out if split == "test" else ~held_out
    if not chosen.any():
        raise StepclrError(f"{', '.join(labeling.labeled)}: no image of {images.source} is in the split {split}")
    return replace(images.take(chosen), labeling=replace(labeling, split=split))


def to_learn_from(images: ImageSet) -> ImageSet:
    """The images without those that their tables hold out: all, where a split was chosen or there is none."""
    return of_split(images, "train") if _undecided(images) else images


def train_and_test(train: ImageSet, test: ImageSet | None, holds_out: bool = True) -> tuple[ImageSet, ImageSet | None]:
    """The images to learn from and to score on; without `test`, those that tables hold out, if `holds_out` is true."""
    if test is not None:
        test = of_split(test, "test") if _undecided(test) else test
    elif holds_out and _undecided(train):
        test = of_split(train, "test")
    return to_learn_from(train), test


def _undecided(images: ImageSet) -> bool:
    """Whether the images are of several splits of their tables, or could be."""
    labeling = images.labeling
    return labeling is not None and labeling.split is None and any(split for _, split in labeling.rows.values())


def _read(sets: Sequence[ImageSet], tables: object) -> Labels:
    sections: list[Section] = []
    known: list[Section] = []
    start = 0
    for images in sets:
        sections += _sections(images, start)
        known += _no_images(images)
        start += len(images)
    return read_labels(tables, sections, " or ".join(images.source for images in sets), known)


def _sections(images: ImageSet, start: int) -> list[Section]:
    """The images by their names and, where there are several sources, by their names in these."""
    store = images.store
    if not isinstance(store, Joined):
        return [Section(images.names, start, str(store.root) if isinstance(store, FolderStore) else None)]
    sections = [Section(images.names, start)]
    part = store.part_of(images.rows)
    for k, (each, tag) in enumerate(zip(store.stores, store.tags, strict=True)):
        indices = np.flatnonzero(part == k)
        if len(indices) and indices[-1] - indices[0] == len(indices) - 1:
            names = [images.names[i].removeprefix(tag) for i in indices.tolist()]
            root = str(each.root) if isinstance(each, FolderStore) else None
            sections.append(Section(names, start + int(indices[0]), root))
    return sections


def _no_images(images: ImageSet) -> list[Section]:
    """The files that are left out, by their names in the set and, where there are several sources, in these."""
    names, store = [*images.ledger.ignored, *images.ledger.unreadable], images.store
    if not isinstance(store, Joined):
        return [Section(names, root=str(store.root) if isinstance(store, FolderStore) else None)]
    sections = [Section(names)]
    for each, tag in zip(store.stores, store.tags, strict=True):
        root = str(each.root) if isinstance(each, FolderStore) else None
        sections.append(Section([name.removeprefix(tag) for name in names if name.startswith(tag)], root=root))
    return sections


def _labeled(images: ImageSet, labels: Labels, start: int) -> ImageSet:
    """The images with the labels of their rows, whose indices begin at `start`."""
    own = range(start, start + len(images))
    rows = {i - start: row for i, row in labels.rows.items() if i in own}
    names: list[str | None] = [None] * len(images)
    given_up = images.labels >= 0
    if isinstance(images.store, Joined):
        part = images.store.part_of(images.rows)
        named = set(part[list(rows)].tolist())
        names = [None if part[i] in named else images.class_name(i) for i in range(len(images))]
        given_up &= np.isin(part, list(named))
    for i, row in rows.items():
        names[i] = row.label or None
    classes = sorted({name for name in names if name is not None})
    number = {name: label for label, name in enumerate(classes)} | {None: -1}
    labeling = Labeling(
        labeled={table: sum(i in own for i in labeled) for table, labeled in labels.labeled.items()},
        rows={images.names[i]: (row.label, row.split) for i, row in sorted(rows.items())},
        has_splits=labels.has_splits,
        replaced=bool(given_up.any()),
        missing=missing_words(labels, images.source) if labels.missing else "",
    )
    new = np.array([number[name] for name in names], np.int64)
    return replace(images, labels=new, classes=classes, chosen=None, labeling=labeling)
