"""Step 1: a user's own folders and zips, tidy or not."""

import io
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stepclr.data.images import ImageSet
from stepclr.data.sources import open_images
from stepclr.errors import StepclrError


def save(path: Path, shade: int, size: tuple[int, int] = (8, 8)) -> Path:
    """A grey image, its shade telling which it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, shade).save(path)
    return path


def shades(images: ImageSet) -> list[int]:
    return [int(image[0, 0, 0]) for image in images.read(range(len(images)))]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of two classes, one in a sub-folder of its class, one loose, and much that is no image."""
    root = tmp_path / "photos"
    save(root / "dog" / "b.PNG", 3)
    save(root / "dog" / "2024" / "a.png", 2)
    save(root / "cat" / "x.png", 1)
    save(root / "loose.png", 4)
    for ignored in (".hidden.png", "__MACOSX/cat/x.png", ".git/y.png", "dog/._b.png"):
        save(root / ignored, 99)
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "no images").mkdir()
    return root


def zipped(folder: Path, file: Path, top: str = "") -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, f"{top}{path.relative_to(folder)}")
    return file


def test_class_folders_give_labels_and_loose_files_have_none(photos: Path) -> None:
    for source in (photos, str(photos), f"{photos}/"):
        images = open_images(source)
        assert images.names == ["cat/x.png", "dog/2024/a.png", "dog/b.PNG", "loose.png"]
        assert images.classes == ["cat", "dog"]
        assert images.labels.tolist() == [0, 1, 1, -1]
        assert images.labels.dtype == np.int64
        assert shades(images) == [1, 2, 3, 4]
        assert (images.source, len(images), images.skipped) == (str(photos), 4, [])


def test_a_zip_is_the_same_set_as_its_folder_also_below_one_top_folder(photos: Path, tmp_path: Path) -> None:
    folder = open_images(photos)
    for top in ("", "photos of 2024/"):
        images = open_images(zipped(photos, tmp_path / "photos.zip", top))
        assert images.classes == folder.classes
        assert images.labels.tolist() == folder.labels.tolist()
        assert shades(images) == shades(folder)
        assert images.names == [f"{top}{name}" for name in folder.names]
        assert images.sizes().tolist() == folder.sizes().tolist()


def test_the_real_stl10_images_in_a_zip(shared_data: Path) -> None:
    images = open_images(shared_data / "stl10_airplane_car.zip")
    assert images.classes == ["airplane", "car"]
    assert np.bincount(images.labels).tolist() == [500, 500]
    assert (images.sizes() == 96).all()
    with zipfile.ZipFile(shared_data / "stl10_airplane_car.zip") as archive:
        expected = np.asarray(Image.open(io.BytesIO(archive.read(images.names[700]))))
    image = images.read([700])
    assert isinstance(image, torch.Tensor)
    assert image.shape == (1, 3, 96, 96)
    np.testing.assert_array_equal(image[0].permute(1, 2, 0).numpy(), expected)


def test_loose_files_alone_are_an_unlabeled_set(tmp_path: Path) -> None:
    for shade in (1, 2):
        save(tmp_path / f"{shade}.png", shade)
    images = open_images(tmp_path)
    assert (images.classes, images.labels.tolist()) == ([], [-1, -1])


def test_classes_are_kept_in_the_order_given(photos: Path) -> None:
    for wanted in (["dog", "cat"], "dog,cat", "dog, cat"):
        images = open_images(photos, classes=wanted)
        assert images.classes == ["dog", "cat"]
        assert images.labels.tolist() == [1, 0, 0]
        assert shades(images) == [1, 2, 3]
    assert shades(open_images(photos, classes="dog")) == [2, 3]
    assert shades(open_images(open_images(photos), classes=["cat"])) == [1]


def test_a_classes_name_may_hold_a_comma(tmp_path: Path) -> None:
    for i, name in enumerate(("crane, bird", "crane, machine", "dog")):
        save(tmp_path / name / "a.png", i)
    assert shades(open_images(tmp_path, classes="crane, machine")) == [1]
    assert shades(open_images(tmp_path, classes=["dog", "crane, bird"])) == [0, 2]


def test_a_limit_spreads_over_the_classes_and_keeps_the_order(tmp_path: Path) -> None:
    for name, n in (("a", 9), ("b", 2), ("c", 9)):
        for i in range(n):
            save(tmp_path / name / f"{i}.png", i)
    names = open_images(tmp_path, limit=10).names
    assert names == [*(f"a/{i}.png" for i in range(4)), "b/0.png", "b/1.png", *(f"c/{i}.png" for i in range(4))]
    assert open_images(tmp_path, limit=4).labels.tolist() == [0, 0, 1, 2]
    assert len(open_images(tmp_path, limit=1000)) == 20
    assert open_images(tmp_path / "a", limit=3).names == ["0.png", "1.png", "2.png"]


