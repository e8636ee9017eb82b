"""One image of any common format -> upright uint8 `[C, H, W]`, RGB unless said otherwise, or why it cannot be read."""

import io
from functools import partial
from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, features
from PIL import __version__ as pillow
from torch import Tensor

from stepclr.data.bands import IMAGECODECS, TIFFFILE, array_size, is_array, is_stack, read_array, read_stack, stack_size
from stepclr.data.formats import SUFFIX_OF, File, check_size, has_heif, opened, reasons, silence_pillow
from stepclr.data.levels import bands, is_deep, rgb
from stepclr.data.reading import AS_DECLARED, RGB, Reading

# JPEG's own reduction (by 2, 4 or 8: fewer cosines, less to decode) leaves at least this factor to the antialiased one.
# Real images then differ from a full decoding by 37 dB or more; without a margin it would be 31. If the reduction does
# not divide a side, the last, incomplete pixel counts as a whole one.
MIN_RESIZE = 4 / 3
LARGE = 50_000_000  # pixels; resizing more of them takes several times the memory of the image itself
JPEG = features.version("libjpeg_turbo") or features.version("jpg")
HEIF = version("pillow-heif") if has_heif() else None
# What determines the pixels besides a file's bytes and its `Reading`. Raise the number with any change in this module,
# in formats.py or in levels.py.
DECODER = f"5, Pillow {pillow}, jpeg {JPEG}, heif {HEIF}, torch {torch.__version__}"
TURNS = {2: [-1], 3: [-2, -1], 4: [-2], 5: [], 6: [-1], 7: [-2, -1], 8: [-2]}  # EXIF orientation -> axes to mirror
SIDEWAYS = {5, 6, 7, 8}  # and rows and columns change places before that


def upright_rgb(image: bytes | Image.Image, reading: Reading = AS_DECLARED) -> UInt8[Tensor, "c h w"]:
    """An image as upright RGB, uint8 `[3, H, W]` in 0..255, from a file's bytes or a PIL image.

    Gray, palette and CMYK images become RGB. More than 8 bits become 8 by the value range of `reading`, else by the one
    that the file declares. Transparent pixels are laid over white, or over black where white would hide the image. The
    EXIF orientation is applied, and the first frame of an animation is used.

    Raises `StepclrError` if it is not an image, is truncated, has more pixels than `reading` allows, or does not
    declare which of its numbers are black and white.
    """
    if isinstance(image, bytes):
        return decode(io.BytesIO(image), None, reading)
    return from_pil(image, reading)[0]


def from_pil(image: Image.Image, reading: Reading) -> tuple[UInt8[Tensor, "c h w"], str]:
    """`upright_rgb` of a PIL image, and a remark on what it loses or gains by it; "" if there is nothing to say.

    Where `reading` asks for other channels than RGB, its bands as they are.
    """
    with reasons():
        silence_pillow()
        check_size(image.width, image.height, reading)
        if reading.bands != RGB:
            return _upright(_planar(bands(image, reading)), _orientation(image)), ""
        pixels, remark = rgb(image, reading)
        return _upright(_planar(np.asarray(pixels)), _orientation(image)), remark


def decode(file: File, short_side: int | None = None, reading: Reading = AS_DECLARED) -> UInt8[Tensor, "c h w"]:
    """`upright_rgb` of an open file; a short side above `short_side` pixels is reduced to it, antialiased.

    The whole image is decoded, once for all its views, so that its pixels do not depend on which crops are drawn.
    """
    return decoded(file, short_side, reading)[0]


def decoded(file: File, short_side: int | None, reading: Reading) -> tuple[UInt8[Tensor, "c h w"], str]:
    """`decode`, and a remark on what the image loses or gains by it; "" if there is nothing to say."""
    with reasons():
        if reading.bands != RGB or is_array(file):
            return reduced(_bands_of(file, reading), short_side), ""

    again = partial(_reopened, file, reading)
    with reasons(), opened(file, reading) as image:
        width, height = reduced_size(image.width, image.height, short_side)
        reduce = (width, height) != image.size
        if reduce:
            image.draft(None, (int(MIN_RESIZE * width), int(MIN_RESIZE * height)))
        (pixels, remark), orientation = rgb(image, reading, again), _orientation(image)
        # Beyond LARGE, whatever else a format offers, the antialiased reduction gets no more than a draft has.
        factor = int(min(pixels.width / width, pixels.height / height) / MIN_RESIZE)
        if factor > 1 and pixels.width * pixels.height > LARGE:
            pixels = pixels.reduce(factor)
        planar = _resized(np.array(pixels), height, width) if reduce else _planar(np.asarray(pixels))
        return _upright(planar, orientation), remark


