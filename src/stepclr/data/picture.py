"""One picture of any common format -> upright RGB, uint8 `[3, H, W]`: how it is read, and why it cannot be."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError, features
from PIL import __version__ as pillow
from torch import Tensor

from stepclr.errors import StepclrError

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k"}
# Named one by one: among Pillow's other formats are some that start programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
GAP = 2.0  # a cheap first reduction (JPEG's own, or a box) leaves at least this factor to the antialiased one
# All that decides about the pixels besides a file's bytes. Raise the number with any change in this module.
DECODER = f"1, Pillow {pillow}, jpeg {features.version('libjpeg_turbo') or features.version('jpg')}"
PILLOW = re.compile(r"PIL\.")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {TURNS[5], TURNS[6], TURNS[7], TURNS[8]}


File = io.BytesIO | io.BufferedReader  # open for reading


class UnreadableError(StepclrError):
    """A picture that cannot be read; the message is the reason alone, without the picture's name."""


def upright_rgb(picture: bytes | Image.Image) -> UInt8[Tensor, "3 h w"]:
    """A picture as upright RGB, uint8 `[3, H, W]` in 0..255, from a file's bytes or a PIL picture.

    Grey, palette and CMYK become RGB, 16-bit grey is divided by 257, what is transparent is laid over white, the
    EXIF orientation is applied, and of an animation the first frame is taken.

    Raises `StepclrError` if it is no picture, is cut short, or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if isinstance(picture, bytes):
        return decode(io.BytesIO(picture))
    with reasons():
        _silence_pillow()
        _check_pixels(picture)
        return _tensor(_upright(_rgb(picture), _turn(picture)))


def decode(file: File, short_side: int | None = None) -> UInt8[Tensor, "3 h w"]:
    """`upright_rgb` of an open file, its short side, if above `short_side` pixels, reduced to that, antialiased."""
    with reasons(), _opened(file) as image:
        size = reduced_size(image.width, image.height, short_side)
        box = (0.0, 0.0, float(image.width), float(image.height))
        if size != image.size and (draft := image.draft(None, (int(GAP * size[0]), int(GAP * size[1])))):
            box = draft[1]  # the whole picture, in the pixels of JPEG's own reduction
        rgb, turn = _rgb(image), _turn(image)
        if size != image.size:
            rgb = rgb.resize(size, Image.Resampling.BICUBIC, box, reducing_gap=GAP)
        return _tensor(_upright(rgb, turn))


def size_of(file: File) -> tuple[int, int]:
    """(height, width) in pixels, upright, from the header of an open file; its pixels may yet prove broken."""
    with reasons(), _opened(file) as image:
        # Of a PNG Pillow would decode all in search of EXIF data behind the pixels; a TIFF's size is upright already.
        as_is = image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info)
        sideways = not as_is and _turn(image) in SIDEWAYS
        return (image.width, image.height) if sideways else (image.height, image.width)


def reduced_size(a: int, b: int, short_side: int | None) -> tuple[int, int]:
    """Two sides in pixels, in either order, the shorter one reduced to `short_side` if above it."""
    shorter = min(a, b)
    if short_side is None or shorter <= short_side:
        return a, b
    return round(a * short_side / shorter), round(b * short_side / shorter)


def reduced(picture: UInt8[Tensor, "3 h w"], short_side: int | None) -> UInt8[Tensor, "3 h2 w2"]:
    """A decoded picture, its short side, if above `short_side` pixels, reduced to that, antialiased."""
    height, width = picture.shape[1:]
    size = reduced_size(width, height, short_side)
    if size == (width, height):
        return picture
    image = Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))
    return _tensor(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=GAP))


@contextmanager
def reasons() -> Iterator[None]:
    """Turns whatever Pillow's readers raise on a broken file into one `UnreadableError` that says why."""
    try:
        yield
    except (UnreadableError, MemoryError):
        raise
    except UnidentifiedImageError:  # its own message names a memory address
        raise UnreadableError("not a picture in a known format") from None
    except OSError as error:
        raise UnreadableError(" ".join((error.strerror or str(error)).split())) from error
    except Exception as error:
        raise UnreadableError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


@contextmanager
def _opened(file: File) -> Iterator[Image.Image]:
    _silence_pillow()
    with Image.open(file, formats=_formats()) as image:
        _check_pixels(image)
        yield image


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _silence_pillow() -> None:
    """Pillow's warnings about single files say nothing that the list of unreadable pictures does not say better.

    The filter stays: `warnings.catch_warnings` in several threads at once would restore the wrong ones.
    """
    if not warnings.filters or warnings.filters[0][3] != PILLOW:
        warnings.filterwarnings("ignore", module=PILLOW.pattern)


def _check_pixels(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS  # Pillow itself only warns up to twice this
    if limit and image.width * image.height > limit:
        raise UnreadableError(f"{image.width} x {image.height}: above the limit of {limit:,} pixels")


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        image = image.convert("L")
    elif image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF data does not make a picture unreadable
        return None


def _upright(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
