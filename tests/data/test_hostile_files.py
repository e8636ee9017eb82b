"""Images, names and archives that somebody made to do harm, through the command line: nothing but a list of them."""

import csv
import os
import shutil
import stat
import struct
import subprocess
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import photos_in
from touches import End, Forks

import stepclr

MORE = 1_000  # MiB; what hostile images may cost: of up to 89 million pixels one is read, of 10^10 none
IMAGES = 16
SMALL = 20_000_000  # bytes; for a bomb
TINY = ["--encoder", "test_resnet", "--epochs", "1", "--batch-size", "8", "--size", "32", "--head", "32-16"]
NAMES = [
    b"two\nlines.png",
    b"back\rto the start.png",
    b"\x1b[2Jterminal.png",
    b"[red]markup[bold].png",
    b"[[]].png",
    b"<img src=x onerror=alert(1)>.png",
    b"--out.png",
    b"-.png",
    b"%s{}$(id)`id`.png",
    b"a;b,c\"d'e.png",
    b"\xff\xfe.png",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.png".encode(),
    b"x" * 251 + b".png",
]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, pixels: bytes | None = None) -> bytes:
    """A PNG of any declared size; black, with all of its pixels unless others are given."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(height * (3 * width + 1)) if pixels is None else pixels))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + chunk(b"IEND", b"")


def squeezed(size: int) -> bytes:
    """A few kilobytes that unpack to so many zeros."""
    return zlib.compress(bytes(size), 9)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos_in(tmp_path_factory.mktemp("plain") / "photos", IMAGES)


@pytest.fixture
def photos(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "photos"))


@pytest.fixture(scope="module")
def usual(forked: Forks, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, End]:
    """The four commands on images that are none of this; and the run, for `embed`."""
    return commands(forked, plain, tmp_path_factory.mktemp("usual"))


def commands(forked: Forks, source: Path, out: Path) -> dict[str, End]:
    """What becomes of a source in every command that reads one."""
    spoken: dict[str, list[str | Path]] = {
        "steps": ["steps", source, "--encoder", "test_resnet"],
        "views": ["views", source, "--out", out / "views.png", "--rows", "100", "--pairs", "1", "--size", "64"],
        "pretrain": ["pretrain", source, "--out", out / "run", *TINY],
        "embed": ["embed", out / "run", source, "--out", out / "h.npz"],
    }
    return {name: forked.run(*words, under=out) for name, words in spoken.items()}


def check(ends: dict[str, End], usual: dict[str, End]) -> None:
    for name, end in ends.items():
        assert end.code == 0, (name, end.said)
        assert "Traceback" not in end.said, end.said
        assert end.mib < usual[name].mib + MORE, (name, end.mib, usual[name].mib)


def skipped(path: Path) -> dict[str, str]:
    with path.open(newline="", errors="surrogateescape") as file:
        rows = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    return {path: reason for path, reason in rows.items() if not reason.startswith("ignored: ")}


def test_images_made_to_do_harm(forked: Forks, photos: Path, usual: dict[str, End], tmp_path: Path) -> None:
    """Those that can be read are used, be they a pixel or a strip; the others are listed with a reason."""
    odd = {
        "one pixel.png": png(1, 1),
        "strip 1.png": png(30_000, 1),
        "strip 8.png": png(8, 30_000),
    }
    broken = {
        "no bytes.png": b"",
        "one byte.jpg": b"\xff",
        "bomb.png": png(100_000, 100_000, pixels=bytes(10**6)),
        "bomb below the limit.png": png(9_000, 9_000, pixels=bytes(10**5)),
        "bomb in a text.png": png(28, 28, chunk(b"zTXt", b"a\0\0" + squeezed(2 * 10**8))),
        "bomb in a profile.png": png(28, 28, chunk(b"iCCP", b"a\0\0" + squeezed(2 * 10**8))),
        "no pixels.png": png(0, 0, pixels=b""),
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        "page.png": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    }
    for name, content in {**odd, **broken}.items():
        (photos / name).write_bytes(content)
    Image.new("RGB", (30_000, 8), "red").save(photos / "strip 8.jpg")
    check(commands(forked, photos, tmp_path), usual)
    for listed in (tmp_path / "run" / "skipped.csv", tmp_path / "h.skipped.csv"):
        found = skipped(listed)
        assert found.keys() == broken.keys()
        assert all(reason and "\n" not in reason for reason in found.values())
    embedded = np.load(tmp_path / "h.npz", allow_pickle=False)
    assert {*odd, "strip 8.jpg"} <= set(embedded["paths"].tolist())
    assert np.isfinite(embedded["embeddings"]).all()


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000), (1, 1)])
def test_a_line_of_pixels_takes_no_more_memory_than_an_image(size: tuple[int, int]) -> None:
    """At 224 px, enlarged as it is, it would take 24 GB; the middle is what the center crop shows."""
    encoder = stepclr.build_encoder("test_resnet", size=224)
    image = np.zeros((*size, 3), np.uint8)
    image[size[0] // 2, size[1] // 2] = 255
    x = encoder.preprocess(image)
    assert x.shape == (1, 3, 224, 224)
    assert x.max() > 0.9


def test_images_of_one_pixel_alone(forked: Forks, usual: dict[str, End], tmp_path: Path) -> None:
    """At a size of one's own they can be used; views of their own side could not be drawn."""
    (tmp_path / "photos").mkdir()
    for i in range(IMAGES):
        Image.new("RGB", (1, 1), (i, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    ends = commands(forked, tmp_path / "photos", tmp_path)
    steps = ends.pop("steps")  # it has no --size
    assert steps.code == 2
    assert steps.said.endswith("\nstepclr: size must lie between 4 and 4096, not 1\n")
    check(ends, usual)


def test_names_made_to_do_harm(forked: Forks, photos: Path, usual: dict[str, End], tmp_path: Path) -> None:
    """Each name twice: as an image's, and as a class's that holds one that cannot be read."""
    named = {os.fsdecode(name if b"." in name else name + b".png") for name in NAMES}
    for name in named:
        shutil.copy(photos / "00.png", photos / name)
        inside = photos / name.removesuffix(".png") / "broken.png"
        inside.parent.mkdir()
        inside.write_bytes(b"no image")
    before = sorted(tmp_path.rglob("*"))
    check(commands(forked, photos, tmp_path), usual)
    new = {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - set(before)}
    assert new == {"run", "views.png", "h.npz", "h.skipped.csv", "cache"}
    found = skipped(tmp_path / "run" / "skipped.csv")
    assert found.keys() == {f"{name.removesuffix('.png')}/broken.png" for name in named}
    paths = set(np.load(tmp_path / "h.npz", allow_pickle=False)["paths"].tolist())
    assert named <= paths


@pytest.mark.parametrize("readable", [0, IMAGES])
def test_what_is_said_of_a_name_leaves_the_terminal_alone(
    readable: int, forked: Forks, photos: Path, tmp_path: Path
) -> None:
    """A name may hold the bytes that clear a screen, or a second line that lies; no message passes them on."""
    for path in list(photos.iterdir())[readable:]:
        path.unlink()
    (photos / "\x1b[2J\nstepclr: all is well.png").write_bytes(b"no image")
    end = forked.run("pretrain", photos, "--out", tmp_path / "run", *TINY, under=tmp_path)
    assert end.code == (0 if readable else 2)
    assert "\x1b" not in end.said
    lines = [line for line in end.said.splitlines() if "all is well" in line]
    assert len(lines) == 1
    assert "\\x1b[2J\\nstepclr: all is well.png: not an image" in lines[0]


def test_links_in_circles(forked: Forks, photos: Path, usual: dict[str, End], tmp_path: Path) -> None:
    (photos / "up").symlink_to(photos)
    (photos / "there").symlink_to(photos / "back")
    (photos / "back").symlink_to(photos / "there")
    (photos / "itself.png").symlink_to(photos / "itself.png")
    (photos / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(photos / "pipe.png")
    check(commands(forked, photos, tmp_path), usual)
    assert len(np.load(tmp_path / "h.npz", allow_pickle=False)["paths"]) == IMAGES


def test_a_source_that_may_only_be_read(forked: Forks, photos: Path, usual: dict[str, End], tmp_path: Path) -> None:
    """Nothing in it changes; as root, who may write anyway, on a file system mounted for reading."""
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in photos.iterdir()}
    photos.chmod(stat.S_IRUSR | stat.S_IXUSR)
    mounting = ["mount", "--bind", str(photos), str(photos)]
    bound = not os.geteuid() and not subprocess.run(mounting, capture_output=True, check=False).returncode
    try:
        if bound:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(photos)], check=True)
        check(commands(forked, photos, tmp_path), usual)
        assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in photos.iterdir()} == before
    finally:
        if bound:
            subprocess.run(["umount", str(photos)], check=True)
        photos.chmod(0o755)