def test_images_are_read_by_any_kind_of_index(photos: Path) -> None:
    images = open_images(photos)
    assert shades(images.take([-1, 0])) == [4, 1]
    assert shades(images.take(np.array([True, False, False, True]))) == [1, 4]
    assert shades(images.take(torch.tensor([2, 2]))) == [3, 3]
    assert shades(images.take(np.flatnonzero(images.labels == 1)).take([1])) == [3]
    assert (len(images.take([])), len(images.read([]))) == (0, 0)
    assert images.read_readable([-1])[1].tolist() == [3]
    with pytest.raises(IndexError):
        images.read([4])


def test_images_of_many_sizes_come_as_a_list(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1, (8, 6))
    save(tmp_path / "b.png", 2, (5, 7))
    images = open_images(tmp_path)
    pixels = images.read([0, 1])
    assert isinstance(pixels, list)
    assert [tuple(image.shape) for image in pixels] == [(3, 6, 8), (3, 7, 5)]
    assert images.sizes().tolist() == [[6, 8], [7, 5]]


def test_unreadable_images_are_named_and_listed_once(photos: Path) -> None:
    (photos / "dog" / "broken.jpg").write_bytes(b"no image")
    (photos / "dog" / "empty.png").touch()
    images = open_images(photos)
    with pytest.raises(StepclrError, match=r"dog/broken\.jpg cannot be read: not an image"):
        images.read(range(len(images)))
    for _ in range(2):
        pixels, kept = images.read_readable([3, 2, 4, 1, 5])
        assert [images.names[i] for i in kept] == ["dog/b.PNG", "dog/2024/a.png", "loose.png"]
        assert [int(image[0, 0, 0]) for image in pixels] == [3, 2, 4]
        assert sorted(name for name, _ in images.skipped) == ["dog/broken.jpg", "dog/empty.png"]
    assert [size == [0, 0] for size in images.sizes().tolist()] == [False, False, False, True, True, False]
    os.remove(photos / "cat" / "x.png")  # while in use
    pixels, kept = images.read_readable([0])
    assert (len(pixels), kept.tolist()) == (0, [])
    assert images.skipped[-1] == ("cat/x.png", "No such file or directory")


def test_linked_folders_are_followed_and_loops_end(photos: Path, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "bird.png", 5)
    (photos / "bird").symlink_to(tmp_path / "elsewhere")
    (photos / "cat" / "up").symlink_to(photos)
    for name in ("a link to cat", "link to cat"):  # before and behind it
        (photos / name).symlink_to(photos / "cat")
    (photos / "itself").symlink_to(photos / "itself")
    (photos / "itself.png").symlink_to(photos / "itself.png")
    (photos / "broken link.png").symlink_to(photos / "gone.png")
    os.mkfifo(photos / "pipe.png")
    images = open_images(photos)
    assert images.names == ["bird/bird.png", "cat/x.png", "dog/2024/a.png", "dog/b.PNG", "loose.png"]
    assert "3 link (to folders that are read under another name)" in " ".join(images.ledger.lines())


def test_a_zip_is_never_unpacked_and_names_that_lead_out_of_it_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = save(tmp_path / "x.png", 7).read_bytes()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    file = tmp_path / "here" / "evil.zip"
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        for name in ("../up.png", "/root.png", "a/../../b.png", "..\\windows.png", "cat/good.png", "dog\\good.png"):
            archive.writestr(name, image)
        warnings.simplefilter("ignore")  # zipfile's, about a name twice
        archive.writestr("cat/good.png", image)
    before = sorted(tmp_path.rglob("*"))
    images = open_images(file)
    assert images.names == ["cat/good.png", "dog/good.png"]
    assert shades(images) == [7, 7]
    assert sorted(tmp_path.rglob("*")) == before
    assert sorted(name for name, _ in images.skipped) == ["../up.png", "../windows.png", "/root.png", "a/../../b.png"]


def test_names_in_a_zip_are_utf8_also_where_it_does_not_say_so(tmp_path: Path) -> None:
    """As in one that macOS has made; what is not UTF-8 is of old programs, in cp437."""
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("K\u00e4se/1.png", "k\u00e4se/1.png", "\u732b/1.png"):
            archive.write(save(tmp_path / "x.png", 7), name)
    content = file.read_bytes().replace("k\u00e4se".encode(), b"k\x84\x84se")
    for head, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        parts = content.split(head)
        content = head.join([parts[0], *(part[: flags - 4] + b"\0\0" + part[flags - 2 :] for part in parts[1:])])
    file.write_bytes(content)
    images = open_images(file)
    assert images.classes == ["K\u00e4se", "k\u00e4\u00e4se", "\u732b"]
    assert shades(images) == [7, 7, 7]


