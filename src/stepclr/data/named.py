"""Data sets known by name: the bundled sample, and those that torchvision downloads and reads."""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepclr.errors import StepclrError
from stepclr.io import recall, stamps, user_folder

SPLITS = {
    "stl10": ("train", "test", "unlabeled", "train+unlabeled"),
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "fashion-mnist": ("train", "test"),
    "sample": ("unlabeled", "train", "test"),
}
FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]

Known = tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]


def read_sample(split: str) -> Known:
    """(images `[n, 28, 28]`, labels `[n]`, class names) of the bundled part of Fashion-MNIST.

    unlabeled: 10,000 of its training images; train: 1,000 others, 100 a class; test: 2,000 of its test images.
    """
    try:
        with (files("stepclr.data") / "sample" / "fashion_mnist.npz").open("rb") as file:
            sample = np.load(file, allow_pickle=False)
            images = sample[split]
            labels = np.full(len(images), -1) if split == "unlabeled" else sample[f"{split}_labels"]
    except Exception as error:  # of a damaged file NumPy and zipfile raise whatever they stumble over
        raise StepclrError(f"the bundled sample cannot be read ({error}); install stepclr again") from error
    return images, labels.astype(np.int64), FASHION


def read_torchvision(name: str, split: str) -> Known:
    """(images, labels, class names) of a data set of torchvision's, downloaded at first use to `$STEPCLR_DATA`.

    The default folder is `~/.cache/stepclr/data`. Raises `StepclrError` that says which file to put where if it cannot
    be downloaded. CIFAR's files are pickles: torchvision opens none before its published MD5 matches. STL-10's are bare
    bytes, 3 GB of them: their MD5s are taken once and remembered, and the images stay in the file, mapped.
    """
    from torchvision import datasets  # a second to import, and folders do without

    class FashionMNIST(datasets.FashionMNIST):  # type: ignore[misc]  # torchvision derives a folder from the name
        def _check_legacy_exist(self) -> bool:
            return False  # else it would unpickle a file that has no published MD5

    class STL10(datasets.STL10):  # type: ignore[misc]
        # Nothing of it is ever unpickled, so that what is remembered of a file may stand for reading it again.
        def _check_integrity(self) -> bool:
            listed = dict([*self.train_list, *self.test_list])
            return _md5s(Path(self.root) / self.base_folder, list(listed)) == list(listed.values())

        def _STL10__loadfile(self, data: str, labels: str | None = None) -> tuple[Any, Any]:
            folder = Path(self.root) / self.base_folder
            pixels = np.memmap(folder / data, np.uint8, "r").reshape(-1, 3, 96, 96)  # each channel column after column
            numbers = np.fromfile(folder / labels, np.uint8) - 1 if labels else None
            return np.asarray(pixels).transpose(0, 1, 3, 2), numbers

    kinds = {
        "stl10": STL10,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "fashion-mnist": FashionMNIST,
    }
    kind, root = kinds[name], user_folder("STEPCLR_DATA", "data")
    which = {"split": split} if name == "stl10" else {"train": split == "train"}
    try:
        dataset = kind(root, download=True, **which)
    except Exception as error:  # the network, the disk, an archive: whatever it is, the way out is the same
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StepclrError(f"{name} cannot be downloaded ({reason}); {_by_hand(kind, root)}") from error
    labels = dataset.labels if name == "stl10" else dataset.targets
    classes = [str(label) for label in getattr(dataset, "classes", range(10))]
    return np.asarray(dataset.data), np.asarray(labels).astype(np.int64), classes


def _md5s(folder: Path, names: list[str]) -> list[str | None] | None:
    def md5(i: int) -> str | None:
        try:
            with (folder / names[i]).open("rb") as file:
                return hashlib.file_digest(file, "md5").hexdigest()
        except OSError:
            return None

    memory = user_folder("STEPCLR_CACHE", "decoded")
    return recall("md5", folder.absolute(), names, stamps(folder, names), md5, memory)


def _by_hand(kind: Any, root: Path) -> str:
    if hasattr(kind, "resources"):
        folder = root / "FashionMNIST" / "raw"
        wanted = [(file, f"{kind.mirrors[0]}{file}", md5) for file, md5 in kind.resources]
    else:
        folder, wanted = root, [(kind.filename, kind.url, kind.tgz_md5)]
    listed = ", ".join(f"{file} (from {url}, MD5 {md5})" for file, url, md5 in wanted)
    return f"put {listed} into {folder}"
