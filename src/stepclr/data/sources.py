"""`open_images`: a path, a name or an object -> `ImageSet`."""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from stepclr.data.decode import may_be_deep
from stepclr.data.folders import open_files, open_folder, open_zip
from stepclr.data.formats import UnreadableError, reasons
from stepclr.data.images import ImageSet
from stepclr.data.joined import join
from stepclr.data.label_csv import SPLIT_OF
from stepclr.data.labels import label_both, label_images, of_split, train_and_test
from stepclr.data.memory import Array, ColumnTable, open_array, open_dataset, open_table
from stepclr.data.named import SPLITS, read_sample, read_torchvision
from stepclr.data.order import spread
from stepclr.data.reading import AS_DECLARED, Range, Reading
from stepclr.data.shards.store import is_packed, open_shards
from stepclr.errors import StepclrError, check_whole, choose, one_line
from stepclr.io import expanded

LOOKED_AT = 8  # images of which the header is read, to see whether a value range does anything
Source = str | Path | ImageSet | Array | tuple[Any, ...] | list[Any] | Dataset[Any] | ColumnTable | Mapping[Any, Any]


def open_images(
    source: Source,
    classes: str | Iterable[str] | None = None,
    limit: int | None = None,
    damaged_shards: str | None = None,
    *,
    labels: object = None,
    split: str | None = None,
    value_range: Range | None = None,
    max_pixels: int | None = None,
    channels: int | None = None,
) -> ImageSet:
    """The images of a source, with its labels if it has any (SimCLR section 2: pretraining needs none).

    Args:
        source: one of
            - a folder, with all its sub-folders, or a zip: the first folder on an image's path is its class, and an
              image outside any folder has no label (in a zip, one folder around everything does not count);
            - tar shards: the folder that `stepclr pack` wrote, `shards/{0000..0127}.tar`, one `x.tar`, or an fsspec URL
              of any of these (`s3://...`); in tars of other programs the `.cls` member of an image is its class
              (WebDataset), else the first folder, as in a zip;
            - an image file: it has no label, and its path, as given, is its name;
            - `stl10:{train,test,unlabeled,train+unlabeled}`, `cifar10:{train,test}`, `cifar100:{train,test}`,
              `fashion-mnist:{train,test}`: downloaded by torchvision at first use, to `$STEPCLR_DATA` (default
              `~/.cache/stepclr/data`);
            - `sample:{unlabeled,train,test}`: a part of Fashion-MNIST that is bundled with the package;
            - uint8 images `[n, H, W, 3]`, `[n, 3, H, W]` or gray `[n, H, W]`, as an array or a tensor, alone or as
              (images, labels `[n]`) with -1 for no label; with C channels, `[n, H, W, C]` or `[n, C, H, W]`;
            - a map-style torch `Dataset` of images (PIL or uint8) or of (image, label); its `classes` are used, and the
              transforms of a torchvision one are not;
            - a data set of Hugging Face `datasets` with a column of images, and of a ClassLabel if it has labels;
            - an `ImageSet`;
            - a list of any of these: their classes are joined by name, and the last part of a source's path stands
              before the names of its images (as much of its end as makes the sources differ).
        classes: keep only the labeled images of these classes (names, or one string with commas); their order
            gives the labels 0..C-1.
        limit: keep at most this many images, spread evenly over the classes; of each class the first ones.
        damaged_shards: what to do with a missing, truncated or corrupt shard: "refuse" the source (None does so too),
            or "skip" the shard's images and list them in `skipped`.
        labels: tables that give the images their labels, in the place of those of folders: the path of a .csv, .tsv or
            .parquet with the columns path (or file, filename, image) and label (or class), several paths, a mapping
            from paths to labels, or a data frame of pandas, polars or pyarrow. A path is one in the source, relative to
            the table's folder (the current one for a mapping or a data frame), or absolute. Images that are not named
            have no label. `classes` and `limit` choose afterwards.
        split: where the tables have a column `split`: "test" (also val, valid, validation), or "train", which is all
            other images, also those that are not named.
        value_range: (black, white), the numbers that become 0 and 255 in image files of more than 8 bits per channel
            and in arrays that are not uint8; what lies outside is clipped. None: what a file declares; a file that
            declares nothing is skipped.
        max_pixels: pixels of the largest image that is read; larger ones are skipped. None: 200 million.
        channels: channels of each image. None: RGB, or those of an array that has neither 1 nor 3. 1: gray as it is.
            2 to 16: the bands of each file in their order; those of a .npy `[H, W, C]` or `[C, H, W]`, of a TIFF, or
            its gray pages. A file that has another number of bands is skipped. (.npy files are images where a source
            has no others.)

    What is skipped, ignored, or read with a loss is in `ledger`.

    Raises:
        StepclrError: if the source, its split or a class does not exist, or the source contains no image; for a table
            that cannot be read, a path in it that is not in the source, and an image with two labels.
    """
    reading = Reading(value_range, max_pixels, channels, damaged_shards)
    images = open_read_as(source, reading)
    _check_in_shards(reading, images)
    if labels is not None:
        images = label_images(images, labels)
    if split is not None:
        images = of_split(images, SPLIT_OF.get(split, split))
    if classes is not None:
        images = images.keep(classes)
    check_whole("limit", limit, 1)
    if limit is not None:
        images = replace(images.take(_spread(images.labels, limit)), limit=int(limit))
    return images


