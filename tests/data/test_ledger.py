"""Step 1: all that lies under a source is read, or it is counted with a reason."""

import csv
import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from made_files import file_of, fill, heic, scene
from PIL import Image
from torch.utils.data import Dataset

from stepclr.data.formats import format_of
from stepclr.data.images import ImageSet
from stepclr.data.ledger import Ledger
from stepclr.data.sources import open_images
from stepclr.errors import StepclrError


def zipped(files: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(files: dict[str, bytes], path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def every_kind(files: dict[str, bytes], tmp_path: Path) -> list[ImageSet]:
    """The same files in a folder, a zip and a tar."""
    sources = [fill(tmp_path / "in", files), zipped(files, tmp_path / "in.zip"), tarred(files, tmp_path / "in.tar")]
    return [open_images(source) for source in sources]


def test_what_is_left_out_is_counted_by_kind_with_a_way_to_read_it(tmp_path: Path) -> None:
    files = {f"{i}.png": file_of(Image.fromarray(scene())) for i in range(3)}
    files |= {f"{i}.CR2": b"II*\0raw" for i in range(5)} | {"a/notes.txt": b"text", "a/x.npy": b"\x93NUMPY"}
    for images in every_kind(files, tmp_path):
        assert len(images) == 3
        (line,) = images.ledger.lines()
        assert line.startswith("ignored 7 files and folders: 5 .cr2 (raw data of cameras: convert")
        assert "1 .txt, " in line
        assert "1 .npy (arrays beside other images: give them" in line


def test_names_without_a_suffix_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    image = Image.fromarray(scene())
    kinds = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
    files = {f"in {kind}": file_of(image, kind) for kind in kinds}
    files |= {"IMG 12.30.45": file_of(image), "x.jpg?width=640": file_of(image), "README": b"P5 or BM, as you like"}
    for images in every_kind(files, tmp_path):
        assert sorted(images.names) == sorted(files.keys() - {"README"})
        assert images.ledger.lines() == ["ignored 1 file or folder: 1 without a suffix"]
        assert len(images.read(range(len(images)))) == 9


@pytest.mark.parametrize("name", ["a.heic", "A.HEIF", "no suffix", "an iPhone's.jpg"])
def test_heic_is_read_where_pillow_heif_is_installed(name: str, tmp_path: Path) -> None:
    for images in every_kind({name: heic()}, tmp_path):
        assert images.sizes().tolist() == [[40, 60]]
        image, _ = images[0]
        assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - scene()).mean() < 4  # half the color is stored


@pytest.mark.parametrize(("name", "read"), [("a.heic", False), ("no suffix", False), ("a.jpg", True)])
def test_heic_is_counted_with_what_to_install_where_it_is_not(
    name: str, read: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, {name: heic(), "b.png": file_of(Image.fromarray(scene()))})
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    images = open_images(tmp_path)
    images.read_readable(range(len(images)))
    (line,) = images.ledger.lines()
    assert "stepclr[heic]" in line
    assert line.startswith("skipped 1 image" if read else "ignored 1 file or folder: 1 .heic (")


@pytest.mark.parametrize(
    "folder",
    ["@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".Trash-1000", ".thumbnails", "__MACOSX"],
)
def test_folders_of_systems_are_neither_classes_nor_images(folder: str, tmp_path: Path) -> None:
    image = file_of(Image.fromarray(scene()))
    files = {"cat/a.png": image, f"{folder}/a.png": image, f"cat/{folder}/deep/b.png": image, "cat/Thumbs.db": b"\xd0"}
    for images in every_kind(files, tmp_path):
        assert images.names[0] == "cat/a.png"
        assert len(images) == 1
        assert folder not in images.classes
        (line,) = images.ledger.lines()
        assert line.startswith("ignored 3 files and folders: ")
        assert "1 Thumbs.db" in line
        assert ("2 hidden" if folder.startswith(".") else f"2 {folder}/") in line


def test_a_run_inside_of_its_own_images_is_left_out(tmp_path: Path) -> None:
    """As `stepclr pretrain . --out run` makes one: a resumed run would find its chart among the images, and a class."""
    files = ["a.png", "run/config.json", "run/metrics.jsonl", "run/evaluation.png", "class/config.json", "class/b.png"]
    fill(tmp_path, dict.fromkeys(files, file_of(Image.new("RGB", (4, 4)))))
    images = open_images(tmp_path)
    assert (images.names, images.classes) == (["a.png", "class/b.png"], ["class"])
    assert images.ledger.ignored["run/"].kind == "run"
    assert open_images(tmp_path / "run").names == ["evaluation.png"]  # whoever names it means it


def test_a_class_may_be_called_recycled(tmp_path: Path) -> None:
    image = file_of(Image.fromarray(scene()))
    for images in every_kind({f"{name}/a.png": image for name in ("paper", "recycled", "RECYCLER", "trash")}, tmp_path):
        assert images.classes == ["paper", "recycled", "trash"]


def test_links_to_nothing_are_missing_images(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": file_of(Image.fromarray(scene()))})
    for i in range(58):
        (tmp_path / f"link {i}.png").symlink_to(tmp_path / "gone" / f"{i}.png")
    (tmp_path / "notes.txt").symlink_to(tmp_path / "gone.txt")
    os.mkfifo(tmp_path / "pipe.png")
    images = open_images(tmp_path)
    assert len(images) == 1
    skipped, ignored = images.ledger.lines()
    assert skipped.startswith("skipped 59 images that cannot be read, for example link 0.png: a link to a file that")
    assert ignored == "ignored 1 file or folder: 1 .txt"
    assert skipped.endswith(" (1 other reason)")
    assert dict(images.skipped)["pipe.png"] == "a device or a pipe, not a file"


def test_a_folder_of_tars_says_how_tars_are_opened(tmp_path: Path) -> None:
    tarred({"a.png": file_of(Image.fromarray(scene()))}, tmp_path / "0000.tar")
    with pytest.raises(StepclrError, match=r"contains no image .*1 \.tar \(shards: give DIR/\{0000\.\.0127\}\.tar or"):
        open_images(tmp_path)
    with pytest.raises(StepclrError, match=r"x\.npz is not a folder, a zip, a tar or an image \(arrays: load"):
        open_images(fill(tmp_path, {"x.npz": b""}) / "x.npz")


def test_every_set_of_a_source_shares_its_ledger_and_the_cache_remembers(tmp_path: Path) -> None:
    """Whoever opened a source learns what was found later: in a part of it, decoded, from the cache, batch by batch."""
    white = np.full((40, 40, 2), 255, np.uint8)
    white[..., 1] = np.eye(40) * 255
    fill(
        tmp_path,
        {"a/0.png": file_of(Image.fromarray(white)), "a/1.png": b"broken", "b/2.png": file_of(Image.new("L", (9, 9)))},
    )
    expected = [
        "skipped 1 image that cannot be read, for example a/1.png: not an image in a known format",
        "changed 1 image: 1 a light drawing on transparency, laid over black",
    ]
    for budget in (2**30, 2**30, 0):
        images = open_images(tmp_path)
        assert images.ledger.lines() == []
        some = images.keep("a").take([0, 1]).decoded(16, budget)
        some.read_readable(range(len(some)))
        assert images.ledger.lines() == expected
    images.ledger.write(tmp_path / "left.csv")
    with (tmp_path / "left.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["path", "reason"],
            ["a/1.png", "not an image in a known format"],
            ["a/0.png", "changed: a light drawing on transparency, laid over black"],
        ]
    Ledger().write(tmp_path / "left.csv")
    assert not (tmp_path / "left.csv").exists()  # it was that of an earlier command


class Drawings(Dataset[Image.Image]):
    """PIL images of a program: a white drawing on transparency, and one of floating-point numbers."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Image.Image:
        if index:
            return Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
        white = np.full((40, 40, 2), 255, np.uint8)
        white[..., 1] = np.eye(40) * 255
        return Image.fromarray(white)


def test_images_of_a_dataset_follow_the_same_rules() -> None:
    images = open_images(Drawings())
    assert images.read_readable([0, 1])[1].tolist() == [0]
    assert "--value-range LOW,HIGH" in images.skipped[0][1]
    assert images.ledger.lines()[1] == "changed 1 image: 1 a light drawing on transparency, laid over black"
    assert int(open_images(Drawings(), value_range=(0, 1))[1][0].max()) == 255


def test_numbers_in_arrays_and_pil_images_follow_the_same_rule() -> None:
    floats = np.linspace(0, 1, 2 * 64, dtype=np.float32).reshape(2, 8, 8)
    with pytest.raises(StepclrError, match=r"images must be uint8 .*value_range=\(LOW, HIGH\)"):
        open_images(floats)
    images = open_images(floats, value_range=(0, 1))
    assert int(images[1][0].max()) == 255
    assert torch.equal(images[0][0], open_images(torch.from_numpy(floats), value_range=(0, 1))[0][0])


def test_a_text_is_no_image_by_its_first_letters() -> None:
    assert format_of(b"BMW is not a BMP") is None
    assert format_of(b"P5: a level") is None
    assert format_of(b"") is None
