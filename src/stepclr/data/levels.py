"""From an image's own numbers to 8 bits: which number is black and which white, and what lies behind transparency."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageStat

from stepclr.data.formats import BITS, SAMPLE_FORMAT, SAMPLES, UnsupportedError, check_bands
from stepclr.data.reading import Range, Reading

BYTE = 255
SIXTEEN = 2**16 - 1
DIM = 2**14 - 1  # numbers of 16 bits that all lie below probably have 10, 12 or 14: as 16 bits they would be black
STRIP = 2**22  # numbers that are scaled at a time
FAINT = 8.0  # levels; a smaller standard deviation over a background is hardly a drawing
PHOTOMETRIC, PLANES, EXTRA_SAMPLES = 262, 284, 338  # tags of TIFF
WHITE_IS_ZERO, SEPARATE = 0, 2  # values of the first two
LOWEST, HIGHEST = (340, 280), (341, 281)  # tags of TIFF for the smallest and the largest number
HALVES = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}  # the byte order that swaps both bytes
NEEDS = "needs --value-range LOW,HIGH (in Python value_range), the numbers of black and white:"
ON_BLACK = "a light drawing on transparency, laid over black"
FIRST_FRAME = "the first of several frames or pages"
FRAMED = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")  # a phone's JPEG and HEIC have further images for other purposes
BANDS_LEFT = "only red, green and blue of its bands"
SHOWN_AS = {"1": "L", "P": "RGB", "PA": "RGBA"}  # modes whose numbers are not levels, and what they become

Again = Callable[[], ImageFile.ImageFile]  # opens the same image once more


def rgb(image: Image.Image, reading: Reading, again: Again | None = None) -> tuple[Image.Image, str]:
    """An image as 8-bit RGB, and what that loses or gains beyond what is usual ("" if nothing).

    again: opens the image's file once more; without it, 16-bit colors have only their upper byte.

    Raises `UnsupportedError` where it is not known which numbers are black and white.
    """
    _check_layout(image)
    wide, lacks_meaning = _is_wide(image), _lacks_meaning(image)
    remarks = []
    if image.format in FRAMED and getattr(image, "is_animated", False):
        remarks.append(FIRST_FRAME)
    if lacks_meaning or 0 in _tags(image).get(EXTRA_SAMPLES, ()):
        remarks.append(BANDS_LEFT)
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_one_band(image, reading)).convert("RGB"), "; ".join(remarks)
    if wide:
        image = _wide(image, reading, again, [band for band in image.getbands() if band != "A"])
    if lacks_meaning:  # the fourth band may be transparency, or near infrared
        image = image.convert("RGB")
    if image.mode != "RGB" and image.has_transparency_data:
        image, over = _over_background(image)
        if over:
            remarks.append(over)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image, "; ".join(remarks)


def bands(image: Image.Image, reading: Reading, again: Again | None = None) -> UInt8[np.ndarray, "h w c"]:
    """The bands of an image as they are, in their order, 8 bits each; `again` is that of `rgb`.

    Raises `UnsupportedError` where they are not as many as `reading` asks for, and as `rgb` does.
    """
    _check_layout(image)
    shown = len(SHOWN_AS.get(image.mode, image.getbands()))
    check_bands(max(shown, _tags(image).get(SAMPLES, 1)), reading)  # of some TIFFs, Pillow leaves bands out
    wide = _is_wide(image)
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        return _one_band(image, reading)[..., None]
    if wide:
        image = _wide(image, reading, again, image.getbands())
    levels = np.asarray(image.convert(SHOWN_AS[image.mode]) if image.mode in SHOWN_AS else image)
    return levels.reshape(image.height, image.width, -1)


def levels_of(numbers: NDArray[Any], declared: Range | None, reading: Reading) -> UInt8[np.ndarray, "..."]:
    """Numbers of any type as bytes, by the value range of `reading`, else by the one that their file declares.

    Raises `UnsupportedError` where neither says which numbers are black and white, and 8 or 16 bits do not either.
    """
    kind, bits = numbers.dtype.kind, 8 * numbers.dtype.itemsize
    if (kind, bits) == ("u", 8):
        return numbers
    if kind == "b":
        return np.where(numbers, np.uint8(BYTE), np.uint8(0))
    if kind not in "iuf":
        raise UnsupportedError(f"an array of {numbers.dtype}, not of numbers")
    value_range = reading.value_range or declared
    if value_range is None:
        if (kind, bits) != ("u", 16):
            raise UnsupportedError(f"{NEEDS} {numbers.dtype} numbers without a declared range")
        _check_bright(int(numbers.max()))
        value_range = 0.0, float(SIXTEEN)
    return to_bytes(numbers, *value_range)


def to_bytes(numbers: NDArray[Any], black: float | int, white: float | int) -> UInt8[np.ndarray, "..."]:
    """Numbers as 0 (black) to 255 (white); what lies outside is clipped, and what is not a number is black."""
    levels = np.empty(numbers.shape, np.uint8)
    rows = max(1, STRIP // max(1, numbers[:1].size))
    for start in range(0, len(numbers), rows):
        share = (numbers[start : start + rows].astype(np.float64) - black) / ((white - black) or 1)
        levels[start : start + rows] = np.rint(np.nan_to_num(share.clip(0, 1)) * BYTE)
    return levels


def _one_band(image: Image.Image, reading: Reading) -> UInt8[np.ndarray, "h w"]:
    """The single band of an image of more than 8 bits, as bytes."""
    numbers = np.asarray(image)
    black, white = _range(image, reading) or _range_of_bits(image, int(numbers.max()) if image.mode != "F" else 0)
    if _tags(image).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        black, white = white, black
    return to_bytes(numbers, black, white)


def _range(image: Image.Image, reading: Reading) -> Range | None:
    """What the user says is black and white, else what the file declares."""
    return reading.value_range or declared_range(_tags(image))


def declared_range(tags: Mapping[int, Any]) -> Range | None:
    """What the tags of a TIFF declare to be black and white."""
    white = _number(tags, HIGHEST)
    if white is not None:
        return _number(tags, LOWEST) or 0.0, white
    bits = tags.get(BITS)
    if bits and 8 < bits[0] < 16:
        return 0.0, 2.0 ** bits[0] - 1
    return None


def _range_of_bits(image: Image.Image, largest: int) -> Range:
    """0 to 65535 for 16 bits that are used. Raises `UnsupportedError` for any other image."""
    if image.mode == "F":
        raise UnsupportedError(f"{NEEDS} floating-point numbers without a declared range")
    if not image.mode.startswith("I;16") and image.format in (None, "TIFF"):
        raise UnsupportedError(f"{NEEDS} 32-bit or signed whole numbers without a declared range")
    _check_bright(largest)
    return 0.0, float(SIXTEEN)


def _check_bright(largest: int) -> None:
    if 0 < largest <= DIM:
        raise UnsupportedError(f"{NEEDS} 16-bit numbers of at most {largest:,} would be nearly black")


def _wide(image: Image.Image, reading: Reading, again: Again | None, scaled: Sequence[str]) -> Image.Image:
    """An image of 16 bits per channel, of which Pillow has read the upper bytes, as 8 bits per channel.

    scaled: the bands that a value range applies to: all, or all but transparency.
    """
    value_range = _range(image, reading)
    if value_range is None:
        _check_bright(max(int(np.asarray(image.getchannel(band)).max()) for band in scaled) << 8 | BYTE)
        return image
    if again is None:
        raise UnsupportedError("only the upper bytes of its 16 bits are known; give the file instead")
    with again() as other:
        other.tile = [tile._replace(args=_swapped(tile.args)) for tile in other.tile]
        try:
            other.load()
        except ValueError:  # Pillow has no reader for the other order of these bytes
            raise UnsupportedError("16-bit gray with transparency; save it without, or with 8 bits") from None
        channels = {band: image.getchannel(band) for band in image.getbands()}
        for band in scaled:
            upper, lower = (np.asarray(one.getchannel(band)) for one in (image, other))
            channels[band] = Image.fromarray(to_bytes(upper.astype(np.uint16) << 8 | lower, *value_range))
    return Image.merge(image.mode, list(channels.values()))


def _over_background(image: Image.Image) -> tuple[Image.Image, str]:
    """A partly transparent image over white, or over black where white would hide it; and a remark on the latter."""
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    over = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    contrast = max(ImageStat.Stat(over).stddev)
    if contrast >= FAINT:
        return over, ""
    over_black = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")
    if max(ImageStat.Stat(over_black).stddev) <= contrast:
        return over, ""
    return over_black, ON_BLACK


def is_deep(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet has more than 8 bits per channel, to which a value range applies."""
    return image.mode == "F" or image.mode.startswith("I") or _is_wide(image)


