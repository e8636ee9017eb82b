"""`stepclr pack`: shards that hold a source's own images, the same bytes however often it was killed."""

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image
from small import call, photos_in
from touches import Forks

import stepclr
from stepclr.cli import main
from stepclr.data.shards.packing import PackedShards, pack
from stepclr.io import new_file

ODD = "it's\n a \udcff cat.jpg"  # a name that is neither one line nor UTF-8


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def same_images(packed: stepclr.ImageSet, source: stepclr.ImageSet) -> None:
    assert list(packed.names) == list(source.names)
    assert packed.labels.tolist() == source.labels.tolist()
    assert packed.classes == source.classes
    assert packed.sizes().tolist() == source.sizes().tolist()
    for i in range(len(source)):
        assert torch.equal(packed.read([i])[0], source.read([i])[0])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of two classes and of none: JPEG, PNG and more, of many sizes, one turned, one with an odd name."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    sample = stepclr.open_images("sample:train", limit=30).read(range(30))
    for i, pixels in enumerate(sample):
        path = folder / ("cat/", "dog/young/", "")[i % 3] / f"{i:02}{('.jpg', '.png', '.webp', '.JPEG')[i % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((40 + 3 * i, 70))
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 3 else 1
        image.save(path, exif=exif)
    shutil.copy(folder / "cat" / "00.jpg", folder / "cat" / ODD)
    return folder


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "shards"
    assert pack(stepclr.open_images(photos), out, per_shard=7) == PackedShards(31, 5, 0)
    return out


def test_a_folder_comes_back_as_it_was(photos: Path, shards: Path) -> None:
    source, packed = stepclr.open_images(photos), stepclr.open_images(shards)
    same_images(packed, source)
    assert f"cat/{ODD}" in packed.names
    assert (packed.source, packed.skipped) == (str(shards), [])
    same_images(packed.keep("dog"), source.keep("dog"))
    assert sorted(path.name for path in shards.iterdir()) == [
        *(f"000{k}.tar" for k in range(5)),
        "index.json",
        "members.npy",
        "names.bin",
    ]


def test_files_keep_their_bytes_and_the_tar_is_webdatasets(photos: Path, shards: Path) -> None:
    source = stepclr.open_images(photos)
    for k in range(5):
        with tarfile.open(shards / f"{k:04}.tar") as tar:
            for member in tar:
                row, suffix = member.name.split(".")
                content = tar.extractfile(member)
                assert content is not None
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
                assert 7 * k <= int(row) < 7 * k + 7
                if suffix == "cls":
                    assert int(content.read()) == source.labels[int(row)]
                else:
                    assert content.read() == (photos / source.names[int(row)]).read_bytes()
                    assert suffix in {"jpg", "png", "webp"}
            assert (
                sum(name.endswith(".cls") for name in tar.getnames()) == (source.labels[7 * k : 7 * k + 7] >= 0).sum()
            )


@pytest.mark.parametrize("kind", ["zip", "sample", "array", "shards", "decoded"])
def test_any_other_source_comes_back_too(kind: str, photos: Path, shards: Path, tmp_path: Path) -> None:
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
            for path in photos.rglob("*.*"):
                if path.name != ODD:
                    archive.write(path, path.relative_to(photos))
    source = {
        "zip": lambda: stepclr.open_images(tmp_path / "photos.zip"),
        "sample": lambda: stepclr.open_images("sample:test", limit=20),
        "array": lambda: stepclr.open_images(np.random.default_rng(0).integers(256, size=(9, 5, 4, 3)).astype("u1")),
        "shards": lambda: stepclr.open_images(shards),
        "decoded": lambda: stepclr.open_images(photos).decoded(32),
    }[kind]()
    pack(source, tmp_path / "out", per_shard=4)
    same_images(stepclr.open_images(tmp_path / "out"), source)


