"""Which files are images: by their suffix, by their first bytes, and why one that is not read is not."""

import importlib.util
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BufferedReader, BytesIO

from PIL import Image, ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from stepclr.data.reading import MAX_CHANNELS, RGB, Reading
from stepclr.errors import StepclrError, fault_of

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k"}
HEIF_SUFFIXES = {".heic", ".heif", ".hif"}
HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
# Named one by one: among Pillow's other formats are some that start programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
SUFFIX_OF = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2", "HEIF": ".heic"}  # else the format's own name
HEAD = 16  # bytes, by which a format is known
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ARRAY_HEAD = b"\x93NUMPY"  # of a .npy
NEEDS_HEIF = "HEIC needs the package pillow-heif: pip install 'stepclr[heic]'"
OTHERS = {ARRAY_HEAD: "a NumPy array", b"%PDF": "a PDF", b"PK\3\4": "a zip", b"<svg": "an SVG", b"<?xml": "XML"}
PILLOW = re.compile(r"PIL\.")
SAMPLE_FORMATS = {1: "whole numbers", 2: "signed whole numbers", 3: "floating-point numbers"}
BITS, SAMPLES, SAMPLE_FORMAT = 258, 277, 339  # tags of TIFF

File = BytesIO | BufferedReader  # open for reading


class UnreadableError(StepclrError):
    """An image that cannot be read; the message is the reason alone, without the image's name.

    `fault`: the message without the `option` that would help, for commands that do not have it.
    """

    def __init__(self, fault: str, option: str = "") -> None:
        super().__init__(f"{fault}; {option}" if option else fault)
        self.fault = fault


class UnsupportedError(UnreadableError):
    """An image with which nothing is wrong, of a kind that is not read; the message says what helps."""


class PassingError(UnreadableError):
    """An image whose file may be sound: what keeps it from being read, such as a disk or a network, may pass."""


class DamagedError(StepclrError):
    """A shard that does not match its index or cannot be fetched: unlike one image, a reason to stop."""


def has_heif() -> bool:
    """Whether the package pillow-heif, which reads HEIC, is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def image_suffixes() -> set[str]:
    """The suffixes of the image files that can be read here."""
    return SUFFIXES | HEIF_SUFFIXES if has_heif() else SUFFIXES


def format_of(head: bytes) -> str | None:
    """The image format that a file's first HEAD bytes announce; None if they announce none."""
    if head.startswith(b"BM") and head[6:10] != bytes(4):
        return None  # a text may begin like a BMP, or like a PPM
    if head.startswith(b"P") and not re.match(rb"P.\s+[\d#]", head):
        return None
    for name in _formats():
        accept = Image.OPEN[name][1]
        if accept is not None and accept(head) is True:
            return name
    return "HEIF" if _is_heif(head) else None


def opened(file: File, reading: Reading) -> ImageFile.ImageFile:
    """An image whose header is read, by Pillow, in one of FORMATS or HEIF; to be closed.

    Raises `UnreadableError` for any other file, and for more pixels than `reading` allows.
    """
    silence_pillow()
    image = _open(file)
    check_size(image.width, image.height, reading)
    return image


def check_size(width: int, height: int, reading: Reading) -> None:
    """Raise `UnsupportedError` if an image of this size has more pixels than `reading` allows."""
    pixels = width * height
    if pixels > reading.limit:
        raise UnsupportedError(
            f"{width} x {height}: above the limit of {reading.limit:,} pixels; --max-pixels {pixels} reads it"
        )


def check_bands(number: int, reading: Reading) -> None:
    """Raise `UnsupportedError` if an image of this number of bands is not what `reading` asks for."""
    if number == reading.bands:
        return
    fault = f"{number} band{'s' * (number > 1)}, not {reading.bands}"
    if number > MAX_CHANNELS:
        raise UnsupportedError(f"{fault}; at most {MAX_CHANNELS} are read")
    raise UnsupportedError(fault, f"--channels {number} reads such images")


def silence_pillow() -> None:
    """Ignore Pillow's warnings about single files: the list of unreadable images says the same, and more clearly.

    The filter stays, because `warnings.catch_warnings` in several threads at once would restore the wrong filters.
    """
    if not warnings.filters or warnings.filters[0][3] != PILLOW:
        warnings.filterwarnings("ignore", module=PILLOW.pattern)


def _open(file: File) -> ImageFile.ImageFile:
    """Open an image as `Image.open` does, without its limit of pixels, which would hold for the whole process."""
    head = file.read(HEAD)
    for name in _formats():
        factory, accept = Image.OPEN[name]
        if accept is None or accept(head) is True:
            file.seek(0)
            try:
                return factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # another format may begin with the same bytes
    if _is_heif(head) and has_heif():
        from pillow_heif import HeifImageFile

        file.seek(0)
        return HeifImageFile(file, "")  # type: ignore[no-untyped-call]
    raise _unknown(head, file)


def _unknown(head: bytes, file: File) -> UnreadableError:
    """The error for a file that is not opened: what it is, as far as its first bytes tell."""
    if _is_heif(head):
        return UnsupportedError(NEEDS_HEIF)
    if head[:4] in TIFF_HEADS:
        return _unknown_tiff(file)
    for start, name in OTHERS.items():
        if head.startswith(start):
            return UnsupportedError(f"not an image in a known format but {name}")
    return UnreadableError("not an image in a known format")


def _unknown_tiff(file: File) -> UnreadableError:
    """The error for a TIFF that Pillow does not open: which bands it has."""
    try:
        file.seek(0)
        big = file.read(4)[2:3] == b"+"
        file.seek(0)
        tags = ImageFileDirectory_v2(file.read(16 if big else 8))
        file.seek(tags.next)
        tags.load(file)
        bits, bands = int(tags[BITS][0]), int(tags.get(SAMPLES, 1))
        kind = SAMPLE_FORMATS.get(tags.get(SAMPLE_FORMAT, (1,))[0], "numbers of an unknown kind")
    except Exception:  # a hostile file raises what the parser raises
        return UnreadableError("not an image in a known format: a TIFF whose description is broken")
    option = f"--channels {bands} reads all bands" if bands != RGB and 1 < bands <= MAX_CHANNELS else ""
    return UnsupportedError(
        f"a TIFF of {bands} band{'s' * (bands > 1)} of {bits}-bit {kind}; what is read is RGB of 8 or 16 bits, "
        "and one band of 8, 16 or 32",
        option,
    )


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def reasons(of_file: bool = True) -> Iterator[None]:
    """Turn whatever readers raise for a broken file into one `UnreadableError` that says why.

    of_file: False where the error comes from the user's own code, whose message is kept. The message of a parser
    tells a user only that the file is damaged.
    """
    try:
        yield
    except (UnreadableError, DamagedError, MemoryError):
        raise
    except Exception as error:
        words = " ".join(str(error).split())
        if isinstance(error, OSError) and error.strerror:
            raise PassingError(error.strerror) from error
        if not of_file:
            words = f"{type(error).__name__}: {words}"
        elif isinstance(error, RecursionError) or not isinstance(error, RuntimeError):  # these say what a zip lacks
            words = fault_of(error, explained=True)
        raise UnreadableError(words) from error
