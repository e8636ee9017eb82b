"""Data sets with a name: the bundled sample, and those that torchvision downloads."""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepclr.data.recall import recall, stamps
from stepclr.errors import StepclrError, fault_of
from stepclr.io import user_folder

SPLITS = {
    "stl10": ("train", "test", "unlabeled", "train+unlabeled"),
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "fashion-mnist": ("train", "test"),
    "sample": ("unlabeled", "train", "test"),
}
FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]

NamedSet = tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]


def read_sample(split: str) -> NamedSet:
    """(images `[n, 28, 28]`, labels `[n]`, class names) of the bundled part of Fashion-MNIST.

    unlabeled: 10,000 of its training images; train: 1,000 others, 100 per class; test: 2,000 of its test images.
    """
    try:
        with (files("stepclr.data") / "sample" / "fashion_mnist.npz").open("rb") as file:
            sample = np.load(file, allow_pickle=False)
            images = sample[split]
            labels = np.full(len(images), -1) if split == "unlabeled" else sample[f"{split}_labels"]
    except Exception as error:  # NumPy and zipfile raise errors of many types for a corrupt file
        raise StepclrError(f"the bundled sample cannot be read: {fault_of(error)}; install stepclr again") from error
    return images, labels.astype(np.int64), FASHION


def read_torchvision(name: str, split: str) -> NamedSet:
    """(images, labels, class names) of a torchvision data set, which is downloaded at first use to `$STEPCLR_DATA`.

    The default folder is `~/.cache/stepclr/data`. CIFAR's files are pickles: torchvision opens none of them before its
    published MD5 matches. Raises `StepclrError` that says which file to put where if the download fails.
    """
    from torchvision import datasets  # takes a second to import, and folders do not need it

    class FashionMNIST(datasets.FashionMNIST):  # type: ignore[misc]  # torchvision derives a folder from the name
        def _check_legacy_exist(self) -> bool:
            return False  # else it would unpickle a file that has no published MD5

    kinds = {
        "stl10": datasets.STL10,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "fashion-mnist": FashionMNIST,
    }
    kind, root = kinds[name], user_folder("STEPCLR_DATA", "data")
    try:
        if name == "stl10":
            return _read_stl10(kind, root, split)
        dataset = kind(root, train=split == "train", download=True)
    except Exception as error:  # of the network, the disk or an archive: the remedy is the same
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StepclrError(f"{name} cannot be downloaded ({reason}); {_by_hand(kind, root)}") from error
    classes = [str(label) for label in dataset.classes]
    return np.asarray(dataset.data), np.asarray(dataset.targets).astype(np.int64), classes


def _read_stl10(kind: Any, root: Path, split: str) -> NamedSet:
    """STL-10's files are bare bytes, 3 GB of them: hashed once, for as long as they do not change, and then mapped."""
    from torchvision.datasets.utils import download_and_extract_archive

    folder = root / kind.base_folder
    published = dict([*kind.train_list, *kind.test_list])
    if _md5s(folder, list(published)) != list(published.values()):
        download_and_extract_archive(kind.url, root, filename=kind.filename, md5=kind.tgz_md5)

    images, labels = [], []
    for part in split.split("+"):
        pixels = np.asarray(np.memmap(folder / f"{part}_X.bin", np.uint8, "r")).reshape(-1, 3, 96, 96)
        images.append(pixels.transpose(0, 1, 3, 2))  # each channel is stored column after column
        if part == "unlabeled":
            labels.append(np.full(len(pixels), -1))
        else:
            labels.append(np.fromfile(folder / f"{part}_y.bin", np.uint8).astype(np.int64) - 1)
    classes = [str(label) for label in range(10)]
    if (folder / kind.class_names_file).is_file():
        classes = (folder / kind.class_names_file).read_text().splitlines()
    # One part stays in its file, mapped; of two the pixels are copied into memory.
    return images[0] if len(images) == 1 else np.concatenate(images), np.concatenate(labels), classes


def _md5s(folder: Path, names: list[str]) -> list[str | None]:
    def md5(i: int) -> str | None:
        try:
            with (folder / names[i]).open("rb") as file:
                return hashlib.file_digest(file, "md5").hexdigest()
        except OSError:
            return None

    return recall("md5", folder.absolute(), names, stamps(folder, names), md5)


def _by_hand(kind: Any, root: Path) -> str:
    if hasattr(kind, "resources"):
        folder = root / "FashionMNIST" / "raw"
        wanted = [(file, f"{kind.mirrors[0]}{file}", md5) for file, md5 in kind.resources]
    else:
        folder, wanted = root, [(kind.filename, kind.url, kind.tgz_md5)]
    listed = ", ".join(f"{file} (from {url}, MD5 {md5})" for file, url, md5 in wanted)
    return f"put {listed} into {folder}"