def test_a_member_of_a_zip_that_would_fill_the_memory_is_not_unpacked(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "cat" / "bomb.png").write_bytes(bytes(100_000))
    monkeypatch.setattr("stepclr.data.folders.LARGEST", 99_999)
    images = open_images(zipped(photos, tmp_path / "photos.zip"))
    _, kept = images.read_readable(range(5))
    assert kept.tolist() == [1, 2, 3, 4]
    assert images.skipped == [("cat/bomb.png", "100,000 bytes, above the limit of 99,999")]


def test_a_damaged_member_of_a_zip_is_unreadable_not_fatal(photos: Path, tmp_path: Path) -> None:
    file = zipped(photos, tmp_path / "photos.zip")
    data = bytearray(file.read_bytes())
    at = data.index((photos / "cat" / "x.png").read_bytes()) + 30
    data[at] ^= 255
    file.write_bytes(data)
    images = open_images(file)
    _, kept = images.read_readable(range(4))
    assert kept.tolist() == [1, 2, 3]
    assert images.skipped[0][0] == "cat/x.png"
    assert "CRC" in images.skipped[0][1]


def test_what_cannot_be_opened_is_one_line_with_the_nearest_right_thing(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "not.zip").write_bytes(b"not a zip")
    for name in ("film.mp4", "notes.txt"):
        (photos / name).write_bytes(b"not an image")
    cases: dict[str, tuple[object, dict[str, object], str]] = {
        "a misspelt path": (tmp_path / "fotos", {}, r"fotos does not exist\. Did you mean '.*/photos'"),
        "a path to nowhere": (tmp_path / "no" / "where", {}, r"where does not exist\.$"),
        "no images": (tmp_path / "empty", {}, r"empty contains no image \(\.avif"),
        "no zip": (tmp_path / "not.zip", {}, "cannot be read as a zip"),
        "no source": (photos / "film.mp4", {}, r"film.mp4 is not a folder, a zip, a tar or an image \(videos: extract"),
        "files that are no images": (
            [photos / "film.mp4", photos / "notes.txt"],
            {},
            r"film.mp4 is not .*\(nor is any other of",
        ),
        "an unknown class": (photos, {"classes": "dgo"}, r"unknown class of .* 'dgo'\. Did you mean 'dog'"),
        "no class": (photos, {"classes": []}, "no class at all"),
        "no labels": (photos / "dog" / "2024", {"classes": "dog"}, "has no labels"),
        "limit": (photos, {"limit": 0}, "limit must be at least 1, not 0"),
    }
    for case, (source, options, message) in cases.items():
        with pytest.raises(StepclrError, match=message) as error:
            open_images(source, **options)  # type: ignore[arg-type]
        assert "\n" not in str(error.value), case


def test_image_files_are_a_source_in_the_order_given(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named as they are given; hidden ones too, because someone asked for them."""
    monkeypatch.chdir(photos)
    (photos / ".hidden.png").write_bytes((photos / "loose.png").read_bytes())
    (photos / "no suffix").write_bytes((photos / "loose.png").read_bytes())
    (photos / "notes.txt").write_text("not an image")
    one = open_images("cat/x.png")
    assert (one.names, one.labels.tolist(), one.classes, one.source) == (["cat/x.png"], [-1], [], "cat/x.png")
    given: list[str | Path] = ["no suffix", photos / "loose.png", "cat/x.png", ".hidden.png", "cat/x.png", "notes.txt"]
    given += ["cat/../loose.png", photos / "cat" / "x.png"]
    several = open_images(given)
    assert several.names == ["no suffix", str(photos / "loose.png"), "cat/x.png", ".hidden.png"]
    assert several.ledger.lines_of_ignored() == ["ignored 1 file or folder: 1 .txt"]
    monkeypatch.chdir(photos.parent)  # the files are found from anywhere
    whole = open_images(photos)
    assert torch.equal(several.read([2])[0], whole.read([whole.names.index("cat/x.png")])[0])
    assert [tuple(size) for size in several.sizes()] == [tuple(image.shape[1:]) for image in several.read(range(4))]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_a_folder_that_may_not_be_entered_is_listed(photos: Path) -> None:
    (photos / "dog").chmod(0)
    images = open_images(photos)
    (photos / "dog").chmod(0o755)
    assert images.names == ["cat/x.png", "loose.png"]
    assert images.skipped == [("dog/", "Permission denied")]
