"""Images that a program passes as objects: arrays, torch Datasets, and data sets of Hugging Face."""

import copy
import operator
import sys
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from stepclr.data.formats import UnreadableError
from stepclr.data.images import ImageSet
from stepclr.data.levels import to_bytes
from stepclr.data.reading import AS_DECLARED, MAX_CHANNELS, RGB, Reading, channels_words
from stepclr.data.stores import Items, Pixels, Store, as_image
from stepclr.errors import StepclrError

Array = NDArray[Any] | Tensor


@runtime_checkable
class ColumnTable(Protocol):
    """A data set of Hugging Face `datasets`, which is not imported for it."""

    features: Any
    column_names: Any


MAX_CLASSES = 1_000_000  # a larger label is not a class number
AGREE = 64  # classes of a data set of which an image is compared with its list of labels


def open_array(
    array: Array,
    labels: object = None,
    classes: list[str] | None = None,
    source: str = "array",
    reading: Reading = AS_DECLARED,
) -> ImageSet:
    """Images `[n, H, W, C]`, `[n, C, H, W]` or gray `[n, H, W]`, with labels `[n]` (-1: none) if given.

    They are uint8, or other numbers of which the value range of `reading` says which are black and white. Gray ones
    become RGB unless `reading` asks for one channel; any other number of channels is that of the array.
    """
    images = array.cpu().numpy() if isinstance(array, Tensor) else array
    _check_several(images.shape, isinstance(array, Tensor) and labels is None)
    if images.dtype != np.uint8:
        if reading.value_range is None or images.dtype.kind not in "iuf":
            raise StepclrError(
                f"images must be uint8 (0 to 255), not {images.dtype}; value_range=(LOW, HIGH) says which numbers are "
                "black and white"
            )
        images = to_bytes(images, *reading.value_range)
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise StepclrError(f"images must be [n, H, W, C], [n, C, H, W] or [n, H, W], not {list(images.shape)}")
    images = _channels_first(images, reading.channels)
    channels = images.shape[1] if images.shape[1] not in (1, RGB) else None
    store = Pixels(images, reading=Reading(channels=channels))
    return _numbered(store, len(images), labels, classes, source)


def open_dataset(dataset: Dataset[Any], reading: Reading = AS_DECLARED) -> ImageSet:
    """The images of a map-style Dataset, those of torchvision without their transforms.

    Its labels are those of its list `targets` or `labels` if it has one; else every item is read once for its label.
    """
    transforms: set[str] = set()
    dataset = _without_transforms(dataset, transforms)
    source, n = type(dataset).__name__, len(dataset)  # type: ignore[arg-type]  # open_images has checked that it has a length
    for first in range(n):
        item = _item(dataset, first)
        if item is not None:
            break
    else:
        raise StepclrError(f"{source}: none of its {n} images can be read")
    try:
        as_image(item[0] if isinstance(item, tuple | list) else item, reading)
    except UnreadableError as error:
        raise StepclrError(f"{source}: {error}") from error
    # Its list of labels saves a pass over the images. But what counts is the label that comes with an image, and a data
    # set may change that of some classes on the way.
    labels = _targets(dataset) if isinstance(item, tuple | list) else np.full(n, -1)
    if labels is None or not _agree(labels, dataset, first):
        labels = np.array([_label(_item(dataset, i)) for i in range(n)])
    images = _numbered(Items(dataset), n, labels, _classes(dataset), source)
    if transforms:
        images.ledger.notes.append(
            f"ignored {', '.join(sorted(transforms))} of {source}: the images are read as they are"
        )
    return images


def _agree(labels: NDArray[Any], dataset: Any, first: int) -> bool:
    """Whether an image of each class, of AGREE classes at most, comes with its label."""
    _, one_of_each = np.unique(labels, return_index=True)
    items = ((i, _item(dataset, i)) for i in {first, *one_of_each[:AGREE].tolist()})
    return all(labels[i] == _label(item) for i, item in items if item is not None)


def open_table(dataset: ColumnTable) -> ImageSet:
    """The images of a Hugging Face data set: those of its one column of images, with the labels of its ClassLabel.

    Its own format and transform are left aside. Raises StepclrError where there is not one such column to choose.
    """
    source = type(dataset).__name__
    if not hasattr(dataset, "__len__"):
        raise StepclrError(f"{source} is a stream, whose images have no numbers; pass a data set that is not streamed")
    column = _column(dataset, "image", "Image")
    if column is None:
        raise StepclrError(f"{source} has no column of images; its columns are {', '.join(dataset.column_names)}")
    rows: Any = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
    label = _column(dataset, "label", "ClassLabel")
    labels, classes = None, None
    if label is not None:
        labels = np.array([-1 if value is None else value for value in rows[label]], np.int64).reshape(len(rows))
        classes = [str(name) for name in dataset.features[label].names]
    return _numbered(Items(_Column(rows, column)), len(rows), labels, classes, source)


@dataclass(frozen=True)
class _Column:
    """One column of a table, item by item."""

    rows: Any
    name: str

    def __getitem__(self, index: int) -> Any:
        return self.rows[int(index)][self.name]