def open_read_as(source: Source, reading: Reading) -> ImageSet:
    """All images of a source, read so. What of `reading` has no effect on them is no error: it may be for others."""
    images = _open(source, reading).read_as(reading)
    shallow = _shallow(images) if reading.value_range is not None else None
    if shallow is not None:
        note = f"the value range has no effect on images of 8 bits per channel, such as {one_line(shallow)}"
        if note not in images.ledger.notes:
            images.ledger.notes.append(note)
    return images


def open_train_test(
    train: Source,
    test: Source | None,
    labels: object = None,
    *,
    holds_out: bool = True,
    missing: str = "refuse",
    reading: Reading = AS_DECLARED,
) -> tuple[ImageSet, ImageSet | None]:
    """The images to learn from and to score on: `open_images` of both, with the labels of the same tables.

    Without `test` they are the splits of the tables, if these have a column `split` and `holds_out` is true; otherwise
    there are none to score on. Images to learn from are never those of the split "test". `missing` is that of
    `label_images`.
    """
    places = test if isinstance(test, list) else [test]
    by_tables = labels is not None and all(isinstance(place, str | Path) for place in places) and test == train
    learned = open_read_as(train, reading)
    if test is None or by_tables:  # the tables say which images are which
        _check_in_shards(reading, learned)
        learned = learned if labels is None else label_images(learned, labels, missing)
        learned, held_out = train_and_test(learned, None, holds_out)
        if by_tables and holds_out and held_out is None:
            raise StepclrError(
                f"test is {learned.source}, as train is, and no column split of the labels says which of its images "
                "are for it: give other test images, or leave test out"
            )
        return learned, held_out
    scored = open_read_as(test, reading)
    _check_in_shards(reading, learned, scored)
    if labels is not None:
        learned, scored = label_both(learned, scored, labels, missing)
    return train_and_test(learned, scored)


def sources_of(images: ImageSet) -> str | list[str]:
    """What opens the images again from any folder: their source, or several."""
    if images.parts:
        return [absolute_source(source) for source in images.parts]
    return absolute_source(images.source)


def absolute_source(source: str) -> str:
    """The source as it is found from any folder: a path becomes absolute, a URL or NAME:SPLIT stays."""
    name, colon, _ = source.partition(":")
    path = expanded(source)
    named = "://" in source or (colon and name in SPLITS)
    if named or not (path.exists() or path.suffix.lower() == ".tar"):
        return source
    return str(path.absolute())


def _open(source: object, reading: Reading) -> ImageSet:
    if isinstance(source, ImageSet):
        return source
    if isinstance(source, str):
        return _text(source, reading)
    if isinstance(source, Path):
        return _path(source, reading)
    if isinstance(source, list | tuple) and not _is_labeled_array(source):
        return _several(source, reading)
    if isinstance(source, np.ndarray | Tensor):
        return open_array(source, reading=reading)
    if isinstance(source, tuple):
        array, labels = source
        return open_array(array, labels, reading=reading)
    if isinstance(source, ColumnTable):
        return open_table(source)
    if isinstance(source, Mapping) and source and all(isinstance(each, ColumnTable) for each in source.values()):
        splits = ", ".join(map(repr, source))
        raise StepclrError(f"a {type(source).__name__} has the splits {splits}: give one of them, as dataset[SPLIT]")
    if isinstance(source, Dataset) and not isinstance(source, IterableDataset) and hasattr(source, "__len__"):
        return open_dataset(source, reading)
    raise StepclrError(
        f"cannot open images from a {type(source).__name__}: a source is a path, NAME:SPLIT, a uint8 array, "
        "(array, labels), a map-style torch Dataset, a Hugging Face data set, an ImageSet or a list of these"
    )


