"""Files of every format that is read, altered at random: a valid result or the documented error, and nothing else.

The suite tries 2,000 in all; `STEPCLR_FUZZ=100000 pytest tests/test_fuzz.py -s` as many as that.
"""

import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from small import SETTINGS
from torch import nn

import stepclr
from stepclr.config import RunConfig
from stepclr.data import cache, decode, named, recall
from stepclr.data.reading import AS_DECLARED, Reading
from stepclr.model.files import save_classifier
from stepclr.pretraining.checkpoint import load_checkpoint, save_checkpoint
from stepclr.tools.compare import compare_table
from stepclr.tools.search.index import open_index
from stepclr.tools.search.table import write_embeddings

IN_ALL = int(os.environ.get("STEPCLR_FUZZ", "2000"))
# What parsers say to their programmers; a user is told which file is damaged.
JARGON = re.compile(r"unpack|buffer|\wError\b|codec|Errno|NoneType|out of range|literal|object has no|pickle")
SECONDS = 5  # of the processor, that reading one file may take
# How often each is tried, of so many: a network is built for each encoder, which takes its time.
SHARES = {
    "JPEG": 12,
    "PNG": 12,
    "GIF": 3,
    "TIFF": 6,
    "zip": 12,
    "tar": 6,
    "encoder": 2,
    "classifier": 2,
    "checkpoint": 10,
    "config.json": 10,
    "metrics.jsonl": 6,
    "evaluation.json": 6,
    "npz": 10,
    "cache": 6,
    "cache's index": 6,
    "weights": 3,
    "labels.csv": 6,
    "labels.parquet": 4,
    "index.npz": 4,
    "index.parquet": 3,
}
GIB = 1.5  # that all of them may add to the process; an image of 89 million pixels takes half a GiB
NUMBERS = [0, 1, 2, 127, 128, 255, 256, 32_767, 32_768, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
WORDS = [b"null", b"true", b"[]", b"{}", b'""', b'"x"', b"-1", b"0", b"1e999", b"NaN", b"9" * 30, b"[" * 2000]
WORDS += [b"../", b"\0", b"\xff\xd8", b"IHDR", b"PK\3\4", b"\n", b'"F4"', b'"BOOL"', b'"__metadata__"']
JSON = re.compile(rb'\\?"[^"]{0,99}"|-?\d[\d.e+-]*|null|true|false')


@dataclass(frozen=True)
class Format:
    """Valid files of a format, and what reads one."""

    valid: list[bytes]
    read: Callable[[Path], object]
    name: str


# Alterations: of a file's bytes, at a place from 0 to 1 or in the first 64 bytes, where headers are.


def place() -> st.SearchStrategy[float]:
    return st.one_of(st.floats(0, 1, exclude_max=True), st.integers(-64, -1).map(float))


def at(content: bytearray, where: float) -> int:
    return min(int(-where) - 1, len(content)) if where < 0 else int(where * len(content))


def flip(content: bytearray, where: float, bit: int) -> None:
    if content:
        content[min(at(content, where), len(content) - 1)] ^= 1 << bit


def cut(content: bytearray, where: float) -> None:
    del content[at(content, where) :]


def drop(content: bytearray, where: float, length: int) -> None:
    del content[at(content, where) : at(content, where) + length]


def insert(content: bytearray, where: float, more: bytes) -> None:
    content[at(content, where) : at(content, where)] = more


def overwrite(content: bytearray, where: float, more: bytes) -> None:
    content[at(content, where) : at(content, where) + len(more)] = more


def double(content: bytearray, where: float, length: int, into: float) -> None:
    insert(content, into, bytes(content[at(content, where) : at(content, where) + length]))


def number(content: bytearray, where: float, value: int, kind: str) -> None:
    overwrite(content, where, struct.pack(kind, value % 2 ** (8 * struct.calcsize(kind))))


def exchange(content: bytearray, which: int, word: bytes) -> None:
    """A value, or a name, of what looks like JSON."""
    found = list(JSON.finditer(content))
    if found:
        part = found[which % len(found)]
        content[part.start() : part.end()] = word


def alterations() -> st.SearchStrategy[Callable[[bytearray], None]]:
    def made(function: Callable[..., None], *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.tuples(*parts).map(lambda values: lambda content: function(content, *values))

    lengths, more = st.integers(1, 200), st.one_of(st.sampled_from(WORDS), st.binary(min_size=1, max_size=40))
    kinds = st.sampled_from(["<B", "<H", ">H", "<I", ">I", "<Q", ">Q"])
    return st.one_of(
        made(flip, place(), st.integers(0, 7)),
        made(cut, place()),
        made(drop, place(), lengths),
        made(insert, place(), more),
        made(overwrite, place(), more),
        made(double, place(), lengths, place()),
        made(number, place(), st.sampled_from(NUMBERS), kinds),
        made(exchange, st.integers(0, 999), st.sampled_from(WORDS)),
        made(exchange, st.integers(0, 999), st.sampled_from(WORDS)),
    )


def with_right_sums(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what is in them now: or its readers would look no further."""
    fixed, start = bytearray(content), 8
    while start + 12 <= len(fixed):
        end = start + 8 + int.from_bytes(fixed[start : start + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[start + 4 : end]))
        start = end + 4
    return bytes(fixed)


def with_right_length(content: bytes, before: bytes) -> bytes:
    """A safetensors file whose header is as long as it says, if nothing behind it was altered."""
    length = int.from_bytes(before[:8], "little") + len(content) - len(before)
    return struct.pack("<Q", max(0, length)) + content[8:]


# Watching


@dataclass
class Watch:
    """Notes what is written outside a folder, and programs and pickles that are started, while it is on."""

    inside: str = ""
    seen: list[str] | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.seen is None:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link")) and not (
            isinstance(arguments[0], int) or os.fsdecode(arguments[0]).startswith((self.inside, os.devnull))
        ):
            self.seen.append(f"{event} {arguments}")
        if event in ("subprocess.Popen", "os.system", "os.exec", "pickle.find_class", "socket.connect"):
            self.seen.append(f"{event} {arguments}")


@pytest.fixture(scope="module")
def watch() -> Watch:
    watching = Watch()
    sys.addaudithook(watching)  # for good: Python takes none back
    return watching


@contextmanager
def in_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# Formats


def images(kind: str) -> list[bytes]:
    """An image of the sample as grey, RGB, with transparency or a palette, EXIF, progressive, as the format has it."""
    drawn = stepclr.open_images("sample:train", limit=1).read([0])[0].permute(1, 2, 0).numpy()
    rgb = Image.fromarray(drawn).resize((40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    made: list[tuple[Image.Image, dict[str, Any]]] = [(rgb, {"exif": exif}), (rgb.convert("L"), {})]
    if kind == "PNG":
        deep = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
        made += [(rgb.convert("RGBA"), {}), (rgb.convert("P"), {"transparency": 3}), (deep, {})]
    elif kind == "GIF":
        made = [(rgb, {}), (rgb, {"save_all": True, "append_images": [rgb.rotate(9)]})]
    else:
        made += [(rgb, {"progressive": True, "quality": 95}), (rgb.convert("CMYK"), {"icc_profile": b"profile" * 9})]
    return [saved(image, kind, **options) for image, options in made]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def tiffs() -> list[bytes]:
    """Of four bands, in strips or one behind the other, compressed or of 16 bits."""
    bands = 13 * np.arange(30 * 40 * 4, dtype=np.uint16).reshape(30, 40, 4)
    small = (bands % 256).astype(np.uint8)
    interleaved = {"photometric": "rgb", "extrasamples": ["unspecified"]}
    apart = {"photometric": "minisblack", "planarconfig": "separate"}
    made: list[tuple[Any, dict[str, Any]]] = [
        (small, interleaved),
        (small, {**interleaved, "compression": "zlib"}),
        (small.transpose(2, 0, 1), apart),
    ]
    made += [(small.transpose(2, 0, 1), {"photometric": "minisblack"}), (bands, {**interleaved, "bigtiff": True})]
    contents = []
    for pixels, options in made:
        content = io.BytesIO()
        tifffile.imwrite(content, pixels, **options)
        contents.append(content.getvalue())
    return contents


def zips() -> list[bytes]:
    made = []
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", how) as archive:
            archive.comment = b"a comment"
            for name in ("top/cat/a.png", "top/dog/b.jpg", "top/notes.txt"):
                archive.writestr(name, images("JPEG" if name.endswith("jpg") else "PNG")[1])
        made.append(content.getvalue())
    return made


def tars() -> list[bytes]:
    made = []
    for layout in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=layout) as archive:
            left = [("dog/é.jpg", b"no image"), ("../up.png", b"no image"), ("link.png", b"")]
            for name, data in (("cat/a.png", images("PNG")[1]), ("cat/a.cls", b"3"), *left):
                member = tarfile.TarInfo(name)
                member.type = tarfile.REGTYPE if data else tarfile.SYMTYPE
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        made.append(content.getvalue())
    return made


def read_image(path: Path) -> None:
    content = path.read_bytes()
    for short_side in (None, 8):
        decoded = decode.decode(io.BytesIO(content), short_side)
        assert decoded.dtype == torch.uint8
        assert decode.reduced_size(*decode.size_of(io.BytesIO(content)), short_side) == tuple(decoded.shape[1:])


def read_bands(path: Path) -> None:
    content, reading = path.read_bytes(), Reading(channels=4)
    assert decode.decode(io.BytesIO(content), 8, reading).shape[0] == 4
    decode.size_of(io.BytesIO(content), reading)
    decode.kind_of(io.BytesIO(content), reading)


def read_archive(path: Path) -> None:
    images = stepclr.open_images(path)
    _, kept = images.read_readable(range(len(images)))
    assert len(images.sizes()) == len(images) == len(images.labels)
    assert len(kept) + len(images.skipped) >= len(images)
    assert not [why for _, why in images.skipped if JARGON.search(why)]


def read_config(path: Path) -> None:
    assert stepclr.Run(path.parent).config.images
    assert RunConfig.read(path.parent)


def read_cache(path: Path) -> None:
    found = cache._load(path, 3, 10**6, AS_DECLARED)
    if found:
        for row in range(len(found.kept)):
            found.store.image(row, None)


def read_index(path: Path) -> None:
    digest = hashlib.blake2b(os.fsencode(path.parent) + b"question", digest_size=16).hexdigest()
    path.rename(path.with_name(f"index-{digest}.json"))
    answers = recall.recall(
        "question", path.parent, ["a", "b"], [(1, 2, 3), (4, 5, 6)], lambda _: "answer", path.parent
    )
    assert all(isinstance(answer, str) for answer in answers)


def read_sample(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(named, "files", lambda _: path.parent.parent)
        images, labels, _ = named.read_sample("train")
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fuzz") / "run"
    return stepclr.pretrain("sample:train", out, progress=False, **{**SETTINGS, "epochs": 1}).folder


@pytest.fixture(scope="module")
def formats(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Format]:
    folder = tmp_path_factory.mktemp("valid")
    encoder = stepclr.load_encoder(run)
    save_classifier(stepclr.Classifier(encoder, ["cat", "dog"], "32-16", 1), folder / "classifier.safetensors")
    tiny = nn.ModuleDict({"encoder": nn.Linear(3, 2), "head": nn.BatchNorm1d(2)})
    optimizer = torch.optim.AdamW(tiny.parameters())
    tiny["head"](tiny["encoder"](torch.ones(4, 3))).sum().backward()
    optimizer.step()
    save_checkpoint(folder, 3, tiny, optimizer, {"seconds": 1.0}, [])
    row = {"method": "simclr", "labels_per_class": 10, "mean": 0.5, "std": 0.1, "values": [0.4, 0.6]}
    protocol = {"classes": ["cat", "dog"], "test": {"source": "photos", "images": 10}, "labels_per_class": [10]}
    scores = json.dumps({"rows": [row, {**row, "method": "knn", "labels_per_class": "all"}], "protocol": protocol})
    sample = io.BytesIO()
    np.savez_compressed(sample, train=np.zeros((3, 28, 28), np.uint8), train_labels=np.arange(3))
    shapes = np.array([[2, 3], [0, 0], [4, 4]], "<i4").tobytes()
    header = json.dumps({"unreadable": {"1": "not an image"}}).encode()
    decoded = bytes(3 * (2 * 3 + 4 * 4)) + shapes + header + cache.TAIL.pack(len(header), cache.MARK)

    def read_checkpoint(path: Path) -> None:
        said: list[str] = []
        step, facts = load_checkpoint(path.parent, tiny, optimizer, said.append)
        assert (step, facts) == (3, {"seconds": 1.0})
        assert not said

    prepared = tmp_path_factory.mktemp("given")
    photos = prepared / "photos"
    photos.mkdir()
    for label, name in (("cat", "a.png"), ("dog", "b.jpg")):
        (photos / label).mkdir()
        (photos / label / name).write_bytes(images("JPEG" if name.endswith("jpg") else "PNG")[1])
    for suffix in (".npz", ".parquet"):
        write_embeddings(run, photos, prepared / f"index{suffix}")
    table = {"path": ["cat/a.png", "dog/b.jpg"], "label": ["x", "y"]}
    parquet.write_table(pyarrow.table(table), prepared / "labels.parquet")
    labels = ['path,label,split\ncat/a.png,x,train\ndog/b.jpg,"y, z",test\n', "path\tlabel\ndog/b.jpg\ty\n"]
    torch.save({"state_dict": encoder.body.state_dict(), "epoch": 3}, prepared / "weights.pt")

    def read_labels(path: Path) -> None:
        assert len(stepclr.open_images(photos, labels=path)) == 2

    def read_weights(path: Path) -> None:
        stepclr.build_encoder(encoder.name, encoder.stem, path, encoder.size)

    def text(name: str) -> list[bytes]:
        return [(run / name).read_bytes()]

    made = {
        "JPEG": Format(images("JPEG"), read_image, "a.jpg"),
        "PNG": Format(images("PNG"), read_image, "a.png"),
        "GIF": Format(images("GIF"), read_image, "a.gif"),
        "TIFF": Format(tiffs(), read_bands, "a.tif"),
        "zip": Format(zips(), read_archive, "a.zip"),
        "tar": Format(tars(), read_archive, "a.tar"),
        "encoder": Format(text("encoder.safetensors"), stepclr.load_encoder, "encoder.safetensors"),
        "classifier": Format(
            [(folder / "classifier.safetensors").read_bytes()], stepclr.load_classifier, "classifier.safetensors"
        ),
        "checkpoint": Format(
            [(folder / "step-00000003.safetensors").read_bytes()], read_checkpoint, "step-00000003.safetensors"
        ),
        "config.json": Format(text("config.json"), read_config, "config.json"),
        "metrics.jsonl": Format(text("metrics.jsonl"), lambda path: stepclr.Run(path.parent).metrics, "metrics.jsonl"),
        "evaluation.json": Format([scores.encode()], lambda path: compare_table([path.parent]), "evaluation.json"),
        "npz": Format([sample.getvalue()], read_sample, "sample/fashion_mnist.npz"),
        "cache": Format([decoded], read_cache, "a.pixels"),
        "cache's index": Format([json.dumps({"a": "1 2 3 answer", "b": "no"}).encode()], read_index, "index.json"),
        "weights": Format([(prepared / "weights.pt").read_bytes()], read_weights, "weights.pt"),
        "labels.csv": Format([table.encode() for table in labels], read_labels, "labels.csv"),
        "labels.parquet": Format([(prepared / "labels.parquet").read_bytes()], read_labels, "labels.parquet"),
        "index.npz": Format([(prepared / "index.npz").read_bytes()], open_index, "index.npz"),
        "index.parquet": Format([(prepared / "index.parquet").read_bytes()], open_index, "index.parquet"),
    }
    assert made.keys() == SHARES.keys()
    for name, known in made.items():
        for i, content in enumerate(known.valid):
            try_one(known, fresh(folder / name / str(i), run), content)
    return made


def fresh(folder: Path, run: Path) -> Path:
    """An empty run with its config and metrics, which one file is put into."""
    folder.mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run / name, folder)
    return folder


def try_one(known: Format, folder: Path, content: bytes) -> None:
    path = folder / known.name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with in_time():
        known.read(path)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="times are kept by a signal of Unix")
@pytest.mark.parametrize("name", SHARES)
def test_altered_files(
    name: str, run: Path, formats: dict[str, Format], watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = formats[name]
    monkeypatch.setenv("STEPCLR_CACHE", str(tmp_path / "cache"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = {"read": 0, "refused": 0}
    watch.inside = str(tmp_path)

    @settings(
        max_examples=-(-IN_ALL * SHARES[name] // sum(SHARES.values())),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(st.integers(0, 99), st.lists(alterations(), min_size=1, max_size=4), st.booleans())
    def read(which: int, changes: list[Callable[[bytearray], None]], mend: bool) -> None:
        content = bytearray(known.valid[which % len(known.valid)])
        for change in changes:
            change(content)
        altered = bytes(content)
        if mend and name == "PNG":
            altered = with_right_sums(altered)
        elif mend and known.name.endswith(".safetensors"):
            altered = with_right_length(altered, known.valid[0])
        shutil.rmtree(tmp_path)
        watch.seen = []
        said: list[str] = []
        try:
            try_one(known, fresh(tmp_path, run), altered)
            counts["read"] += 1
        except stepclr.StepclrError as error:
            counts["refused"] += 1
            said.append(str(error))
        finally:
            seen, watch.seen = watch.seen, None
        assert not seen
        assert not [text for text in said if JARGON.search(text) or "\n" in text]

    read()
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 2**20
    print(f"{name}: {counts['read']:,} read, {counts['refused']:,} refused, {more:.2f} GiB more")
    assert more < GIB
