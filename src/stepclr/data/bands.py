"""Images whose bands are taken as they are: arrays (.npy), TIFFs of several bands or pages, and what Pillow opens."""

import importlib.util
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import UInt8

from stepclr.data.formats import ARRAY_HEAD, BITS, HEAD, TIFF_HEADS, File, UnsupportedError, check_bands, check_size
from stepclr.data.levels import BYTE, PHOTOMETRIC, WHITE_IS_ZERO, declared_range, levels_of
from stepclr.data.reading import MAX_CHANNELS, RGB, Reading

TIFFFILE = version("tifffile") if importlib.util.find_spec("tifffile") else None
IMAGECODECS = version("imagecodecs") if importlib.util.find_spec("imagecodecs") else None
NEEDS_TIFFFILE = "a TIFF of several channels needs the package tifffile: pip install 'stepclr[tiff]'"
NEEDS_IMAGECODECS = "the compression of this TIFF needs the package imagecodecs: pip install 'stepclr[tiff]'"
NO_ARRAY = "not an image in a known format but a NumPy array that is damaged"


def is_array(file: File) -> bool:
    """Whether an open file is a .npy."""
    return _head(file).startswith(ARRAY_HEAD)


def is_stack(file: File, reading: Reading) -> bool:
    """Whether an open file is a TIFF whose channels are bands or pages that Pillow does not read."""
    return reading.bands not in (1, RGB) and _head(file)[:4] in TIFF_HEADS


def channel_axis(shape: Sequence[int], reading: Reading) -> int | None:
    """Which axis of an image `[H, W, C]` or `[C, H, W]` is that of its channels; None for gray `[H, W]`.

    Raises `UnsupportedError` where it has another number of channels than `reading` asks for, or either axis may be it.
    """
    if len(shape) == 2:
        if reading.bands != RGB:
            check_bands(1, reading)
        return None
    if len(shape) != 3 or 0 in shape:
        raise UnsupportedError(f"an array of the shape {list(shape)} is not one image [H, W, C], [C, H, W] or [H, W]")
    axes = [axis for axis in (2, 0) if shape[axis] == reading.bands]
    if not axes:
        check_bands(min(shape[0], shape[2]), reading)
    if len(axes) == 2:
        raise UnsupportedError(f"the channels of the shape {list(shape)} may be its first axis or its last")
    return axes[0]


def read_array(file: File, reading: Reading) -> UInt8[np.ndarray, "h w c"]:
    """The image in a .npy, 8 bits each; gray becomes RGB where RGB is asked for."""
    shape, axis, length = _array_header(file, reading)
    # A file that is cut off is known before memory is taken for what its header announces.
    if file.seek(0, 2) != length:
        raise UnsupportedError(NO_ARRAY)
    file.seek(0)
    numbers = np.load(file, allow_pickle=False)
    levels = levels_of(numbers, None, reading)
    if axis is None:
        return np.repeat(levels.reshape(*shape, 1), reading.bands, axis=2)
    return np.moveaxis(levels, axis, 2)


def array_size(file: File, reading: Reading) -> tuple[int, int]:
    """(height, width) of the image in a .npy, from its header."""
    shape, axis, _ = _array_header(file, reading)
    height, width = (side for place, side in enumerate(shape) if place != axis)
    return height, width


def read_stack(file: File, reading: Reading) -> UInt8[np.ndarray, "h w c"]:
    """The bands of a TIFF's first page, or its gray pages of one size, as channels, 8 bits each."""
    with _pages(file, reading) as pages:
        try:
            numbers = np.stack([page.asarray(maxworkers=1) for page in pages], axis=-1)
        except ValueError as error:  # tifffile's own message for a compression that needs it
            if "imagecodecs" not in str(error):
                raise
            raise UnsupportedError(NEEDS_IMAGECODECS) from error
        tags = {tag.code: tag.value for tag in pages[0].tags} | {BITS: (pages[0].bitspersample,)}
    # Several bands are interleaved, or one behind the other.
    if numbers.ndim == 4:
        numbers = np.moveaxis(numbers[..., 0], pages[0].axes.index("S"), 2)
    levels = levels_of(numbers, declared_range(tags), reading)
    return BYTE - levels if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else levels


def stack_size(file: File, reading: Reading) -> tuple[int, int]:
    """(height, width) of the pages of a TIFF."""
    with _pages(file, reading) as pages:
        return pages[0].imagelength, pages[0].imagewidth


def _head(file: File) -> bytes:
    head = file.read(HEAD)
    file.seek(0)
    return head


def _array_header(file: File, reading: Reading) -> tuple[tuple[int, ...], int | None, int]:
    """Shape and axis of the channels of the image in a .npy, and how long the file must be."""
    file.seek(0)
    try:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError:
        raise UnsupportedError(NO_ARRAY) from None
    axis = channel_axis(shape, reading)
    height, width = (side for place, side in enumerate(shape) if place != axis)
    check_size(width, height, reading)
    return shape, axis, file.tell() + math.prod(shape) * dtype.itemsize


@contextmanager
def _pages(file: File, reading: Reading) -> Iterator[list[Any]]:
    """The pages of an open TIFF that are one image of as many channels as `reading` asks for."""
    if TIFFFILE is None:
        raise UnsupportedError(NEEDS_TIFFFILE)
    import tifffile

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it warns of is not printed for each file
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        every: Any = tiff.pages
        first = every.first
        number, pages = first.samplesperpixel, [first]
        if number == 1:
            pages = [page for page in islice(every, 4 * MAX_CHANNELS) if not page.is_reduced]
            number = len(pages)
        check_bands(number, reading)
        if any((page.shape, page.dtype) != (first.shape, first.dtype) for page in pages):
            raise UnsupportedError(f"a TIFF of {number} pages of different sizes or kinds")
        check_size(first.imagewidth, first.imagelength, reading)
        yield pages
