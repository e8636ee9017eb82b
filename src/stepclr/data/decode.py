"""One image of any common format -> upright RGB, uint8 `[3, H, W]`, or the reason why it cannot be read."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError, features
from PIL import __version__ as pillow
from torch import Tensor

from stepclr.errors import StepclrError

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k"}
# Named one by one: among Pillow's other formats are some that start programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
SUFFIX_OF = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2"}  # else the format's own name
# JPEG's own reduction (by 2, 4 or 8: fewer cosines, less to decode) leaves at least this factor to the antialiased one.
# Real images then differ from a full decoding by 37 dB or more; without a margin it would be 31. If the reduction does
# not divide a side, the last, incomplete pixel counts as a whole one.
MIN_RESIZE = 4 / 3
JPEG = features.version("libjpeg_turbo") or features.version("jpg")
# All that determines the pixels besides a file's bytes. Raise the number with any change in this module.
# 2: torch resizes, 3 to 5 times as fast as Pillow and within 2 of 255 levels of it; MIN_RESIZE was 2.
DECODER = f"2, Pillow {pillow}, jpeg {JPEG}, torch {torch.__version__}"
PILLOW = re.compile(r"PIL\.")
TURNS = {2: [-1], 3: [-2, -1], 4: [-2], 5: [], 6: [-1], 7: [-2, -1], 8: [-2]}  # EXIF orientation -> axes to mirror
SIDEWAYS = {5, 6, 7, 8}  # and rows and columns change places before that

File = io.BytesIO | io.BufferedReader  # open for reading


class UnreadableError(StepclrError):
    """An image that cannot be read; the message is the reason alone, without the image's name."""


class DamagedError(StepclrError):
    """A shard that does not match its index or cannot be fetched: unlike one image, a reason to stop."""


def upright_rgb(image: bytes | Image.Image) -> UInt8[Tensor, "3 h w"]:
    """An image as upright RGB, uint8 `[3, H, W]` in 0..255, from a file's bytes or a PIL image.

    Gray, palette and CMYK images become RGB, 16-bit gray is divided by 257, transparent pixels are laid over white,
    the EXIF orientation is applied, and the first frame of an animation is used.

    Raises `StepclrError` if it is not an image, is truncated, or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if isinstance(image, bytes):
        return decode(io.BytesIO(image))
    with reasons():
        _silence_pillow()
        _check_pixels(image)
        return _upright(_planar(np.asarray(_rgb(image))), _orientation(image))


def decode(file: File, short_side: int | None = None) -> UInt8[Tensor, "3 h w"]:
    """`upright_rgb` of an open file; a short side above `short_side` pixels is reduced to it, antialiased.

    The whole image is decoded, once for all its views, so that its pixels do not depend on which crops are drawn.
    """
    with reasons(), opened(file) as image:
        width, height = reduced_size(image.width, image.height, short_side)
        reduce = (width, height) != image.size
        if reduce:
            image.draft(None, (int(MIN_RESIZE * width), int(MIN_RESIZE * height)))
        rgb, orientation = _rgb(image), _orientation(image)
        return _upright(_resized(np.array(rgb), height, width) if reduce else _planar(np.asarray(rgb)), orientation)


def size_of(file: File) -> tuple[int, int]:
    """(height, width) in pixels, upright, from the header of an open file; the pixels may still be unreadable."""
    with reasons(), opened(file) as image:
        # Pillow would decode all of a PNG to find EXIF data after the pixels; a TIFF's size is already upright.
        as_is = image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info)
        sideways = not as_is and _orientation(image) in SIDEWAYS
        return (image.width, image.height) if sideways else (image.height, image.width)


def suffix_of(file: File) -> str:
    """The suffix for the format of an open file's image, such as `.jpg`."""
    with reasons(), opened(file) as image:
        name = str(image.format)
    return SUFFIX_OF.get(name, f".{name.lower()}")


def source_side(view_size: int) -> int:
    """The short side, in pixels, to which images are decoded for views of this size: twice the size.

    A random crop covers down to a few percent of an image's area and is enlarged to the view. With twice the side a
    crop of a quarter of the area is still rendered from as many pixels as the view has, and a set takes a bounded
    amount of memory. Training, evaluation and search must agree: h depends on it.
    """
    return 2 * view_size


def reduced_size(a: int, b: int, short_side: int | None) -> tuple[int, int]:
    """Two sides in pixels, in either order, reduced so that the shorter one is at most `short_side`."""
    shorter = min(a, b)
    if short_side is None or shorter <= short_side:
        return a, b
    return round(a * short_side / shorter), round(b * short_side / shorter)


def reduced_sizes(sizes: Int64[np.ndarray, "n 2"], short_side: int | None) -> Int64[np.ndarray, "n 2"]:
    """`reduced_size` of each."""
    if short_side is None:
        return sizes
    shorter = sizes.min(axis=1, keepdims=True)
    return np.where(shorter <= short_side, sizes, np.rint(sizes * short_side / np.maximum(shorter, 1)).astype(np.int64))


def reduced(image: UInt8[Tensor, "3 h w"], short_side: int | None) -> UInt8[Tensor, "3 h2 w2"]:
    """A decoded image; a short side above `short_side` pixels is reduced to it, antialiased."""
    height, width = reduced_size(image.shape[1], image.shape[2], short_side)
    if (height, width) == image.shape[1:]:
        return image
    return _resized(image.numpy().transpose(1, 2, 0).copy(), height, width)


@contextmanager
def reasons() -> Iterator[None]:
    """Turn whatever Pillow's readers raise for a broken file into one `UnreadableError` that says why."""
    try:
        yield
    except (UnreadableError, DamagedError, MemoryError):
        raise
    except UnidentifiedImageError:  # its own message names a memory address
        raise UnreadableError("not an image in a known format") from None
    except OSError as error:
        raise UnreadableError(" ".join((error.strerror or str(error)).split())) from error
    except Exception as error:
        raise UnreadableError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


@contextmanager
def opened(file: File) -> Iterator[Image.Image]:
    """An image's header, read by Pillow, in one of FORMATS and with no more pixels than are allowed."""
    _silence_pillow()
    with Image.open(file, formats=_formats()) as image:
        _check_pixels(image)
        yield image


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _silence_pillow() -> None:
    """Ignore Pillow's warnings about single files: the list of unreadable images says the same, and more clearly.

    The filter stays, because `warnings.catch_warnings` in several threads at once would restore the wrong filters.
    """
    if not warnings.filters or warnings.filters[0][3] != PILLOW:
        warnings.filterwarnings("ignore", module=PILLOW.pattern)


def _check_pixels(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS  # Pillow itself only warns up to twice this
    if limit and image.width * image.height > limit:
        raise UnreadableError(f"{image.width} x {image.height}: above the limit of {limit:,} pixels")


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow's own conversion would clip at 255
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        image = image.convert("L")
    elif image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # an image with broken EXIF data can still be read
        return 1


def _resized(pixels: NDArray[np.uint8], height: int, width: int) -> Tensor:
    """Pixels `[H, W, 3]` resized to `[3, height, width]`, antialiased, in integers: the same with any thread count."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return F.interpolate(image, (height, width), mode="bicubic", antialias=True)[0].contiguous()


def _planar(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _upright(image: Tensor, orientation: int) -> Tensor:
    if orientation not in TURNS:
        return image
    return (image.mT if orientation in SIDEWAYS else image).flip(TURNS[orientation]).contiguous()
