"""Step 1: the bundled sample, and the data sets that torchvision reads."""

import gzip
import hashlib
import io
import os
import pickle
import re
import time
import urllib.request
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from make_sample import DEBIAN, LIMIT, make, read_idx
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from stepclr.data import recall
from stepclr.data.images import ImageSet
from stepclr.data.named import SPLITS
from stepclr.data.sources import open_images
from stepclr.errors import StepclrError


def pixels(images: ImageSet) -> NDArray[np.uint8]:
    pixels = images.read(range(len(images)))
    assert isinstance(pixels, torch.Tensor)
    array: NDArray[np.uint8] = pixels.numpy()
    return array


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `$STEPCLR_DATA`, and no network."""

    def offline(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("STEPCLR_DATA", str(tmp_path))
    return tmp_path


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def publish(kind: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the files in the folder those whose MD5 torchvision expects."""
    for parts in ("train_list", "test_list"):
        monkeypatch.setattr(kind, parts, [[name, md5(folder / name)] for name, _ in getattr(kind, parts)])
    if hasattr(kind, "meta"):
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / kind.meta["filename"])})


def test_the_sample_is_as_described() -> None:
    sizes = {split: len(open_images(f"sample:{split}")) for split in SPLITS["sample"]}
    assert sizes == {"unlabeled": 10_000, "train": 1_000, "test": 2_000}
    unlabeled, train, test = (open_images(f"sample:{split}") for split in SPLITS["sample"])
    assert (unlabeled.labels == -1).all()
    assert unlabeled.classes == []
    assert np.bincount(train.labels).tolist() == [100] * 10
    assert np.bincount(test.labels).tolist() == [200] * 10
    assert train.classes == test.classes == datasets.FashionMNIST.classes
    assert (train.names[12], train.source) == ("sample:train/00012", "sample:train")
    batch = train.read([3, 1])
    assert isinstance(batch, torch.Tensor)
    assert (batch.shape, batch.dtype) == ((2, 3, 28, 28), torch.uint8)
    assert len({image.tobytes() for image in [*pixels(unlabeled), *pixels(train)]}) > 10_990  # none is in both


def test_the_sample_is_small_has_its_license_and_comes_from_its_script() -> None:
    folder = files("stepclr.data") / "sample"
    assert "MIT" in (notice := (folder / "NOTICE").read_text(encoding="utf-8"))
    assert "2017 Zalando SE" in notice
    sample = (folder / "fashion_mnist.npz").read_bytes()
    assert len(sample) <= LIMIT
    if not DEBIAN.exists():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    made, stored = make(DEBIAN), np.load(io.BytesIO(sample), allow_pickle=False)
    assert sorted(made) == sorted(stored.files)
    for name, array in made.items():
        np.testing.assert_array_equal(array, stored[name])


def test_two_classes_of_the_sample_by_names_that_contain_a_slash() -> None:
    images = open_images("sample:train", classes="T-shirt/top,Ankle boot", limit=50)
    assert images.classes == ["T-shirt/top", "Ankle boot"]
    assert np.bincount(images.labels).tolist() == [25, 25]
    with pytest.raises(StepclrError, match="sample:unlabeled has no labels"):
        open_images("sample:unlabeled", classes="Coat")


def test_unknown_names_and_splits_name_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source, message in {
        "sample:trian": r"unknown split of sample 'trian'\. Did you mean 'train'\? There are: unlabeled, train, test$",
        "cifar10": r"^cifar10 needs a split: cifar10:train, cifar10:test$",
        "clifar10:train": r"unknown source 'clifar10'\. Did you mean 'cifar10'\?",
        "sampl": r"sampl does not exist\. Did you mean 'sample:t",
    }.items():
        with pytest.raises(StepclrError, match=message):
            open_images(source)


def test_a_folder_may_have_a_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("sample", "sample:train", "july:2024"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "a.png")
    assert open_images("sample").names == ["a.png"]
    assert open_images("july:2024").names == ["a.png"]
    assert len(open_images("sample:train")) == 1000
    assert len(open_images("./sample:train")) == 1