def _is_wide(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet has 16 bits per channel and several channels."""
    return len(image.getbands()) > 1 and ";16" in repr([tile.args for tile in getattr(image, "tile", [])])


def _swapped(args: Any) -> Any:
    """The arguments of Pillow's decoder that make it read the lower byte where it would read the upper one."""
    if isinstance(args, str):
        return re.sub(r"(?<=;16)[LBN]", lambda order: HALVES[order[0]], args)
    return tuple(_swapped(one) if isinstance(one, str) else one for one in args)


def _check_layout(image: Image.Image) -> None:
    """Raise `UnsupportedError` for layouts of TIFF that Pillow reads, but not rightly."""
    tags = _tags(image)
    bits = tags.get(BITS, (8,))
    if tags.get(PLANES) == SEPARATE and len(bits) > 1 and (bits[0] > 8 or _lacks_meaning(image)):
        raise UnsupportedError(f"a TIFF of {len(bits)} separate planes of {bits[0]} bits; save its bands interleaved")
    if bits[0] == 8 and tags.get(SAMPLE_FORMAT, (1,))[0] != 1:
        raise UnsupportedError("a TIFF of signed 8-bit numbers; convert it to unsigned ones")


def _lacks_meaning(image: Image.Image) -> bool:
    """Whether a TIFF of four bands does not say what the fourth is."""
    return image.format == "TIFF" and image.mode == "RGBA" and EXTRA_SAMPLES not in _tags(image)


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})


def _number(tags: Any, names: tuple[int, ...]) -> float | None:
    """The number that the first of these tags holds."""
    for name in names:
        value = tags.get(name)
        if value is not None:
            return float(value[0] if isinstance(value, tuple) else value)
    return None