def test_a_zip_made_to_do_harm(forked: Forks, photos: Path, usual: dict[str, End], tmp_path: Path) -> None:
    """What leads out of it is listed, and nothing is unpacked; bombs, links and locks are no images."""
    image = (photos / "00.png").read_bytes()
    file = tmp_path / "in" / "photos.zip"
    file.parent.mkdir()
    outside = ["../up.png", "/root.png", "a/../../b.png", "..\\windows.png"]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(photos.iterdir()):
            archive.write(path, path.name)
        for name in [*outside, "C:\\drive.png", "C:/drive 2.png"]:
            archive.writestr(name, image)
        archive.writestr("bomb.png", bytes(3 * 10**8))  # 290 KB
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("inner.zip", file.name)
        archive.writestr("locked.png", image)
    content = file.read_bytes()
    at = content.rindex(b"locked.png") - 46  # of its entry in the directory at the end
    content = content[: at + 8] + b"\1" + content[at + 9 :]  # "encrypted"
    file.write_bytes(content)
    before = sorted(path for path in tmp_path.rglob("*"))
    check(commands(forked, file, tmp_path), usual)
    new = {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - set(before)}
    assert new == {"run", "views.png", "h.npz", "h.skipped.csv", "cache"}
    found = skipped(tmp_path / "run" / "skipped.csv")
    leads_out = {name.replace("\\", "/") for name in outside}
    assert found.keys() == leads_out | {"bomb.png", "link.png", "locked.png"}
    assert all("leads out" in found[name] for name in leads_out)
    assert "encrypted" in found["locked.png"]


