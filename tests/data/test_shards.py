"""Shards as a source: local and remote, ours and others', whole and corrupt, and the order of an epoch."""

import io
import json
import shutil
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

import stepclr
from stepclr.cli import main
from stepclr.data import formats
from stepclr.data.order import ShardOrder
from stepclr.data.reading import Reading
from stepclr.data.shards import cache as shard_cache
from stepclr.data.shards.packing import pack
from stepclr.data.shards.store import ShardStore
from stepclr.data.sources import open_train_test
from stepclr.distributed import World
from stepclr.pretraining.batches import batches
from stepclr.pretraining.checkpoint import checkpoints
from stepclr.tools.doctor.findings import image_findings
from stepclr.tools.doctor.scan import scan
from stepclr.tools.report.context import open_part


@pytest.fixture(scope="module")
def source() -> stepclr.ImageSet:
    return stepclr.open_images("sample:train", limit=100)


@pytest.fixture(scope="module")
def shards(source: stepclr.ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 images in 10 shards."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack(source, out, per_shard=10)
    return out


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setenv("STEPCLR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def remote(shards: Path) -> Iterator[str]:
    """The same shards in a file system that is not a folder of this machine."""
    system = fsspec.filesystem("memory")
    for path in shards.iterdir():
        system.pipe_file(f"/bucket/shards/{path.name}", path.read_bytes())
    yield "memory://bucket/shards"
    system.rm("/bucket", recursive=True)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are fetched, as they are."""
    urls: list[str] = []
    copy = shard_cache.copy

    def spy(system: Any, url: str, *rest: Any) -> str:
        if url.endswith(".tar"):
            urls.append(url.split("/")[-1])
        return copy(system, url, *rest)

    monkeypatch.setattr(shard_cache, "copy", spy)
    return urls


def spoil(path: Path, what: str) -> None:
    content = bytearray(path.read_bytes())
    if what == "cut":
        del content[len(content) // 2 :]
    elif what == "flipped":
        content[700] ^= 1
    path.unlink()
    if what != "missing":
        path.write_bytes(content)


def image(shade: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), shade).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], **how: Any) -> Path:
    with tarfile.open(path, "w", **how) as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            info.size = len(content) if isinstance(content, bytes) else info.size
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def shades(images: stepclr.ImageSet) -> list[int]:
    return [int(p[0, 0, 0]) for p in images.read(range(len(images)))]


@pytest.mark.parametrize("how", ["folder", "range", "part", "one", "url", "remote", "remote range", "remote one"])
def test_however_they_are_named_it_is_the_same_images(
    how: str, source: stepclr.ImageSet, shards: Path, remote: str
) -> None:
    ways: dict[str, tuple[str | Path, range]] = {
        "folder": (shards, range(100)),
        "range": (f"{shards}/{{0000..0009}}.tar", range(100)),
        "part": (f"{shards}/{{0003..0005}}.tar", range(30, 60)),
        "one": (shards / "0009.tar", range(90, 100)),
        "url": (f"file://{shards}", range(100)),
        "remote": (f"{remote}/", range(100)),
        "remote range": (f"{remote}/{{0003..0005}}.tar", range(30, 60)),
        "remote one": (f"{remote}/0000.tar", range(10)),
    }
    named, rows = ways[how]
    images, expected = stepclr.open_images(named), source.take(rows)
    assert list(images.names) == expected.names
    assert images.names[-1] == expected.names[-1]
    assert images.names[1:3] == expected.names[1:3]
    assert images.labels.tolist() == expected.labels.tolist()
    assert images.labels.dtype == np.int64
    assert images.classes == source.classes
    assert torch.equal(torch.as_tensor(images.read(range(len(rows)))), torch.as_tensor(expected.read(range(len(rows)))))
    assert torch.equal(torch.as_tensor(images.read([-1, 2])), torch.as_tensor(expected.read([-1, 2])))
    assert (images.sizes() == 28).all()
    some = images.keep("Coat,Sandal").take([1, 0])
    assert some.names[0] == expected.keep("Coat,Sandal").names[1]


def test_the_suffix_of_a_tar_may_be_in_capitals(shards: Path, tmp_path: Path, cache: Path) -> None:  # noqa: ARG001
    shutil.copy(shards / "0000.tar", tmp_path / "CARD.TAR")
    assert len(stepclr.open_images(tmp_path / "CARD.TAR")) == 10


def test_a_shard_is_in_a_set_once(shards: Path) -> None:
    for given in ([shards, shards / "0003.tar"], [shards / "000{2..4}.tar", shards / "0003.tar"]):
        with pytest.raises(stepclr.StepclrError, match=r"so that its images would count twice: leave one out$"):
            stepclr.open_images(given)
    assert len(stepclr.open_images([shards / "000{2..4}.tar", shards / "0005.tar"])) == 40


def test_a_small_set_is_decoded_into_the_cache_and_a_large_one_is_not(shards: Path, cache: Path) -> None:
    images = stepclr.open_images(shards)
    large = images.decoded(14, budget=100 * 3 * 14 * 14 - 1)
    assert not list(cache.glob("*.pixels"))
    small = images.decoded(14, budget=100 * 3 * 14 * 14)
    assert list(cache.glob("*.pixels"))
    assert torch.equal(torch.as_tensor(small.read(range(100))), torch.as_tensor(large.read(range(100))))
    orders = [[lot.tolist() for lot in part.stream(0, 0, 8) or ()] for part in (images, large, small)]
    assert orders[0] == orders[1] == orders[2]


# -- shards from elsewhere


def test_webdatasets_layout_is_read_with_its_labels(tmp_path: Path, cache: Path) -> None:
    write_tar(
        tmp_path / "a-00.tar",
        {
            "train/n1.v2.jpg": image(1, "JPEG"),  # key train/n1
            "train/n1.cls": b"2\n",
            "train/n1.json": b"{}",
            "./x.PNG": image(2),
            "notes.txt": b"no image",
            ".hidden.png": image(9),
        },
        format=tarfile.GNU_FORMAT,
    )
    odd = f"deep/{'long' * 60}/\udcff\n.png"
    write_tar(tmp_path / "a-01.tar", {odd: image(3), f"deep/{'long' * 60}/\udcff\n.cls": b"0"})
    for _ in range(2):  # scanned, and then remembered
        images = stepclr.open_images(tmp_path / "a-{00..01}.tar")
        assert list(images.names) == ["a-00.tar/train/n1.v2.jpg", "a-00.tar/x.PNG", f"a-01.tar/{odd}"]
        assert images.labels.tolist() == [2, -1, 0]
        assert images.classes == ["0", "1", "2"]
        assert shades(images) == [1, 2, 3]
    assert list(cache.iterdir())


def test_a_class_number_goes_with_the_longest_stem(tmp_path: Path) -> None:
    members = {"img.v1.0.jpg": image(1), "img.v1.0.cls": b"0", "img.v2.0.jpg": image(2), "img.v2.0.cls": b"1"}
    members |= {"img.v2.0.left.jpg": image(3), "img.v2.0.left.cls": b"2", "other.jpg": image(4), "img.cls": b"3"}
    members |= {"img.v3.jpg": image(5)}
    images = stepclr.open_images(write_tar(tmp_path / "x.tar", dict(members)))
    assert dict(zip(images.names, images.labels.tolist(), strict=True)) == {
        "img.v1.0.jpg": 0, "img.v2.0.jpg": 1, "img.v2.0.left.jpg": 2, "other.jpg": -1, "img.v3.jpg": 3,
    }  # fmt: skip


@pytest.mark.parametrize("description", ["0000.cls", "0000.json"])
@pytest.mark.parametrize("further", ["0000.seg.png", "0000.png"])
def test_a_sample_is_one_image(description: str, further: str, tmp_path: Path) -> None:
    members = {"0000.jpg": image(1), further: image(9), description: b"1", "0001.jpg": image(2), "0001.cls": b"0"}
    images = stepclr.open_images(write_tar(tmp_path / "x.tar", dict(members)))
    assert list(images.names) == ["0000.jpg", "0001.jpg"]
    assert images.labels.tolist() == [1 if description == "0000.cls" else -1, 0]
    assert "1 further images of a sample (masks or other versions)" in " ".join(images.ledger.lines())


def test_images_that_nothing_describes_are_all_read_as_in_a_folder(tmp_path: Path) -> None:
    members = {"dog/a.jpg": image(1), "dog/a.edited.jpg": image(2), "dog/a.png": image(3), "cat/a.jpg": image(4)}
    images = stepclr.open_images(write_tar(tmp_path / "x.tar", dict(members)))
    assert list(images.names) == list(members)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("a.jpg a.cls a.jpg a.cls", "it contains a.jpg twice"),
        ("a.jpg a.cls b.jpg a.cls", "it contains a.cls twice"),
        ("dog/a.jpg dog/b.jpg ./dog/a.jpg", "it contains dog/a.jpg twice"),
        ("0.rgb.jpg 0.seg.png 0.cls", "0.cls labels several images, 0.rgb.jpg and 0.seg.png: keep one of them"),
    ],
)
def test_what_could_be_labeled_in_two_ways_is_refused(names: str, said: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i, name in enumerate(names.split()):
            info = tarfile.TarInfo(name)
            content = b"%d" % (i // 2) if name.endswith(".cls") else image(i)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(stepclr.StepclrError) as error:
        stepclr.open_images(tmp_path / "x.tar")
    assert f"x.tar is corrupt: {said}" in str(error.value)


@pytest.mark.parametrize("top", ["", "photos/", "./"])
def test_without_class_numbers_the_first_folder_is_the_class_as_in_a_zip(top: str, tmp_path: Path) -> None:
    names = {f"{top}dog/b.png": image(1), f"{top}cat/old/a.png": image(2), f"{top}dog/a.png": image(3)}
    images = stepclr.open_images(write_tar(tmp_path / "x.tar", dict(names)))
    assert images.classes == ["cat", "dog"]
    assert images.labels.tolist() == [1, 0, 1]
    assert list(images.names) == [name.removeprefix("./") for name in names]
    write_tar(tmp_path / "y0.tar", {f"{top}dog/b.png": image(1)})
    write_tar(tmp_path / "y1.tar", {f"{top}ant/b.png": image(1), f"{top}loose.png": image(2)})
    images = stepclr.open_images(tmp_path / "y{0..1}.tar")
    assert images.classes == ["ant", "dog"]
    assert images.labels.tolist() == [1, 0, -1]


def test_they_are_scanned_again_when_they_change_and_only_then(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepclr.data.shards.tars.SETTLED", 0)
    write_tar(tmp_path / "0.tar", {"a/1.png": image(1), "b/1.png": image(2)})
    assert shades(stepclr.open_images(tmp_path / "0.tar")) == [1, 2]
    with monkeypatch.context() as patch:
        patch.setattr("stepclr.data.shards.tars.scan", None)
        assert shades(stepclr.open_images(tmp_path / "0.tar")) == [1, 2]
    write_tar(tmp_path / "0.tar", {"a/1.png": image(1), "b/1.png": image(3)})
    assert shades(stepclr.open_images(tmp_path / "0.tar")) == [1, 3]
    assert not list(cache.rglob("*.part"))


def link(kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def test_what_is_not_an_image_or_leads_outside_is_listed_and_nothing_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    members: dict[str, bytes | tarfile.TarInfo] = {
        "../up.jpg": image(9),
        "a/../../up2.jpg": image(9),
        str(tmp_path / "absolute.jpg"): image(9),
        "a/soft.jpg": link(tarfile.SYMTYPE),
        "a/hard.jpg": link(tarfile.LNKTYPE, "a/good.png"),
        "a/device.jpg": link(tarfile.CHRTYPE),
        "a/pipe.jpg": link(tarfile.FIFOTYPE),
        "a/folder.jpg": link(tarfile.DIRTYPE),
        "a/good.png": image(5),
        "a/garbage.jpg": b"no image at all",
    }
    images = stepclr.open_images(write_tar(folder / "x.tar", members))
    assert list(images.names) == ["a/good.png", "a/garbage.jpg"]
    assert [name for name, _ in images.skipped] == [
        name for name in members if name not in ("a/good.png", "a/garbage.jpg")
    ]
    assert {why for _, why in images.skipped} == {
        "its name leads out of the tar",
        "a link, a device or a sparse file, not an image",
    }
    _, kept = images.read_readable([0, 1])
    assert kept.tolist() == [0]
    assert images.skipped[-1] == ("a/garbage.jpg", "not an image in a known format")
    pack(images, folder / "packed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert {path.name for path in folder.iterdir()} == {"x.tar", "packed"}


def huge(content: bytes, size: bytes) -> bytes:
    """The tar with another size in its first header, its sum put right."""
    header = bytearray(content[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("empty", "cannot be read as an uncompressed tar: empty file"),
        ("garbage", "cannot be read as an uncompressed tar"),
        ("zip", "cannot be read as an uncompressed tar"),
        ("gzip", "cannot be read as an uncompressed tar"),
        ("cut in an image", "truncated in b.png"),
        ("cut in a header", "begins neither a member nor the end of a tar"),
        ("cut before the end", "begins neither a member nor the end of a tar"),
        ("garbage in the middle", "begins neither a member nor the end of a tar"),
        ("declares 8 GiB", "cannot be read as an uncompressed tar: unexpected end of data"),
        ("declares 2^70 bytes", "cannot be read as an uncompressed tar"),
        ("declares a long name", "cannot be read as an uncompressed tar"),
        ("no class number", "a.cls contains '-1', which is not a class number"),
        ("an endless class number", "a.cls contains '99999999', which is not a class number"),
        ("missing", "is missing"),
    ],
)
def test_a_file_that_is_not_a_tar_or_not_whole_is_refused_or_skipped(what: str, said: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.png": image(1)})
    bad = write_tar(tmp_path / "1.tar", {"a.png": image(1), "b.png": image(2)}, format=tarfile.GNU_FORMAT)
    whole = bad.read_bytes()
    middle = whole.index(b"b.png")
    if what == "missing":
        bad.unlink()
    elif what.endswith("class number"):
        write_tar(bad, {"a.png": image(1), "a.cls": b"-1" if what.startswith("no") else b"99999999"})
    elif what == "declares a long name":
        header = bytearray(write_tar(bad, {f"{'x' * 200}.png": b""}, format=tarfile.GNU_FORMAT).read_bytes())
        bad.write_bytes(huge(bytes(header), b"\x80" + struct.pack(">xxxq", 2**62)))
    else:
        bad.write_bytes(
            {
                "empty": b"",
                "garbage": np.random.default_rng(0).bytes(5000),
                "zip": b"PK\3\4" + bytes(2000),
                "gzip": b"\x1f\x8b\x08" + bytes(2000),
                "cut in an image": whole[: middle + 530],
                "cut in a header": whole[: middle + 100],
                "cut before the end": whole[:middle],
                "garbage in the middle": whole[:middle] + b"\xff" * 600 + whole[middle + 600 :],
                "declares 8 GiB": huge(whole, b"77777777777\0"),
                "declares 2^70 bytes": huge(whole, b"\x80" + struct.pack(">xxxq", 2**62 + 5)),
            }[what]
        )
    with pytest.raises(stepclr.StepclrError, match=r"1\.tar") as error:
        stepclr.open_images(tmp_path / "{0..1}.tar")
    assert said in str(error.value)
    assert "damaged_shards='skip'" in str(error.value)
    assert "\n" not in str(error.value)
    images = stepclr.open_images(tmp_path / "{0..1}.tar", damaged_shards="skip")
    assert shades(images) == [1]
    ((name, why),) = images.skipped
    assert name == "1.tar"
    assert said in why
    assert "left out a damaged shard with an unknown number of images, for example 1.tar" in images.ledger.lines()


def test_a_package_for_more_kinds_of_images_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "x.tar", {"0.png": image(1), "1.heic": b"....ftypheic"})
    monkeypatch.setattr(formats, "has_heif", lambda: False)
    assert list(stepclr.open_images(path).names) == ["0.png"]
    monkeypatch.setattr(formats, "has_heif", lambda: True)
    assert list(stepclr.open_images(path).names) == ["0.png", "1.heic"]


def test_images_of_many_channels_are_those_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    members: dict[str, bytes | tarfile.TarInfo] = {}
    folder.mkdir()
    for i in range(3):
        np.save(folder / f"{i}.npy", np.full((20 + i, 30, 5), i, np.uint8))
        members[f"{i}.npy"] = (folder / f"{i}.npy").read_bytes()
    path = write_tar(tmp_path / "x.tar", members)
    shards, images = (stepclr.open_images(source, channels=5) for source in (path, folder))
    assert list(shards.names) == list(images.names)
    assert shards.sizes().tolist() == images.sizes().tolist() == [[20, 30], [21, 30], [22, 30]]
    assert all(torch.equal(shards.read([i])[0], images.read([i])[0]) for i in range(3))
    with_image = write_tar(tmp_path / "y.tar", members | {"a.png": image(1)})
    assert list(stepclr.open_images(with_image).names) == ["a.png"]


def test_a_tar_without_images_is_not_a_source(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {})
    write_tar(tmp_path / "y.tar", {"../a.jpg": image(1)})
    with pytest.raises(stepclr.StepclrError, match=r"contains no image$"):
        stepclr.open_images(tmp_path / "x.tar")
    with pytest.raises(stepclr.StepclrError, match=r"no image; .* ../a.jpg: its name leads out of the tar"):
        stepclr.open_images(tmp_path / "y.tar")


# -- damage to shards with an index


@pytest.mark.parametrize("what", ["cut", "flipped", "missing"])
def test_a_damaged_shard_is_named_and_refused_or_its_images_left_out(
    what: str, source: stepclr.ImageSet, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    shutil.copytree(shards, out)
    stepclr.open_images(out)
    spoil(out / "0004.tar", what)
    with pytest.raises(stepclr.StepclrError, match=rf"^{out}/0004.tar is (missing|corrupt)"):
        stepclr.open_images(out)
    images = stepclr.open_images(out, damaged_shards="skip")
    rows = [*range(40), *range(50, 100)]
    assert list(images.names) == [source.names[i] for i in rows]
    assert torch.equal(torch.as_tensor(images.read(range(90))), torch.as_tensor(source.read(rows)))
    assert [name for name, _ in images.skipped] == list(source.names[40:50])  # each image that is left out is counted
    assert all(f"{out}/0004.tar is" in why for _, why in images.skipped)
    assert sorted(np.concatenate(list(images.stream(0, 0, 9) or ()))) == list(range(90))
    assert len(stepclr.open_images(f"{out}/{{0005..0009}}.tar")) == 50  # the other shards are not read


def test_only_what_is_in_shards_is_read_without_the_damaged_ones(shards: Path, tmp_path: Path) -> None:
    out, photos = tmp_path / "shards", tmp_path / "photos"
    photos.mkdir()
    (photos / "1.png").write_bytes(image(1))
    shutil.copytree(shards, out)
    spoil(out / "0004.tar", "flipped")
    train, test = open_train_test(photos, out, reading=Reading(damaged_shards="skip"))
    assert test is not None
    assert (train.store.reading.skips, test.store.reading.skips) == (False, True)
    both = stepclr.open_images([train, test])
    assert both.store.reading.skips
    with pytest.raises(stepclr.StepclrError, match="is not in shards"):
        open_train_test(photos, photos, reading=Reading(damaged_shards="skip"))
    counts = {finding.name: finding.count for finding in image_findings(scan(test), 28)}
    assert (counts["in-shards"], counts["missing"]) == (10, 0)
    # What is the default may be asked for by name.
    settings: Any = {
        "encoder": "test_resnet",
        "stem": "small-stride2",
        "batch_size": 16,
        "epochs": 1,
        "progress": False,
    }
    run = stepclr.pretrain(shards, tmp_path / "run", **settings)
    stepclr.pretrain(shards, run.folder, **settings, resume=True, damaged_shards="refuse")


def test_an_image_altered_after_all_was_verified_is_not_decoded(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    shutil.copytree(shards, out)
    images = stepclr.open_images(out)
    spoil(out / "0004.tar", "flipped")
    spoil(out / "0005.tar", "missing")
    with pytest.raises(stepclr.StepclrError, match="do not match the checksum in the index"):
        images.read([40])
    images.read([41])
    _, kept = images.read_readable(range(38, 61))
    assert kept.tolist() == [38, 39, *range(41, 50), 60]


def test_verified_shards_are_not_read_again_while_they_do_not_change(
    shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepclr.data.recall.SETTLED", 0)
    stepclr.open_images(shards)
    monkeypatch.setattr("stepclr.data.recall.checksum", None)
    stepclr.open_images(shards)
    assert not list(cache.glob("shard-*"))  # and never copied


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda told: told | {"format": "stepclr shards 9"}, "has the format 'stepclr shards 9'"),
        (lambda told: told | {"shards": 7}, "is corrupt"),
        (lambda told: told | {"classes": []}, "has labels outside its 0 classes"),
        (lambda told: told | {"files": {}}, "is corrupt"),
        (lambda told: told | {"shards": [s | {"name": f"../{s['name']}"} for s in told["shards"]]}, "leads out"),
        (lambda told: told | {"shards": [s | {"checksum": "../x"} for s in told["shards"]]}, "is not a checksum"),
        (lambda told: told | {"files": told["files"] | {"names.bin": "../" * 9 + "x"}}, "is not a checksum"),
        (lambda told: told | {"shards": told["shards"][:3]}, "does not have 30 images"),
    ],
)
def test_an_index_that_cannot_be_true_is_refused(
    change: Callable[[Any], Any], said: str, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    shutil.copytree(shards, out)
    told = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(change(told)))
    with pytest.raises(stepclr.StepclrError, match=r"index\.json") as error:
        stepclr.open_images(out)
    assert said in str(error.value)


def test_what_it_cannot_open_it_says_in_one_line(shards: Path, tmp_path: Path, remote: str) -> None:
    refused: list[tuple[str | Path, dict[str, Any], str]] = [
        (f"{tmp_path}/{{0..3}}-{{0..3}}.tar", {}, "there can be only one"),
        (f"{tmp_path}/{{3..1}}.tar", {}, "must be ascending"),
        (f"{tmp_path}/{{0..99999999}}.tar", {}, "must be ascending"),
        (f"{tmp_path}/none.tar", {}, "does not exist"),
        (f"{remote}/none", {}, "has no index.json of stepclr pack; give the shards' names"),
        (f"{remote}/none.tar", {}, "is missing"),
        ("nothing://bucket/x.tar", {}, "cannot be opened: Protocol not known: nothing"),
        (shards, {"damaged_shards": "ignore"}, "unknown damaged_shards 'ignore'"),
        ("sample:train", {"damaged_shards": "skip"}, "sample:train is not in shards"),
    ]
    for source, options, said in refused:
        with pytest.raises(stepclr.StepclrError) as error:
            stepclr.open_images(source, **options)
        assert said in str(error.value)
        assert "\n" not in str(error.value)


# -- remote shards


def test_a_shard_is_fetched_once_when_it_is_first_read(
    source: stepclr.ImageSet, remote: str, cache: Path, fetched: list[str]
) -> None:
    images = stepclr.open_images(remote)
    assert not fetched
    for _ in range(2):
        assert torch.equal(torch.as_tensor(images.read([25, 29, 71])), torch.as_tensor(source.read([25, 29, 71])))
    assert sorted(fetched) == ["0002.tar", "0007.tar"]
    stepclr.open_images(remote).read([20])  # another process would find it too
    assert len(fetched) == 2 or fetched[2:] == ["0002.tar"]
    assert len(list(cache.glob("shard-*.tar"))) == 2


@pytest.mark.filterwarnings("ignore:shards that are still being read")
def test_the_cache_keeps_to_its_limit_and_the_least_recently_used_go(
    source: stepclr.ImageSet,
    shards: Path,
    remote: str,
    cache: Path,
    fetched: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = max(path.stat().st_size for path in shards.glob("*.tar"))
    monkeypatch.setenv("STEPCLR_SHARDS_GIB", str(3.5 * size / 2**30))
    monkeypatch.setattr(shard_cache, "TOUCH", 0.0)
    images = stepclr.open_images(remote)
    for shard in (0, 1, 2, 0, 3, 0, 1):
        assert torch.equal(torch.as_tensor(images.read([10 * shard])), torch.as_tensor(source.read([10 * shard])))
        kept = list(cache.glob("shard-*.tar"))
        assert len(kept) <= 3
        assert sum(path.stat().st_size for path in kept) <= 3.5 * size
    assert fetched == [f"000{k}.tar" for k in (0, 1, 2, 3, 1)]  # 1 had to go, 0 was used since
    everything = images.read(np.random.default_rng(0).permutation(100))
    assert torch.equal(
        torch.as_tensor(everything), torch.as_tensor(source.read(np.random.default_rng(0).permutation(100)))
    )


def test_a_cache_too_small_for_what_is_being_read_says_so(
    remote: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPCLR_SHARDS_GIB", "0.00001")
    stepclr.open_images(remote).read([0])
    with pytest.warns(UserWarning, match="STEPCLR_SHARDS_GIB sets a higher one"):
        shard_cache.make_room(1)
    assert not list(cache.glob("shard-*.tar"))
    monkeypatch.setenv("STEPCLR_SHARDS_GIB", "much")
    with pytest.raises(stepclr.StepclrError, match="STEPCLR_SHARDS_GIB must be a number of GiB, not 'much'"):
        stepclr.open_images(remote).read([50])


def test_a_shard_that_another_process_put_out_is_fetched_again(
    source: stepclr.ImageSet, remote: str, cache: Path, fetched: list[str]
) -> None:
    images = stepclr.open_images(remote)
    for _ in range(3):
        images.read([5])
        for path in cache.glob("shard-*.tar"):
            path.unlink()
    assert torch.equal(torch.as_tensor(images.read([5])), torch.as_tensor(source.read([5])))
    assert fetched == ["0000.tar"] * 4


@pytest.mark.parametrize("what", ["cut", "flipped", "missing"])
def test_one_that_arrives_corrupt_is_refused_or_skipped_and_never_kept(
    what: str, shards: Path, remote: str, cache: Path, fetched: list[str]
) -> None:
    system, path = fsspec.filesystem("memory"), "/bucket/shards/0004.tar"
    content = bytearray((shards / "0004.tar").read_bytes())
    content[700] ^= 1
    if what == "missing":
        system.rm(path)
    else:
        system.pipe_file(path, bytes(content) if what == "flipped" else bytes(content[:-1024]))
    with pytest.raises(stepclr.StepclrError, match=r"shards/0004.tar (is corrupt|cannot be fetched: it is missing)"):
        stepclr.open_images(remote).read_readable(range(100))
    images = stepclr.open_images(remote, damaged_shards="skip")
    fetched.clear()
    for _ in range(2):
        _, kept = images.read_readable(range(100))
        assert kept.tolist() == [*range(40), *range(50, 100)]
    assert fetched.count("0004.tar") == 1
    assert {name for name, _ in images.skipped} == set(images.names[40:50])
    assert len(list(cache.glob("shard-*.tar"))) == 9


@pytest.mark.usefixtures("cache")
def test_the_next_shard_of_a_lane_comes_while_one_is_read(remote: str, fetched: list[str]) -> None:
    images = stepclr.open_images(remote)
    assert isinstance(images.store, ShardStore)
    assert images.store.cache is not None
    images.stream(0, 0, 2)  # two lanes of five shards; a window reaches to their ends
    images.read(10 * ShardOrder(np.arange(0, 101, 10), 0, 0, 2).shards[[0, 5]])
    for future in list(images.store.cache.fetching.started.values()):
        future.result()
    assert sorted(fetched) == [f"000{k}.tar" for k in range(10)]


def test_remote_foreign_shards_are_fetched_once_to_be_scanned(tmp_path: Path, cache: Path) -> None:
    system = fsspec.filesystem("memory")
    for k in range(2):
        write_tar(tmp_path / "x.tar", {f"{name}/{k}.png": image(10 * k + i) for i, name in enumerate(("a", "b"))})
        system.pipe_file(f"/foreign/{k}.tar", (tmp_path / "x.tar").read_bytes())
    for _ in range(2):
        images = stepclr.open_images("memory://foreign/{0..1}.tar")
        assert shades(images) == [0, 1, 10, 11]
        assert images.labels.tolist() == [0, 1, 0, 1]
    assert len(list(cache.glob("shard-*.tar"))) == 2
    system.pipe_file("/foreign/1.tar", system.cat_file("/foreign/1.tar")[:1500])
    with pytest.raises(stepclr.StepclrError, match=r"foreign/1\.tar is corrupt"):
        stepclr.open_images("memory://foreign/{0..2}.tar")
    images = stepclr.open_images("memory://foreign/{0..2}.tar", damaged_shards="skip")
    assert shades(images) == [0, 1]
    assert [name for name, _ in images.skipped] == ["1.tar", "2.tar"]
    system.rm("/foreign", recursive=True)


def test_a_shard_that_was_missing_for_a_while_is_read_again(source: stepclr.ImageSet, tmp_path: Path) -> None:
    """It was skipped then; its images are those of every later run."""
    pack(source.take(np.arange(20)), tmp_path / "shards", per_shard=5)
    system = fsspec.filesystem("memory")
    for path in (tmp_path / "shards").iterdir():
        system.pipe_file(f"/passing/{path.name}", path.read_bytes())
    try:
        system.mv("/passing/0001.tar", "/elsewhere.tar")
        assert len(stepclr.open_images("memory://passing", damaged_shards="skip").decoded(28)) == 15
        with pytest.raises(stepclr.StepclrError, match=r"0001\.tar cannot be fetched"):
            stepclr.open_images("memory://passing").decoded(28)
        system.mv("/elsewhere.tar", "/passing/0001.tar")
        assert len(stepclr.open_images("memory://passing").decoded(28)) == 20
    finally:
        system.rm("/passing", recursive=True)


@pytest.mark.parametrize("name", ["index.json", "members.npy", "names.bin"])
def test_what_the_cache_remembers_of_foreign_shards_may_become_corrupt(
    name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepclr.data.shards.tars.SETTLED", 0)
    write_tar(tmp_path / "0.tar", {"a/1.png": image(1), "b/1.png": image(2)})
    stepclr.open_images(tmp_path / "0.tar")
    (kept,) = cache.rglob(name)
    kept.write_bytes(kept.read_bytes()[:-5])
    images = stepclr.open_images(tmp_path / "0.tar")
    assert (shades(images), list(images.names)) == ([1, 2], ["a/1.png", "b/1.png"])


# -- the order of an epoch


def order(counts: list[int], seed: int = 0, epoch: int = 0, batch: int = 64, start: int = 0) -> list[list[int]]:
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return [lot.tolist() for lot in ShardOrder(starts, seed, epoch, batch).batches(start)]


@pytest.mark.parametrize("batch", [1, 7, 16, 64, 96, 256, 5000])
@pytest.mark.parametrize("counts", [[1], [3, 0, 0, 2], [1000] * 70, [7, 900, 0, 13, 2000, 1, 1, 40] * 5, [9000] * 3])
def test_every_image_comes_once_an_epoch_but_for_the_incomplete_batch(counts: list[int], batch: int) -> None:
    n = sum(counts)
    lots = order(counts, batch=batch)
    seen = [i for lot in lots for i in lot]
    assert len(lots) == max(1, n // batch)
    assert {len(lot) for lot in lots} == {min(batch, n)}
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(n))


@pytest.mark.parametrize("window", [1, 20, 8192])
def test_it_can_be_entered_at_any_batch(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepclr.data.order.WINDOW", window)
    counts = [150, 3, 0, 77] * 6
    lots = order(counts, batch=32)
    for start in (0, 1, 5, 21, len(lots) - 1, len(lots), len(lots) + 3):
        assert order(counts, batch=32, start=start) == lots[start:]


def test_each_rank_reads_the_shards_of_its_own_lanes_and_no_image_of_another() -> None:
    counts = [500] * 64
    lots = np.array(order(counts, batch=128))
    for world in (1, 2, 4, 64):
        parts = np.split(lots, world, axis=1)
        read = [set((part // 500).ravel().tolist()) for part in parts]
        assert sum(map(len, read)) == 64  # every shard by one rank
        assert sum(len(np.unique(part)) for part in parts) == 64 * 500


def test_it_is_a_shuffle_and_another_one_each_epoch_and_seed() -> None:
    counts, n = [1000] * 100, 100_000
    lots = np.array(order(counts, batch=256))
    again = np.array(order(counts, batch=256))
    assert (lots == again).all()
    flat = lots.ravel()
    assert (np.abs(np.diff(flat)) == 1).mean() < 0.01  # neighbors do not stay neighbors
    assert (np.diff(lots // 1000, axis=1) != 0).mean() > 0.05
    assert min(len(np.unique(lot // 1000)) for lot in lots) >= 50  # a batch has images of many shards
    for other in (
        order(counts, epoch=1, batch=256),
        order(counts, seed=1, batch=256),
        order(counts, seed=-1, batch=256),
    ):
        shared = [len(np.intersect1d(a, b)) for a, b in zip(lots, other, strict=True)]
        assert np.mean(shared) < 5  # of 256: chance is 0.7
    places = np.empty(n)
    places[flat] = np.arange(len(flat))
    later = np.empty(n)
    later[np.array(order(counts, epoch=1, batch=256)).ravel()] = np.arange(len(flat))
    assert abs(np.corrcoef(places[flat], later[flat])[0, 1]) < 0.2


def test_a_chosen_part_of_a_set_has_an_order_too_and_one_out_of_order_has_none(shards: Path) -> None:
    images = stepclr.open_images(shards)
    some = images.keep("Coat,Bag,Shirt")
    assert sorted(np.concatenate(list(some.stream(0, 0, 5) or ()))) == list(range(30))
    assert images.take([5, 3]).stream(0, 0, 2) is None
    assert stepclr.open_images("sample:train").stream(0, 0, 2) is None


def test_the_names_checksum_follows_the_content_and_not_the_place(shards: Path, remote: str, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "copy")
    checksums = [stepclr.open_images(where).names_checksum() for where in (shards, tmp_path / "copy", remote)]
    assert len(set(checksums)) == 1
    images = stepclr.open_images(shards)
    others = [images.take(range(99)), images.take(range(1, 100)), stepclr.open_images(f"{shards}/{{0000..0008}}.tar")]
    assert len({part.names_checksum() for part in (images, *others)}) == 4
    listed = replace(images, names=list(images.names))
    assert listed.names_checksum() == stepclr.open_images("sample:train", limit=100).names_checksum()


# -- a run


def test_the_feed_gives_each_rank_its_part_of_the_same_batches(shards: Path) -> None:
    images = stepclr.open_images(shards)
    whole = [lot.tolist() for lot in images.stream(3, 1, 8, 2) or ()]
    for world in (1, 2, 4):
        fed = [
            [batch.samples.tolist() for batch in batches(images, 3, 1, 8, 2, world=World(r, world))]
            for r in range(world)
        ]
        assert [list(chain(*parts)) for parts in zip(*fed, strict=True)] == whole


def test_a_run_from_shards_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(
    remote: str, cache: Path, tmp_path: Path
) -> None:
    settings = ["--encoder", "test_resnet", "--stem", "small-stride2", "--batch-size", "16", "--head", "32-16"]
    settings += ["--cache-gib", "0.000001", "--epochs", "3"]

    def run(name: str, *more: str) -> Path:
        with pytest.raises(SystemExit) as stop:
            main(["pretrain", remote, "--out", str(tmp_path / name), *settings, *more])
        assert not stop.value.code
        return tmp_path / name

    whole = run("whole")
    shutil.copytree(whole, tmp_path / "stopped")
    for path in checkpoints(tmp_path / "stopped" / "checkpoint")[1:]:
        path.unlink()
    (tmp_path / "stopped" / "encoder.safetensors").unlink()
    shutil.rmtree(cache)
    stopped = run("stopped", "--resume")
    before, after = (stepclr.load_encoder(path).state_dict() for path in (whole, stopped))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_command_line_refuses_or_skips_a_damaged_shard(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    shutil.copytree(shards, out)
    spoil(out / "0004.tar", "flipped")
    words = ["--encoder", "test_resnet", "--stem", "small-stride2", "--batch-size", "16", "--epochs", "1"]
    pretrain = ["pretrain", str(out), "--out", str(tmp_path / "run"), *words]
    with pytest.raises(SystemExit) as stop:
        main(pretrain)
    assert stop.value.code == 2
    assert f"{out}/0004.tar is corrupt" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*pretrain, "--damaged-shards", "skip"])
    assert not stop.value.code
    assert (tmp_path / "run" / "skipped.csv").read_text().count("0004.tar is corrupt") == 10
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (stored["images"], stored["skipped"], stored["damaged_shards"]) == (90, 10, "skip")
    assert "cannot be shown" not in (tmp_path / "run" / "report.html").read_text()

    # The run remembers it, and so do the commands that come next.
    doctor = ["doctor", str(out), *words, "--damaged-shards", "skip"]
    for command in (["report", str(tmp_path / "run")], [*pretrain, "--resume"], doctor):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert not stop.value.code
    *_, following = (line for line in capsys.readouterr().out.splitlines() if line.startswith("    stepclr evaluate"))
    assert following.endswith("--damaged-shards skip --holdout 0.2")
    with pytest.raises(SystemExit) as stop:
        main([*following.split()[1:], "--labels-per-class", "1", "--draws", "1", "--baselines", "none"])
    assert not stop.value.code

    # What was scored and what was embedded knows how it was read, even where the run did not.
    protocol = json.loads((tmp_path / "run" / "evaluation.json").read_text())["protocol"]
    opened = open_part(protocol["train"])
    assert opened is not None
    assert len(opened) == 90
    embed = ["embed", str(tmp_path / "run"), str(out), "--out", str(tmp_path / "h.npz")]
    with pytest.raises(SystemExit) as stop:
        main(embed)
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main([*embed, "--damaged-shards", "skip"])
    assert not stop.value.code
    assert np.load(tmp_path / "h.npz")["embeddings"].shape == (90, 96)
    index = str(tmp_path / "h.parquet")
    capsys.readouterr()
    for command in (
        [*embed[:-1], index, "--damaged-shards", "skip"],
        ["label", index, "--classes", "a,b", "--n", "3", "--out", str(tmp_path / "label.html")],
    ):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert not stop.value.code
    shown = capsys.readouterr().out
    assert "cannot be opened" not in shown
    (following,) = (line for line in shown.splitlines() if " finetune " in line)
    assert "--damaged-shards skip" in following
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "sample:train", "--out", str(tmp_path / "other"), "--damaged-shards", "skip"])
    assert stop.value.code == 2
