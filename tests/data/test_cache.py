"""Step 1: decoded once, kept in a memory-mapped file that stays correct whatever happens."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from touches import Forks

from stepclr import io
from stepclr.data import decode, formats, recall, stores
from stepclr.data.folders import FolderStore
from stepclr.data.images import ImageSet
from stepclr.data.reading import Reading
from stepclr.data.sources import open_images
from stepclr.errors import StepclrError

SIDE = 24  # of the cached images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 images of two classes and several sizes, JPEG and PNG, and two that cannot be read."""
    random = np.random.default_rng(0)
    root = tmp_path / "photos"
    for i in range(30):
        (root / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        height, width = random.integers(10, 90, 2)
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((int(width), int(height))).save(root / "ab"[i % 2] / f"{i:02d}.{'jpg' if i % 3 else 'png'}")
    (root / "a" / "broken.jpg").write_bytes(b"no image")
    cut_short = (root / "b" / "01.jpg").read_bytes()
    (root / "b" / "cut short.jpg").write_bytes(cut_short[: len(cut_short) - 200])
    return root


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEPCLR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.pixels"))


def all_images(images: ImageSet) -> list[torch.Tensor]:
    return list(images.read(range(len(images))))


def assert_same(these: ImageSet, those: ImageSet) -> None:
    for one, other in zip(all_images(these), all_images(those), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of files is remembered even if the files are new, as those of tests are."""
    monkeypatch.setattr(recall, "SETTLED", -(10**12))


def test_cached_and_streamed_images_are_the_same_and_unreadable_ones_are_listed(photos: Path, cache: Path) -> None:
    images = open_images(photos)
    cached, streamed = images.decoded(SIDE), images.decoded(SIDE, budget=1000)
    assert (len(cached), len(streamed), len(entries(cache))) == (30, 32, 1)
    assert sorted(name for name, _ in cached.skipped) == ["a/broken.jpg", "b/cut short.jpg"]
    pixels, kept = streamed.read_readable(range(32))
    assert sorted(streamed.skipped) == sorted(cached.skipped)
    assert [streamed.names[i] for i in kept] == cached.names
    assert streamed.labels[kept].tolist() == cached.labels.tolist()
    assert_same(cached, streamed.take(kept))
    for image_, small, whole in zip(pixels, cached.sizes(), images.sizes()[kept], strict=True):
        assert image_.shape == (3, *small)
        assert min(small) == min(SIDE, min(whole))
        assert small[0] / small[1] == pytest.approx(whole[0] / whole[1], rel=0.05)
    assert cached.decoded(SIDE) is cached
    assert torch.equal(cached.read([4])[0], all_images(cached)[4])


def resident_kibibytes(path: Path) -> int:
    """How much of a mapped file this process holds in memory."""
    maps = Path("/proc/self/smaps").read_text()
    found = re.search(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", maps)
    assert found
    return int(found[1])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what is resident is read from Linux's /proc")
@pytest.mark.parametrize("one_size", [False, True])
def test_a_batch_that_was_read_does_not_stay_in_memory_beside_its_copy(
    photos: Path, cache: Path, one_size: bool
) -> None:
    if one_size:
        for path in photos.rglob("[0-9]*.*"):
            Image.open(path).resize((SIDE, SIDE)).save(path)
    images = open_images(photos).decoded(SIDE)
    before = all_images(images)
    assert resident_kibibytes(*entries(cache)) > 0
    batch, _ = images.read_readable(range(len(images)))
    assert resident_kibibytes(*entries(cache)) == 0
    for image, expected in zip(batch, before, strict=True):
        assert torch.equal(image, expected)


def test_what_was_written_into_a_private_map_stays(tmp_path: Path) -> None:
    (tmp_path / "pixels").write_bytes(bytes(3 * 4096))
    mapped = np.memmap(tmp_path / "pixels", np.uint8, "c")
    mapped[:3] = 1
    mapped.flags.writeable = False
    open_images(mapped.reshape(-1, 64, 64, 3)).read_readable([0])
    assert mapped.sum() == 3


def test_real_images_of_one_size_come_as_one_batch(shared_data: Path, cache: Path) -> None:
    images = open_images(shared_data / "stl10_airplane_car.zip", limit=40)
    for side in (192, 48):
        cached, streamed = images.decoded(side), images.decoded(side, budget=0)
        batch, again = cached.read([39, 0, 7]), streamed.read([39, 0, 7])
        assert isinstance(batch, torch.Tensor)
        assert batch.shape == (3, 3, min(side, 96), min(side, 96))
        assert torch.equal(batch, again)  # type: ignore[arg-type]
        assert cached.labels.tolist() == images.labels.tolist()
    assert len(entries(cache)) == 2


def test_the_number_of_threads_changes_nothing(photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_images(photos)
    many = images.decoded(SIDE)
    content = entries(cache)[0].read_bytes()
    entries(cache)[0].unlink()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")  # the one of many ranks has one thread
    assert_same(images.decoded(SIDE), many)
    assert entries(cache)[0].read_bytes() == content


@pytest.mark.usefixtures("cache", "at_once")
def test_a_second_start_reads_no_image_file(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_images(photos).decoded(SIDE)
    opened: list[str] = []
    real = Path.open

    def watched(path: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(path.suffix)
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", watched)
    second = open_images(photos).decoded(SIDE)
    assert sorted(opened) == [".json", ".pixels"]
    assert_same(first, second)
    assert second.skipped == first.skipped


@pytest.fixture
def headers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of which images the size was read from the file."""
    looked: list[str] = []

    def watched(file: formats.File, reading: Reading) -> tuple[int, int]:
        looked.append(Path(getattr(file, "name", "")).name)
        return decode.size_of(file, reading)

    monkeypatch.setattr(stores, "size_of", watched)
    return looked


@pytest.mark.usefixtures("cache", "at_once")
def test_sizes_are_read_from_each_file_once(photos: Path, headers: list[str]) -> None:
    first = open_images(photos).sizes()
    assert len(headers) == 32
    assert (first == 0).all(axis=1).sum() == 1
    assert open_images(photos).sizes().tolist() == first.tolist()
    assert headers[32:] == ["broken.jpg"]  # has no size to remember
    time.sleep(0.02)  # time stamps have steps
    Image.new("RGB", (7, 5)).save(photos / "a" / "00.png")
    assert open_images(photos).sizes()[0].tolist() == [5, 7]
    assert headers[33:].count("00.png") == 1
    assert len(headers) == 35
    assert open_images(photos / "a").sizes()[0].tolist() == [5, 7]  # another set
    assert open_images(photos, max_pixels=36).sizes()[0].tolist() == [5, 7]
    assert open_images(photos, max_pixels=34).sizes()[0].tolist() == [0, 0]


@pytest.mark.usefixtures("cache")
def test_sizes_of_images_in_a_zip_are_read_once(photos: Path, tmp_path: Path, headers: list[str]) -> None:
    def zipped() -> list[list[int]]:
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
            for path in sorted(photos.rglob("*.*")):
                archive.write(path, str(path.relative_to(photos)))
        first, second = (open_images(tmp_path / "photos.zip").sizes() for _ in range(2))
        assert first.tolist() == second.tolist()
        return [[int(height), int(width)] for height, width in second]

    assert zipped() == open_images(photos).sizes().tolist()
    assert len(headers) == 32 + 1 + 32
    Image.new("RGB", (7, 5)).save(photos / "a" / "00.png")
    assert zipped()[0] == [5, 7]


def test_sizes_need_no_place_to_remember_them(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_images(photos).sizes().tolist()
    (tmp_path / "a file").touch()
    monkeypatch.setenv("STEPCLR_CACHE", str(tmp_path / "a file" / "cache"))
    assert open_images(photos).sizes().tolist() == expected


@pytest.mark.usefixtures("cache")
def test_cmyk_16_bit_and_animated_images_are_decoded_and_cached(tmp_path: Path) -> None:
    shades = np.linspace(0, 255, 60).astype(np.uint8)
    ramp = Image.fromarray(np.tile(shades, (40, 1))).convert("RGB")
    white = Image.new("RGB", ramp.size, "white")
    root = tmp_path / "odd"
    root.mkdir()
    ramp.convert("CMYK").save(root / "cmyk.jpg", quality=95)
    ramp.convert("CMYK").save(root / "cmyk.tif")
    Image.fromarray(np.asarray(ramp.convert("L")).astype(np.uint16) * 257).save(root / "sixteen.png")
    Image.fromarray(np.asarray(ramp.convert("L")).astype(np.uint16) * 257).save(root / "sixteen.tif")
    for name in ("moves.gif", "moves.webp", "moves.png"):
        ramp.save(root / name, save_all=True, append_images=[white])
    images = open_images(root)
    cached, streamed = images.decoded(20), images.decoded(20, budget=0)
    assert (len(cached), cached.skipped) == (7, [])
    assert_same(cached, streamed)
    expected = np.asarray(ramp.resize((30, 20), Image.Resampling.BICUBIC)).astype(int)
    for name, small in zip(cached.names, all_images(cached), strict=True):
        assert np.abs(small.permute(1, 2, 0).numpy() - expected).mean() < 3, name


def test_a_file_changed_a_moment_ago_is_not_remembered_as_it_may_change_again(photos: Path, cache: Path) -> None:
    open_images(photos).decoded(SIDE)
    (memory,) = cache.glob("index-*.json")
    assert json.loads(memory.read_text()) == {}


def test_the_content_finds_the_cache_not_the_place(photos: Path, cache: Path) -> None:
    first = open_images(photos).decoded(SIDE)
    moved = photos.rename(photos.with_name("moved"))
    assert_same(open_images(moved).decoded(SIDE), first)
    assert len(entries(cache)) == 1


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("keep_time", [False, True])
def test_an_image_changed_under_its_old_name_is_decoded_again(photos: Path, cache: Path, keep_time: bool) -> None:
    path = photos / "a" / "00.png"
    Image.new("RGB", (30, 30), "red").save(path, "BMP")
    before = path.stat()
    first = open_images(photos).decoded(SIDE)
    time.sleep(0.02)  # time stamps have steps
    Image.new("RGB", (30, 30), "blue").save(path, "BMP")
    if keep_time:  # as cp -p and rsync do
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    second = open_images(photos).decoded(SIDE)
    assert len(entries(cache)) == 2
    assert first.read([0])[0][:, 0, 0].tolist() == [255, 0, 0]
    assert second.read([0])[0][:, 0, 0].tolist() == [0, 0, 255]


def test_a_zip_with_other_content_of_the_same_size_is_decoded_again(tmp_path: Path, cache: Path) -> None:
    for color in ("red", "blue"):
        Image.new("RGB", (30, 30), color).save(tmp_path / "a.bmp")
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
            archive.write(tmp_path / "a.bmp", "a.bmp")
        decoded = open_images(tmp_path / "photos.zip").decoded(SIDE)
        assert decoded.read([0])[0][:, 0, 0].tolist() == ([255, 0, 0] if color == "red" else [0, 0, 255])
    assert len(entries(cache)) == 2


def test_size_and_decoder_are_part_of_the_key(photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_images(photos)
    images.decoded(SIDE)
    images.decoded(SIDE + 1)
    monkeypatch.setattr("stepclr.data.decode.DECODER", "another")
    images.decoded(SIDE)
    assert len(entries(cache)) == 3


@pytest.mark.parametrize("harm", ["empty", "cut short", "longer", "no mark", "other header"])
def test_a_damaged_cache_file_is_built_again(photos: Path, cache: Path, harm: str) -> None:
    images = open_images(photos)
    expected = all_images(images.decoded(SIDE))
    (path,) = entries(cache)
    whole = path.read_bytes()
    harmed = {
        "empty": b"",
        "cut short": whole[:-1000],
        "longer": b"x" + whole,
        "no mark": whole[:-8] + bytes(8),
        "other header": whole[:-16].replace(b'"unreadable"', b'"xnreadable"') + whole[-16:],
    }
    path.write_bytes(harmed[harm])
    assert all(map(torch.equal, all_images(images.decoded(SIDE)), expected))
    assert path.read_bytes() == whole


def test_an_image_that_could_once_not_be_read_is_tried_again(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk or a network may fail for a moment."""
    images, opened = open_images(photos), FolderStore.open

    def failing(store: FolderStore, row: int) -> Any:
        if row in (3, 4):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(store, row)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "open", failing)
        assert len(images.decoded(SIDE)) == 28
        assert len(images.decoded(SIDE)) == 28
    assert len(images.decoded(SIDE)) == 30
    assert len(entries(cache)) == 1
    (stored,) = entries(cache)
    written = stored.stat().st_mtime_ns
    assert [why for _, why in open_images(photos).decoded(SIDE).skipped if "Input/output" in why] == []
    assert stored.stat().st_mtime_ns == written


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a/00.png": 1}', '{"a/00.png": [1, 2, 3, 4]}', "[" * 100_000])
def test_a_damaged_memory_of_checksums_does_no_harm(photos: Path, cache: Path, text: str) -> None:
    first = open_images(photos).decoded(SIDE)
    for memory in cache.glob("index-*.json"):
        memory.write_text(text)
    assert_same(open_images(photos).decoded(SIDE), first)
    assert len(entries(cache)) == 1


BUILD = """
import sys, time
from stepclr.data.sources import open_images
def slowly(done, total):
    time.sleep(float(sys.argv[2]))
    print(done, flush=True)
print(open_images(sys.argv[1]).decoded(24, progress=slowly).read([3])[0].sum().item(), flush=True)
"""


def build(python: str, photos: Path, wait: float) -> subprocess.Popen[str]:
    command = [python, "-W", "error", "-c", BUILD, str(photos), str(wait)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_may_build_at_once(forked: Forks, photos: Path, cache: Path) -> None:
    builders = [build(forked.python, photos, 0.02) for _ in range(2)]
    ends = [builder.communicate(timeout=300) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], ends
    expected = int(open_images(photos).decoded(SIDE).read([3])[0].sum())
    assert [int(out.split()[-1]) for out, _ in ends] == [expected] * 2
    assert len(entries(cache)) == 1
    assert not list(cache.glob("*.tmp"))


def test_a_killed_build_leaves_nothing_that_is_used(forked: Forks, photos: Path, cache: Path) -> None:
    builder = build(forked.python, photos, 0.02)
    assert builder.stdout
    while int(builder.stdout.readline()) < 20:
        pass
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    assert (entries(cache), len(list(cache.glob("*.tmp")))) == ([], 1)
    images = open_images(photos)
    assert_same(
        images.decoded(SIDE),
        images.decoded(SIDE, budget=0).take(
            [i for i in range(32) if not images.names[i].endswith(("broken.jpg", "cut short.jpg"))]
        ),
    )
    for left in cache.glob("*.tmp"):
        os.utime(left, (time.time() - io.ABANDONED - 60,) * 2)
    (cache / "of another program.tmp").touch()
    os.utime(cache / "of another program.tmp", (0, 0))
    images.decoded(SIDE + 1)  # deletes what the killed process left
    assert [left.name for left in cache.glob("*.tmp")] == ["of another program.tmp"]


def test_an_image_changed_while_decoding_is_not_cached_as_it_was(photos: Path, cache: Path) -> None:
    def meddle(done: int, total: int) -> None:
        if done == total:
            Image.new("RGB", (30, 30), "red").save(photos / "a" / "00.png")

    with pytest.raises(StepclrError, match="changed while they were being decoded"):
        open_images(photos).decoded(SIDE, progress=meddle)
    assert entries(cache) == []
    assert open_images(photos).decoded(SIDE).read([0])[0][:, 0, 0].tolist() == [255, 0, 0]


def test_a_full_disk_is_one_line_and_leaves_nothing(photos: Path, cache: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(StepclrError, match=f"cannot write in {cache}: File too large; STEPCLR_CACHE"):
            open_images(photos).decoded(SIDE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (entries(cache), list(cache.glob("*.tmp"))) == ([], [])
    open_images(photos).decoded(SIDE)


def test_a_set_without_any_readable_image_is_an_error(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(StepclrError, match=r"no image can be read; the first, a\.jpg: not an image in a known"):
            open_images(tmp_path).decoded(SIDE)


def test_progress_and_the_callers_own_folder(photos: Path, cache: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    images = open_images(photos)
    for _ in range(2):  # the second finds it done
        images.decoded(SIDE, cache_dir=tmp_path / "mine", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 32) for i in range(1, 33)]
    assert len(entries(tmp_path / "mine")) == 1
    assert not cache.exists()


def test_a_large_source_is_recognized_by_its_first_headers(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepclr.data.cache.CHUNK", 4)
    looked: list[tuple[int, int]] = []

    def watched(file: formats.File, reading: Reading) -> tuple[int, int]:
        looked.append(decode.size_of(file, reading))
        return looked[-1]

    monkeypatch.setattr(stores, "size_of", watched)
    streamed = open_images(photos).decoded(SIDE, budget=3000)
    assert len(looked) == 4
    assert not cache.exists()
    assert streamed.decoded(12).sizes().min() <= 12


def test_a_subset_is_cached_by_itself(photos: Path) -> None:
    images = open_images(photos, classes="b", limit=5)
    decoded = images.decoded(SIDE)
    assert (decoded.names, decoded.classes) == (images.names, ["b"])
    assert_same(decoded, images.decoded(SIDE, budget=0))
    assert decoded.take([4, 1]).decoded(SIDE).names == [images.names[4], images.names[1]]