def _is_labeled_array(source: Sequence[object]) -> bool:
    """Whether this is (array, labels)."""
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], np.ndarray | Tensor)


def _several(sources: Sequence[object], reading: Reading) -> ImageSet:
    """Several sources; image files that follow each other are one of them."""
    if not sources:
        raise StepclrError("there is no source of images; give one or more")
    sets: list[ImageSet] = []
    for in_files, group in groupby(sources, _is_file):
        if in_files:
            sets.append(open_files([expanded(source) for source in group]))  # type: ignore[arg-type]
        else:
            sets += [_open(source, reading) for source in group]
    # Shards may have been packed with what the user asks of all.
    return join([images.read_as(reading) for images in sets])


def _is_file(source: object) -> bool:
    """Whether this is the path of one file, and not of a zip or a tar."""
    path = expanded(source) if isinstance(source, str | Path) else None
    return path is not None and path.suffix.lower() not in (".zip", ".tar") and path.is_file()


def _text(source: str, reading: Reading) -> ImageSet:
    if not source:
        raise StepclrError("a source is an empty text; give . for the current folder")
    if "://" in source:
        return open_shards(source, reading.skips)
    name, colon, split = source.partition(":")
    path = expanded(source)
    if name in SPLITS and (colon or not path.exists()):
        return _named(name, split)
    if colon and os.sep not in source and not path.exists():
        choose("source", name, SPLITS)
    return _path(path, reading)


def _named(name: str, split: str) -> ImageSet:
    if not split:
        raise StepclrError(f"{name} needs a split: {', '.join(f'{name}:{split}' for split in SPLITS[name])}")
    source = f"{name}:{choose(f'split of {name}', split, SPLITS[name])}"
    images, labels, classes = read_sample(split) if name == "sample" else read_torchvision(name, split)
    return open_array(images, labels, classes, source)


def _path(path: Path, reading: Reading) -> ImageSet:
    if path.is_dir():
        return open_shards(str(path), reading.skips) if is_packed(path) else open_folder(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return open_zip(path)
    if path.suffix.lower() == ".tar" and (path.exists() or "{" in path.name):
        return open_shards(str(path), reading.skips)
    if path.is_file():
        return open_files([path])
    if path.exists():
        raise StepclrError(f"{path} is neither a folder nor a file")
    siblings = []
    if os.access(path.parent, os.R_OK) and path.parent.is_dir():
        siblings = [other.name for other in path.parent.iterdir()]
    names = [f"{name}:{split}" for name, splits in SPLITS.items() for split in splits]
    near = difflib.get_close_matches(path.name, siblings, 1) or difflib.get_close_matches(str(path), names, 1)
    hint = f" Did you mean {str(path.with_name(near[0]))!r}?" if near else ""
    raise StepclrError(f"{path} does not exist.{hint}")


def _check_in_shards(reading: Reading, *sets: ImageSet) -> None:
    """Raise StepclrError where damaged shards are to be skipped and no set has shards."""
    if reading.skips and not any(images.store.sharded for images in sets):
        raise StepclrError(f"{sets[0].source} is not in shards, so damaged_shards='skip' does not apply")


def _shallow(images: ImageSet) -> str | None:
    """The name of an image of 8 bits per channel; None unless those of NAME:SPLIT or a few of the files all have 8."""
    if not images.parts and images.source.partition(":")[0] in SPLITS:
        return images.names[0]
    name = None
    for i in spread(len(images), LOOKED_AT).tolist():
        with suppress(UnreadableError), reasons():
            file = images.store.open(int(images.rows[i]))
            if file is None:
                return None
            with file:
                if may_be_deep(file, images.store.reading):
                    return None
            name = images.names[i]
    return name


def _spread(labels: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """The indices of at most `limit` images, spread over the classes as evenly as possible, in ascending order."""
    turn = np.zeros(len(labels), np.int64)  # the position of each image in its class
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, turn))[:limit])