def official_stl10(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """STL-10's own files: every channel of an image column after column, labels from 1."""
    folder.mkdir()
    thirds = np.array_split(np.arange(len(images)), 3)
    for part, at in zip(("train", "test", "unlabeled"), thirds, strict=True):
        images[at].transpose(0, 3, 2, 1).tofile(folder / f"{part}_X.bin")
        if part != "unlabeled":
            (labels[at] + 1).astype(np.uint8).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")


def test_stl10_in_its_official_layout(shared_data: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(shared_data / "stl10_airplane_car.zip") as archive:
        kinds = [
            [n for n in archive.namelist() if f"/{kind}/" in n and n.endswith(".png")] for kind in ("airplane", "car")
        ]
        names = [name for pair in list(zip(*kinds, strict=True))[::80][:6] for name in pair]
        images = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names])
    labels = np.array([0, 2] * 6)
    official_stl10(data_folder / "stl10_binary", images, labels)
    publish(datasets.STL10, data_folder / "stl10_binary", monkeypatch)
    channels_first = images.transpose(0, 3, 1, 2)
    train = open_images("stl10:train")
    np.testing.assert_array_equal(pixels(train), channels_first[:4])
    assert (train.labels.tolist(), train.classes) == ([0, 2, 0, 2], ["airplane", "bird", "car"])
    test = open_images("stl10:test", classes="car")
    np.testing.assert_array_equal(pixels(test), channels_first[[5, 7]])
    both = open_images("stl10:train+unlabeled")
    np.testing.assert_array_equal(pixels(both), channels_first[[0, 1, 2, 3, 8, 9, 10, 11]])
    assert both.labels.tolist() == [0, 2, 0, 2, -1, -1, -1, -1]
    assert open_images("stl10:unlabeled").classes == []


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which files stepclr has hashed; what it learns is remembered even of files as new as those of tests are."""
    names: list[str] = []
    real = hashlib.file_digest

    def watched(file: Any, kind: Any) -> Any:
        names.append(Path(file.name).name)
        return real(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    monkeypatch.setattr(recall, "SETTLED", -(10**12))
    return names


def test_stl10s_three_gigabytes_are_hashed_once(
    data_folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    official_stl10(data_folder / "stl10_binary", images, np.zeros(3, np.int64))
    publish(datasets.STL10, data_folder / "stl10_binary", monkeypatch)
    for _ in range(2):
        np.testing.assert_array_equal(pixels(open_images("stl10:unlabeled")), images[2:].transpose(0, 3, 1, 2))
        assert sorted(hashed) == ["test_X.bin", "test_y.bin", "train_X.bin", "train_y.bin", "unlabeled_X.bin"]
    time.sleep(0.02)  # time stamps have steps
    (data_folder / "stl10_binary" / "train_X.bin").write_bytes(bytes(96 * 96 * 3))  # as long as before
    with pytest.raises(StepclrError, match="stl10 cannot be downloaded"):
        open_images("stl10:unlabeled")
    assert hashed[5:] == ["train_X.bin"] * len(hashed[5:])


def test_no_memory_of_a_good_pickle_lets_a_poisoned_one_run(
    data_folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"class {i}" for i in range(10)]
    entry = {"data": np.zeros((1, 3072), np.uint8), "labels": [0], "label_names": names}
    paths = cifar10_files(data_folder, entry)
    publish(datasets.CIFAR10, data_folder / "cifar-10-batches-py", monkeypatch)
    open_images("cifar10:train")
    assert hashed == []  # not by us: torchvision does, each time
    before = paths[0].stat()
    poison = pickle.dumps(Poison(data_folder / "it ran"))
    paths[0].write_bytes(poison + bytes(before.st_size - len(poison)))
    os.utime(paths[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(StepclrError, match="cifar10 cannot be downloaded"):
        open_images("cifar10:train")
    assert not (data_folder / "it ran").exists()


class Poison:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


def cifar10_files(folder: Path, entry: object) -> list[Path]:
    (folder / "cifar-10-batches-py").mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    paths = [folder / "cifar-10-batches-py" / name for name in names]
    for path in paths:
        path.write_bytes(pickle.dumps(entry))
    return paths


def test_cifar10_in_its_official_layout(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    names = [f"class {i}" for i in range(10)]
    entry = {"data": data.reshape(4, -1), "labels": [9, 0, 3, 3], "label_names": names}
    cifar10_files(data_folder, entry)
    publish(datasets.CIFAR10, data_folder / "cifar-10-batches-py", monkeypatch)
    test = open_images("cifar10:test")
    np.testing.assert_array_equal(pixels(test), data)
    assert (test.labels.tolist(), test.classes) == ([9, 0, 3, 3], names)
    np.testing.assert_array_equal(pixels(open_images("cifar10:train")), np.tile(data, (5, 1, 1, 1)))


def test_a_poisoned_pickle_among_cifars_files_does_not_run(data_folder: Path) -> None:
    trace = data_folder / "it ran"
    paths = cifar10_files(data_folder, Poison(trace))
    with pytest.raises(StepclrError, match="cifar10 cannot be downloaded"):
        open_images("cifar10:train")
    assert not trace.exists()
    pickle.loads(paths[0].read_bytes())
    assert trace.exists()  # it would have shown


def test_fashion_mnist_from_debians_own_files_next_to_a_poisoned_old_one(data_folder: Path) -> None:
    if not DEBIAN.exists():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    raw, old = data_folder / "FashionMNIST" / "raw", data_folder / "FashionMNIST" / "processed"
    raw.mkdir(parents=True)
    old.mkdir()
    for file in DEBIAN.glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()) if "t10k" in file.name else b"")
    for name in ("training.pt", "test.pt"):
        torch.save(Poison(data_folder / "it ran"), old / name)
    test = open_images("fashion-mnist:test")
    np.testing.assert_array_equal(pixels(test)[:, 0], read_idx(DEBIAN / "t10k-images-idx3-ubyte.gz"))
    labels = gzip.decompress((DEBIAN / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    assert test.labels.tolist() == list(labels)
    assert test.classes[0] == "T-shirt/top"
    assert not (data_folder / "it ran").exists()


@pytest.mark.parametrize(
    ("source", "file", "md5_starts", "folder"),
    [
        ("stl10:test", "stl10_binary.tar.gz", "91f77", "."),
        ("cifar10:test", "cifar-10-python.tar.gz", "c58f3", "."),
        ("cifar100:train", "cifar-100-python.tar.gz", "eb905", "."),
        ("fashion-mnist:train", "t10k-labels-idx1-ubyte.gz", "bb300", "FashionMNIST/raw"),
    ],
)
def test_offline_it_says_which_file_to_put_where(
    source: str, file: str, md5_starts: str, folder: str, data_folder: Path
) -> None:
    with pytest.raises(StepclrError) as error:
        open_images(source)
    message = str(error.value)
    assert re.search(rf"{re.escape(file)} \(from http\S*/{re.escape(file)}, MD5 {md5_starts}[0-9a-f]{{27}}\)", message)
    assert message.endswith(f"into {data_folder / folder}")
    assert "Name or service not known" in message
    assert "\n" not in message
