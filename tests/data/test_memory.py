"""Step 1: images that a program hands over, as arrays or as a torch Dataset."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import FakeData
from torchvision.transforms import ToTensor

from stepclr.data.labels import heading
from stepclr.data.sources import open_images
from stepclr.errors import StepclrError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (6, 3, 5, 7), dtype=np.uint8)
LABELS = np.array([2, 0, -1, 2, 0, 2])


def read(source: Any) -> NDArray[np.uint8]:
    images = open_images(source)
    pixels = images.read(range(len(images)))
    assert isinstance(pixels, torch.Tensor)
    array: NDArray[np.uint8] = pixels.numpy()
    return array


def test_arrays_and_tensors_in_every_layout() -> None:
    for array in (IMAGES, IMAGES.transpose(0, 2, 3, 1)):
        np.testing.assert_array_equal(read(array), IMAGES)
        np.testing.assert_array_equal(read(torch.from_numpy(array)), IMAGES)
    grey = np.repeat(IMAGES[:, :1], 3, axis=1)
    for array in (IMAGES[:, 0], IMAGES[:, :1], IMAGES[:, 0, :, :, None]):
        np.testing.assert_array_equal(read(array), grey)


def test_what_is_read_is_a_copy() -> None:
    array = IMAGES.copy()
    images = open_images(array).read([0])
    assert isinstance(images, torch.Tensor)
    images.zero_()
    np.testing.assert_array_equal(array, IMAGES)


def test_arrays_with_labels() -> None:
    for labels in (LABELS, torch.from_numpy(LABELS), LABELS.tolist(), LABELS.astype(np.int8)):
        images = open_images((IMAGES, labels))
        assert images.labels.tolist() == LABELS.tolist()
        assert images.labels.dtype == np.int64
        assert images.classes == ["0", "1", "2"]
    assert (images.source, images.names[1]) == ("array", "array/00001")
    twos = open_images((IMAGES, LABELS), classes=["2", "0"], limit=3)
    assert twos.labels.tolist() == [0, 1, 0]
    pixels = twos.read([0, 1, 2])
    assert isinstance(pixels, torch.Tensor)
    np.testing.assert_array_equal(pixels.numpy(), IMAGES[[0, 1, 3]])
    assert open_images(IMAGES).labels.tolist() == [-1] * 6
    with pytest.raises(StepclrError, match="array has no image of 1"):
        open_images((IMAGES, LABELS), classes="1")


def test_three_gray_images_are_three() -> None:
    gray = IMAGES[:3, 0]
    for source in (gray, (gray, LABELS[:3]), (torch.from_numpy(gray), LABELS[:3]), torch.from_numpy(gray[:, None])):
        assert len(open_images(source)) == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (IMAGES.astype(np.float32), r"must be uint8 \(0 to 255\), not float32"),
        (IMAGES[:0], r"not \[0, 3, 5, 7\]"),
        (IMAGES[0, 0], r"not \[5, 7\]"),
        (np.zeros((2, 20, 8, 30), np.uint8), "must have 1 to 16 channels"),
        (IMAGES[0].transpose(1, 2, 0), r"\[5, 7, 3\] are one image, not several: pass images\[None\]$"),
        ((IMAGES[0].transpose(1, 2, 0), LABELS[:5]), "are one image"),
        (IMAGES[0].transpose(1, 2, 0) / 255, "are one image"),
        (np.zeros((5, 7, 4), np.uint8), "are one image"),
        (IMAGES[0, 0, :, :, None], "are one image"),
        (torch.from_numpy(IMAGES[0]), r"pass images\[None\]; or, if they are 3 gray images, images\[:, None\]"),
        ((IMAGES, LABELS[:5]), r"labels must be 6 whole numbers, not int64 \[5\]"),
        ((IMAGES, LABELS * 0.5), "not float64"),
        ((IMAGES, LABELS - 1), "not -2 to 1"),
        ((IMAGES, LABELS * 10**9), "class numbers"),
    ],
)
def test_arrays_that_are_no_images(source: Any, message: str) -> None:
    with pytest.raises(StepclrError, match=message):
        open_images(source)


class Shapes(Dataset[Any]):
    """Items of whatever form; one that is an exception is raised."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


class Stream(IterableDataset[Any]):
    """A Dataset without indices."""

    def __iter__(self) -> Iterator[Any]:
        return iter(forms())


def forms() -> list[Any]:
    """One image in every form that a Dataset may hand it out."""
    array = IMAGES[0].transpose(1, 2, 0)
    return [Image.fromarray(array), torch.from_numpy(IMAGES[0]), array]