def test_a_zip_that_says_less_than_it_holds(photos: Path, tmp_path: Path) -> None:
    """A member is unpacked up to the size that the directory gives, and no further."""
    file = tmp_path / "photos.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(photos / "00.png", "good.png")
        archive.writestr("bomb.png", bytes(SMALL))
    content = bytearray(file.read_bytes())
    at = content.rindex(b"bomb.png") - 46
    content[at + 24 : at + 28] = struct.pack("<I", 1_000)
    file.write_bytes(content)
    images = stepclr.open_images(file)
    tracemalloc.start()
    _, kept = images.read_readable([0, 1])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < SMALL / 2
    assert [images.names[i] for i in kept] == ["good.png"]
    assert [name for name, _ in images.skipped] == ["bomb.png"]


@pytest.mark.parametrize(
    ("at", "content"),
    [(6, struct.pack("<H", 117)), (28, struct.pack("<H", 0)), (30, struct.pack("<H", 65_535)), (42, b"\xff" * 4)],
    ids=["from version 11.7 on", "no name", "more behind the name than there is", "a place outside"],
)
def test_a_zip_whose_directory_lies(at: int, content: bytes, photos: Path, tmp_path: Path) -> None:
    """One line, or the images that can be read; zipfile's own errors are of many kinds."""
    file = tmp_path / "photos.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("00.png", "01.png"):
            archive.write(photos / name, name)
    zipped = bytearray(file.read_bytes())
    entry = zipped.rindex(b"PK\1\2") + at
    zipped[entry : entry + len(content)] = content
    file.write_bytes(zipped)
    try:
        images = stepclr.open_images(file)
    except stepclr.StepclrError as error:
        assert "cannot be read as a zip" in str(error)  # noqa: PT017
    else:
        assert 0 in images.read_readable(range(len(images)))[1]