def test_images_above_the_short_side_are_reduced_at_the_stated_quality_and_no_other(
    photos: Path, tmp_path: Path
) -> None:
    source = stepclr.open_images(photos)
    words = ["pack", str(photos), "--out", str(tmp_path / "out"), "--short-side", "60", "--quality", "80"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code
    packed = stepclr.open_images(tmp_path / "out")
    assert packed.sizes().min(axis=1).max() == 60
    told = json.loads((tmp_path / "out" / "index.json").read_text())
    assert (told["short_side"], told["quality"]) == (60, 80)
    with tarfile.open(tmp_path / "out" / "0000.tar") as tar:
        for i, (before, after) in enumerate(zip(source.sizes().tolist(), packed.sizes().tolist(), strict=True)):
            (name,) = (name for name in tar.getnames() if name.startswith(f"{i:09d}") and not name.endswith(".cls"))
            content = tar.extractfile(name)
            assert content is not None
            written = content.read()
            if min(before) <= 60:
                assert written == (photos / source.names[i]).read_bytes()
            else:
                reduced = source.decoded(60, budget=0).read([i])[0]
                assert after == list(reduced.shape[1:])
                expected = io.BytesIO()
                Image.fromarray(reduced.permute(1, 2, 0).numpy()).save(expected, "JPEG", quality=80)
                assert written == expected.getvalue()


def test_unreadable_images_are_left_out_and_listed(photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "photos"
    shutil.copytree(photos, broken)
    whole = (broken / "cat" / "00.jpg").read_bytes()
    (broken / "cat" / "00.jpg").write_bytes(whole[: len(whole) // 2])
    (broken / "00.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as stop:
        main(["pack", str(broken), "--out", str(tmp_path / "out"), "--per-shard", "5"])
    assert not stop.value.code
    packed = stepclr.open_images(tmp_path / "out")
    with (tmp_path / "out" / "skipped.csv").open(errors="surrogateescape") as file:
        assert [line[0] for line in csv.reader(file)] == ["path", "00.png", "cat/00.jpg"]
    assert set(stepclr.open_images(broken).names) - set(packed.names) == {"00.png", "cat/00.jpg"}
    packed.read(range(len(packed)))


class Stop(Exception):
    pass


def test_stopped_after_any_file_it_goes_on_to_the_same_bytes(
    photos: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    written: list[str] = []

    @contextmanager
    def write(path: Path) -> Iterator[BinaryIO]:
        if not left:
            (path.parent / f".{path.name}.1-1.tmp").write_bytes(b"half of it")
            raise Stop
        left.pop()
        with new_file(path) as file:
            yield file
        written.append(path.suffix)

    for module in ("packing", "index"):
        monkeypatch.setattr(f"stepclr.data.shards.{module}.new_file", write)
    stops = 0
    for files in (1, 2, 3, 2, 4, 1, 2, 0, 99):
        left = [None] * files
        try:
            pack(stepclr.open_images(photos), out, per_shard=7)
        except Stop:
            stops += 1
    assert stops >= 6
    assert written.count(".part") == 5  # no shard that was whole was written again
    assert contents(out) == contents(shards)


def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(forked: Forks, tmp_path: Path) -> None:
    source = ["sample:train", "--limit", "900", "--per-shard", "50"]
    begun = time.perf_counter()
    pack(stepclr.open_images("sample:train", limit=900), tmp_path / "whole", per_shard=50)
    took = time.perf_counter() - begun  # so that a fast machine does not finish before it is killed
    out, kills = tmp_path / "shards", 0
    words = [forked.python, "-m", "stepclr", "pack", *source, "--out", str(out)]
    random = np.random.default_rng(0)
    while kills < 50:
        seen = len(list(out.iterdir())) if out.exists() else 0
        child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        while child.poll() is None and not (out.exists() and len(list(out.iterdir())) > seen):
            time.sleep(0.01)
        time.sleep(float(random.uniform(0, took / 6)))
        if child.poll() is not None:
            assert child.returncode == 0
            break
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
    assert kills >= 2
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("what", ["cut", "flipped", "gone", "part"])
def test_a_shard_that_was_spoilt_meanwhile_is_written_again(
    what: str, photos: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    if what == "part":  # before the end
        monkeypatch.setattr("stepclr.data.shards.packing._finish", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            pack(stepclr.open_images(photos), out, per_shard=7)
        monkeypatch.undo()
        (out / "0001.part").write_bytes((out / "0001.part").read_bytes()[:-1])
    else:
        shutil.copytree(shards, out)
        spoil(out / "0002.tar", what)
    pack(stepclr.open_images(photos), out, per_shard=7)
    assert contents(out) == contents(shards)


def spoil(path: Path, what: str) -> None:
    content = bytearray(path.read_bytes())
    if what == "cut":
        del content[-700:]
    elif what == "flipped":
        content[len(content) // 2] ^= 1
    path.unlink()
    if what != "gone":
        path.write_bytes(content)


def test_a_damaged_index_is_made_again(photos: Path, shards: Path, tmp_path: Path) -> None:
    for name in ("members.npy", "names.bin"):
        out = tmp_path / name
        shutil.copytree(shards, out)
        spoil(out / name, "flipped")
        with pytest.raises(stepclr.StepclrError, match=f"{name} is missing or corrupt"):
            stepclr.open_images(out)
        pack(stepclr.open_images(photos), out, per_shard=7)
        assert contents(out) == contents(shards)


def test_what_it_refuses(photos: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "index.json").write_text("[1, 2]")
    (tmp_path / "file").touch()
    for out, options, said in (
        (full, [], f"{full} is not an unfinished pack; choose another folder"),
        (foreign, [], f"{foreign / 'index.json'} was not written by stepclr pack; choose another folder"),
        (tmp_path / "file", [], f"{tmp_path / 'file'} is a file; give a folder"),
        (shards, ["--per-shard", "8"], "--per-shard was 7, not 8"),
        (shards, ["--per-shard", "7", "--short-side", "60"], "--short-side was None, not 60"),
        (shards, ["--per-shard", "7", "--limit", "5"], "of was 31, not 5"),
        (tmp_path / "new", ["--per-shard", "0"], "--per-shard must be from 1 to"),
        (tmp_path / "new", ["--quality", "80"], "give --short-side too"),
        (tmp_path / "new", ["--quality", "0", "--short-side", "9"], "quality must be from 1 to 95, not 0"),
    ):
        before = contents(out) if out.is_dir() else None
        with pytest.raises(SystemExit) as stop:
            main(["pack", str(photos), "--out", str(out), *options])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
        assert before == (contents(out) if out.is_dir() else None)


def test_images_that_changed_since_are_not_mixed_with_those_before(photos: Path, tmp_path: Path) -> None:
    changed, out = tmp_path / "photos", tmp_path / "shards"
    shutil.copytree(photos, changed)
    pack(stepclr.open_images(changed), out, per_shard=7)
    Image.new("RGB", (50, 50)).save(changed / "cat" / "12.jpg")
    for path in out.glob("*.tar"):
        path.unlink()
    with pytest.raises(stepclr.StepclrError, match="has changed since"):
        pack(stepclr.open_images(changed), out, per_shard=7)


def test_a_second_process_is_refused(photos: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "out"
    out.mkdir()
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(stepclr.StepclrError, match="another process is packing into"):
        pack(stepclr.open_images(photos), out)
    os.close(handle)
    pack(stepclr.open_images(photos), out)


def test_half_a_folder_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "packing.json").write_text('{"per_shard": 7}')
    with pytest.raises(stepclr.StepclrError, match="packing was not finished; run the same stepclr pack again"):
        stepclr.open_images(tmp_path)


def test_a_split_that_shards_do_not_keep_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = photos_in(tmp_path / "photos", 8)
    table = tmp_path / "labels.csv"
    for split, said in (("test", True), ("", False)):
        table.write_text(f"path,label,split\n00.png,a,{split}\n01.png,b,{split and 'train'}\n")
        assert call("pack", photos, "--labels", table, "--out", tmp_path / f"shards{split}") == 0
        assert ("shards have no column split" in capsys.readouterr().out) == said


def test_images_that_cannot_be_read_make_no_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as 16-bit images without the numbers of black and white; with these, the same folder can be used."""
    (tmp_path / "deep").mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8), 1000 * (i + 1), np.uint16)).save(tmp_path / "deep" / f"{i}.png")
    words = ["pack", tmp_path / "deep", "--out", tmp_path / "shards"]
    assert call(*words, "--per-shard", "2") == 2
    assert f"stepclr: no image of {tmp_path / 'deep'} can be read, such as 0.png: " in capsys.readouterr().err
    assert list((tmp_path / "shards").iterdir()) == []
    assert call(*words, "--value-range", "0,4000") == 0
    assert len(stepclr.open_images(tmp_path / "shards")) == 3


def test_the_limit_of_pixels_is_a_setting_like_the_others(tmp_path: Path) -> None:
    """Whoever follows the advice to raise it gets the images, or is told to choose another folder."""
    photos, out = tmp_path / "photos", tmp_path / "shards"
    photos_in(photos)
    assert pack(stepclr.open_images(photos, max_pixels=10**6), out).skipped == 0
    with pytest.raises(stepclr.StepclrError, match="max_pixels was 1000000, not 2000000"):
        pack(stepclr.open_images(photos, max_pixels=2 * 10**6), out)
    index = json.loads((out / "index.json").read_text())
    for key in ("max_pixels", "content"):  # as an earlier version wrote it
        del index[key]
    (out / "index.json").write_text(json.dumps(index))
    pack(stepclr.open_images(photos, max_pixels=2 * 10**6), out)


def test_an_array_is_known_by_its_pixels_and_labels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    packed = pack(stepclr.open_images((pixels, np.array([0, 0, 1, 1]))), tmp_path)
    assert pack(stepclr.open_images((pixels, np.array([0, 0, 1, 1]))), tmp_path) == packed
    for other, labels in ((255 - pixels, [0, 0, 1, 1]), (pixels, [1, 1, 0, 0])):
        with pytest.raises(stepclr.StepclrError, match="their pixels or labels differ; choose another folder"):
            pack(stepclr.open_images((other, np.array(labels))), tmp_path)