def test_a_dataset_of_bare_images_in_any_form() -> None:
    images = open_images(Shapes(forms()))
    assert (images.labels.tolist(), images.classes, images.source) == ([-1] * 3, [], "Shapes")
    pixels = images.read([0, 1, 2])
    assert isinstance(pixels, torch.Tensor)
    np.testing.assert_array_equal(pixels.numpy(), np.stack([IMAGES[0]] * 3))
    grey = read(Shapes([Image.fromarray(IMAGES[0, 0]), IMAGES[0, 0], torch.from_numpy(IMAGES[0, :1])]))
    np.testing.assert_array_equal(grey, np.repeat(np.stack([IMAGES[0, :1]] * 3), 3, axis=1))


def test_a_dataset_of_images_and_labels() -> None:
    labels = [1, None, torch.tensor(2)]
    images = open_images(Shapes(list(zip(forms(), labels, strict=True))))
    assert images.labels.tolist() == [1, -1, 2]
    named = Shapes([(image, 1) for image in forms()])
    named.classes = ("cat", "dog")  # type: ignore[attr-defined]
    assert open_images(named, classes="dog").labels.tolist() == [0, 0, 0]
    assert open_images(Subset(named, [0, 2]), classes="dog").classes == ["dog"]
    named.classes = ["cat"]  # type: ignore[attr-defined]
    with pytest.raises(StepclrError, match="not 1 to 1"):
        open_images(named)
    named.classes = ["cat", "dog", "cat"]  # type: ignore[attr-defined]
    with pytest.raises(StepclrError, match="two classes named 'cat': give each its own name"):
        open_images(named)


class Counted(FakeData):  # type: ignore[misc]
    """torchvision's random images with `targets`, counting how often one is made."""

    asked = 0

    def __init__(self, size: int = 12, **options: Any) -> None:
        super().__init__(size=size, image_size=(3, 8, 8), num_classes=4, **options)
        self.targets = [int(super(Counted, self).__getitem__(i)[1]) for i in range(size)]

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        return super().__getitem__(index)


def test_labels_come_from_targets_when_those_are_the_items_labels() -> None:
    """An image of each of the 4 classes is compared; the others are not read."""
    dataset = Counted(100)
    assert open_images(dataset).labels.tolist() == dataset.targets
    assert open_images(Subset(dataset, [3, 1])).labels.tolist() == [dataset.targets[3], dataset.targets[1]]
    assert dataset.asked <= 1 + 4 + 1 + 2
    dataset = Counted()
    misled = Counted()
    misled.targets = [label + 1 for label in dataset.targets]  # not what its items say
    assert open_images(misled).labels.tolist() == dataset.targets


class Merged(Counted):
    """Its last class is its first one, which its list of labels does not know."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image, int(label) % 3


def test_labels_that_a_dataset_changes_for_some_classes_are_those_that_come_with_the_images() -> None:
    merged = Merged()
    assert merged.targets[0] < 3 in merged.targets  # the first image does not show it
    assert open_images(merged).labels.tolist() == [label % 3 for label in merged.targets]


def test_the_transforms_of_torchvision_are_left_aside() -> None:
    plain = open_images(Counted())
    dataset = Counted(transform=ToTensor(), target_transform=lambda label: 3 - label)
    forms: list[Any] = [dataset, Subset(dataset, range(12)), ConcatDataset([dataset])]
    for given in forms:
        images = open_images(given)
        assert torch.equal(images.read(range(12)), plain.read(range(12)))  # type: ignore[arg-type]
        assert images.labels.tolist() == plain.labels.tolist()
        name = type(given).__name__
        said = f"ignored target_transform, transform of {name}: the images are read as they are"
        assert heading(images).splitlines()[1:] == [said]
    assert dataset.transform is not None  # it stays as it was


class Table:
    """A data set of Hugging Face, as far as it is used: columns, rows as dicts, and a format that changes both."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any], formatted: bool = True) -> None:
        self.columns, self.features, self.formatted = columns, features, formatted
        self.column_names = list(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: int | str) -> Any:
        if self.formatted:
            return "formatted"
        if isinstance(key, str):
            return self.columns[key]
        return {name: values[key] for name, values in self.columns.items()}

    def with_format(self, kind: None) -> "Table":
        return Table(self.columns, self.features, kind is not None)


def feature(kind: str, **attributes: Any) -> Any:
    return type(kind, (), attributes)()


def table(**features: Any) -> Table:
    """Six images, and columns of class numbers or names for the other features."""
    pixels = [Image.fromarray(image.transpose(1, 2, 0)) for image in IMAGES]
    columns: dict[str, list[Any]] = {}
    for name, each in features.items():
        columns[name] = pixels if type(each).__name__ == "Image" else [1, 0, -1, 1, None, 1]
    return Table(columns, features)