def size_of(file: File, reading: Reading = AS_DECLARED) -> tuple[int, int]:
    """(height, width) in pixels, upright, from the header of an open file; the pixels may still be unreadable."""
    with reasons():
        if is_array(file):
            return array_size(file, reading)
        if is_stack(file, reading):
            return stack_size(file, reading)
    with reasons(), opened(file, reading) as image:
        # Pillow would decode all of a PNG to find EXIF data after the pixels; a TIFF's size is already upright.
        as_is = image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info)
        sideways = not as_is and _orientation(image) in SIDEWAYS
        return (image.width, image.height) if sideways else (image.height, image.width)


def suffix_of(file: File, reading: Reading = AS_DECLARED) -> str:
    """The suffix for the format of an open file's image, such as `.jpg`."""
    if is_array(file):
        return ".npy"
    if is_stack(file, reading):
        return ".tif"
    with reasons(), opened(file, reading) as image:
        name = str(image.format)
    return SUFFIX_OF.get(name, f".{name.lower()}")


def kind_of(file: File, reading: Reading = AS_DECLARED) -> tuple[str, bool, bool]:
    """An open file's mode (Pillow's) or channels, whether the image is animated, and whether EXIF data turns it."""
    if is_array(file) or is_stack(file, reading):
        return f"{reading.bands} channels", False, False
    with reasons(), opened(file, reading) as image:
        turned = _orientation(image) in range(2, 9)
        return image.mode, bool(getattr(image, "is_animated", False)), turned


def may_be_deep(file: File, reading: Reading) -> bool:
    """Whether an open file's image may have more than 8 bits per channel, as its header says."""
    if is_array(file) or is_stack(file, reading):
        return True
    with reasons(), opened(file, reading) as image:
        return is_deep(image)


def decoder_of(reading: Reading) -> str:
    """All that determines an image besides its file's bytes and the other values of `reading`."""
    if reading.bands == RGB:
        return DECODER
    return f"{DECODER}, {reading.bands} channels, tifffile {TIFFFILE}, imagecodecs {IMAGECODECS}"


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


def reduced(image: UInt8[Tensor, "c h w"], short_side: int | None) -> UInt8[Tensor, "c h2 w2"]:
    """A decoded image; a short side above `short_side` pixels is reduced to it, antialiased."""
    height, width = reduced_size(image.shape[1], image.shape[2], short_side)
    if (height, width) == image.shape[1:]:
        return image
    return _resized(image.numpy().transpose(1, 2, 0).copy(), height, width)


def _bands_of(file: File, reading: Reading) -> UInt8[Tensor, "c h w"]:
    """An open file's bands as they are."""
    if is_array(file):
        return _planar(read_array(file, reading))
    if is_stack(file, reading):
        return _planar(read_stack(file, reading))
    with opened(file, reading) as image:
        return _upright(_planar(bands(image, reading, partial(_reopened, file, reading))), _orientation(image))


def _reopened(file: File, reading: Reading) -> ImageFile.ImageFile:
    file.seek(0)
    return opened(file, reading)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # an image with broken EXIF data can still be read
        return 1


def _resized(pixels: NDArray[np.uint8], height: int, width: int) -> Tensor:
    """Pixels `[H, W, C]` resized to `[C, height, width]`, antialiased, in integers: the same with any thread count."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return F.interpolate(image, (height, width), mode="bicubic", antialias=True)[0].contiguous()


def _planar(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _upright(image: Tensor, orientation: int) -> Tensor:
    if orientation not in TURNS:
        return image
    return (image.mT if orientation in SIDEWAYS else image).flip(TURNS[orientation]).contiguous()
