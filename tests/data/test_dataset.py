"""An `ImageSet` is a torch Dataset, for anybody's DataLoader, workers included."""

import pickle
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

import stepclr
from stepclr.data.images import ImageSet
from stepclr.data.shards.packing import pack


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPCLR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("cat/0", "cat/1", "dog/2", "dog/3", "dog/4", "5"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 9, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def sources(photos: Path) -> dict[str, ImageSet]:
    """The same six images in every kind of store."""
    folder = stepclr.open_images(photos)
    shutil.make_archive(str(photos.parent / "zipped"), "zip", photos)
    pack(folder, photos.parent / "shards", per_shard=4)
    memory = fsspec.filesystem("memory")
    for path in (photos.parent / "shards").iterdir():
        memory.pipe_file(f"/photos/{path.name}", path.read_bytes())
    pixels = folder.read(range(6))
    assert isinstance(pixels, torch.Tensor)
    return {
        "folder": folder,
        "zip": stepclr.open_images(photos.parent / "zipped.zip"),
        "shards": stepclr.open_images(photos.parent / "shards"),
        "remote shards": stepclr.open_images("memory://photos"),
        "cache": folder.decoded(8),
        "streamed": folder.decoded(8, budget=0),
        "array": stepclr.open_images((pixels, torch.from_numpy(folder.labels))),
        "dataset": stepclr.open_images(Subset(folder, range(6))),
    }


def test_an_image_and_its_label_by_index(photos: Path) -> None:
    images = stepclr.open_images(photos)
    image, label = images[-1]
    assert (image.shape, image.dtype, label) == ((3, 8, 9), torch.uint8, 1)
    assert torch.equal(image, images.read([5])[0])
    assert [images[i][1] for i in range(6)] == images.labels.tolist() == [-1, 0, 0, 1, 1, 1]
    with pytest.raises(IndexError, match="outside the 6 images"):
        images[6]


def test_an_image_that_cannot_be_read_is_named(photos: Path) -> None:
    (photos / "cat" / "1.png").write_bytes(b"no image")
    images = stepclr.open_images(photos)
    with pytest.raises(stepclr.StepclrError, match=r"cat/1\.png cannot be read: not an image in a known format"):
        images[2]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_every_store_goes_through_a_data_loader_with_workers(photos: Path, start: str) -> None:
    pixels = stepclr.open_images(photos).read(range(6))
    stores = sources(photos)
    if start == "spawn":  # starts slowly; that every store can be pickled is tested below
        stores = {"zip": stores["zip"]}
    for name, images in stores.items():
        images.read(range(6))  # files are open, threads run, shards are fetched, before the workers start
        batches = list(DataLoader(images, batch_size=4, num_workers=2, multiprocessing_context=start))
        assert [len(batch) for batch, _ in batches] == [4, 2], name
        assert torch.equal(torch.cat([batch for batch, _ in batches]), torch.as_tensor(pixels)), name
        assert torch.cat([labels for _, labels in batches]).tolist() == images.labels.tolist(), name


def test_every_store_can_be_pickled(photos: Path) -> None:
    for name, images in sources(photos).items():
        images.read([0, 1])
        copy = pickle.loads(pickle.dumps(images))
        assert list(copy.names) == list(images.names), name
        assert copy.labels.tolist() == images.labels.tolist(), name


def test_the_example_of_the_docstring_runs() -> None:
    lines = (ImageSet.__doc__ or "").split("\n\n")[1]
    names: dict[str, object] = {"stepclr": stepclr, "torch": torch}
    exec("\n".join(line.strip() for line in lines.splitlines()).replace("num_workers=2", "num_workers=0"), names)
    image, batch, loader = names["image"], names["batch"], names["loader"]
    assert isinstance(image, torch.Tensor)
    assert isinstance(batch, torch.Tensor)
    assert isinstance(loader, DataLoader)
    assert (image.shape, batch.shape) == ((3, 28, 28), (2, 3, 28, 28))
    pixels, labels = next(iter(loader))
    assert (pixels.shape, labels.shape) == ((256, 3, 28, 28), (256,))