def _column(dataset: Any, usual: str, kind: str) -> str | None:
    """The column of this kind; of several, the one with the usual name; None if there is none."""
    source = type(dataset).__name__
    names = [name for name, feature in dataset.features.items() if type(feature).__name__ == kind]
    if usual in names or len(names) == 1:
        return usual if usual in names else names[0]
    if names:
        shown = ", ".join(names)
        raise StepclrError(f"{source} has several columns of {usual}s, {shown}; rename one of them to {usual!r}")
    return None


def _check_several(shape: tuple[int, ...], is_tensor: bool) -> None:
    """Raise StepclrError for one image in colors, whose rows or channels would be taken for gray images.

    A tensor `[3, H, W]` is one image to torchvision; an array of that shape may well be three gray ones.
    """
    if len(shape) != 3:
        return
    channels_last = shape[2] in (1, 3, 4) and shape[1] > shape[2]
    if channels_last or (is_tensor and shape[0] == 3):
        raise StepclrError(
            f"images of the shape {list(shape)} are one image, not several: pass images[None]"
            + ("" if channels_last else "; or, if they are 3 gray images, images[:, None]")
        )


def _channels_first(images: NDArray[np.uint8], channels: int | None) -> NDArray[np.uint8]:
    """A view `[n, C, H, W]` of the array, or `[n, 1, H, W]` of gray images.

    Where the number of channels is not given, gray and RGB come first; of others the shorter of the two axes is theirs.
    """
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1], images.shape[3]
    wanted = (1, RGB) if channels in (None, RGB) else (channels,)
    if channels is None and first not in wanted and last not in wanted and first != last:
        wanted = (min(first, last),)
    if last in wanted:
        return images.transpose(0, 3, 1, 2)
    if first in wanted and first <= MAX_CHANNELS:
        return images
    number = channels_words(channels) if channels else f"1 to {channels_words(MAX_CHANNELS)}"
    raise StepclrError(f"images must have {number}, not the shape {list(images.shape)}")


def _numbered(store: Store, n: int, given: object, names: list[str] | None, source: str) -> ImageSet:
    """A set whose images have numbers for names."""
    if given is None:
        labels = np.full(n, -1)
    elif isinstance(given, Tensor):
        labels = given.cpu().numpy()
    else:
        labels = np.asarray(given)
    if not n:
        raise StepclrError(f"{source} has no images")
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise StepclrError(f"{source}: labels must be {n} whole numbers, not {labels.dtype} {list(labels.shape)}")
    largest = int(labels.max())
    if labels.min() < -1 or largest >= (len(names) if names else MAX_CLASSES):
        raise StepclrError(f"{source}: labels must be -1 or class numbers from 0 up, not {labels.min()} to {largest}")
    classes: list[str] = []
    if names and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise StepclrError(f"{source} has two classes named {twice!r}: give each its own name")
    if largest >= 0:
        classes = list(names or [str(label) for label in range(largest + 1)])
    numbers = [f"{source}/{i:05d}" for i in range(n)]
    return ImageSet(store, np.arange(n), labels.astype(np.int64), classes, numbers, source)


def _without_transforms(dataset: Any, ignored: set[str]) -> Any:
    """A copy of torchvision's data set (or of a part of one) that gives its images as they are."""
    if isinstance(dataset, Subset):
        return Subset(_without_transforms(dataset.dataset, ignored), dataset.indices)
    if isinstance(dataset, ConcatDataset):
        return ConcatDataset([_without_transforms(part, ignored) for part in dataset.datasets])
    torchvision = sys.modules.get("torchvision.datasets")  # importing it takes a second
    if torchvision is None or not isinstance(dataset, torchvision.VisionDataset):
        return dataset
    given = {
        name for name in ("transform", "target_transform", "transforms") if getattr(dataset, name, None) is not None
    }
    if given:
        dataset = copy.copy(dataset)
        for name in given:
            setattr(dataset, name, None)
        ignored |= given - {"transforms"} or given  # torchvision makes `transforms` of the other two
    return dataset


def _item(dataset: Dataset[Any], index: int) -> Any:
    try:
        return dataset[index]
    except Exception:  # when it is read again later, it is listed with the reason
        return None


def _label(item: Any) -> int:
    if not isinstance(item, tuple | list) or len(item) < 2 or item[1] is None:
        return -1
    try:
        return operator.index(item[1])  # also of a tensor or an array with one whole number, but not of a float
    except (TypeError, ValueError) as error:
        raise StepclrError(f"a label must be a class number, not {item[1]!r}") from error


def _targets(dataset: Dataset[Any]) -> NDArray[Any] | None:
    if isinstance(dataset, Subset):
        whole = _targets(dataset.dataset)
        return None if whole is None else whole[np.asarray(dataset.indices)]
    targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if getattr(dataset, "target_transform", None) or not isinstance(targets, list | np.ndarray | Tensor):
        return None
    try:
        labels = np.asarray(targets)
    except ValueError:
        return None
    return labels if labels.shape == (len(dataset),) and labels.dtype.kind in "iu" else None  # type: ignore[arg-type]


def _classes(dataset: Dataset[Any]) -> list[str] | None:
    if isinstance(dataset, Subset):
        return _classes(dataset.dataset)
    classes = getattr(dataset, "classes", None)
    return [str(name) for name in classes] if isinstance(classes, list | tuple) else None