def test_a_data_set_of_hugging_face() -> None:
    names = feature("ClassLabel", names=["cat", "dog"])
    images = open_images(table(img=feature("Image"), id=feature("Value"), label=names))
    assert (images.source, images.names[1], images.classes) == ("Table", "Table/00001", ["cat", "dog"])
    assert images.labels.tolist() == [1, 0, -1, 1, -1, 1]
    np.testing.assert_array_equal(np.stack([image.numpy() for image in images.read(range(6))]), IMAGES)
    assert open_images(table(img=feature("Image"))).classes == []
    both = table(image=feature("Image"), thumbnail=feature("Image"), label=names, other=names)
    assert open_images(both, classes="dog").labels.tolist() == [0, 0, 0]
    stream = type("IterableDataset", (), {"features": {"image": feature("Image")}, "column_names": ["image"]})()
    for given, said in (
        ({"train": both, "test": both}, "a dict has the splits 'train', 'test': give one of them, as"),
        (
            table(a=feature("Image"), b=feature("Image")),
            "Table has several columns of images, a, b; rename one of them",
        ),
        (
            table(image=feature("Image"), fine=names, coarse=names),
            "several columns of labels, fine, coarse; rename one",
        ),
        (table(text=feature("Value")), "Table has no column of images; its columns are text"),
        (stream, "IterableDataset is a stream"),
        (Table({"image": [], "label": []}, {"image": feature("Image"), "label": names}), "Table has no images"),
    ):
        with pytest.raises(StepclrError, match=said):
            open_images(given)


def test_a_dataset_is_decoded_once_within_the_budget() -> None:
    dataset = Counted()
    images = open_images(dataset)
    dataset.asked = 0
    decoded = images.decoded(4)
    for _ in range(3):
        pixels = decoded.read(range(12))
    assert dataset.asked == 12
    streamed = images.decoded(4, budget=100)
    assert isinstance(pixels, torch.Tensor)
    assert pixels.shape == (12, 3, 4, 4)
    dataset.asked = 0
    assert (streamed.read(range(12)) == pixels).all()  # type: ignore[union-attr]
    assert dataset.asked == 12
    assert decoded.decoded(4).read([5]).equal(pixels[5:6])  # type: ignore[union-attr]


def test_a_dataset_whose_items_have_no_label() -> None:
    images = open_images(TensorDataset(torch.zeros(3, 3, 4, 4, dtype=torch.uint8)))
    assert (images.labels.tolist(), images.classes) == ([-1, -1, -1], [])


def test_a_dataset_with_items_that_cannot_be_read() -> None:
    items = [ValueError("gone"), *((form, 1) for form in forms())]
    images = open_images(Shapes(items))
    assert images.labels.tolist() == [-1, 1, 1, 1]
    decoded = images.decoded(100)
    assert decoded.labels.tolist() == [1, 1, 1]
    assert decoded.names == images.names[1:]
    assert decoded.skipped == [("Shapes/00000", "ValueError: gone")]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Shapes([]), "none of its 0 images"),
        (Shapes([torch.rand(3, 4, 4)]), r"Shapes: .* uint8 .* leave out its transform"),
        (Shapes([("a", 1)]), "not str"),
        (Shapes([torch.zeros(2, 4, 4, dtype=torch.uint8)]), r"not \[2, 4, 4\]"),
        (Shapes([(torch.zeros(3, 4, 4, dtype=torch.uint8), 1.5)]), "class number, not 1.5"),
        (Stream(), "cannot open images from a Stream"),
    ],
)
def test_datasets_that_hold_no_images(dataset: Dataset[Any], message: str) -> None:
    with pytest.raises(StepclrError, match=message):
        open_images(dataset)


def test_large_arrays_are_reduced_within_the_budget_or_when_read() -> None:
    array = RANDOM.integers(0, 256, (5, 40, 60, 3), dtype=np.uint8)
    images = open_images((array, np.arange(5)))
    assert images.decoded(40) is images
    held, streamed = images.decoded(10), images.decoded(10, budget=1000)
    assert held.sizes().tolist() == streamed.sizes().tolist() == [[10, 15]] * 5
    assert torch.equal(held.read(range(5)), streamed.read(range(5)))  # type: ignore[arg-type]
    assert streamed.decoded(10).take([3]).labels.tolist() == [3]
    fair = np.asarray(Image.fromarray(array[0]).resize((15, 10), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(held.read([0])[0].permute(1, 2, 0).numpy() - fair).mean() < 6  # noise, the hardest case
