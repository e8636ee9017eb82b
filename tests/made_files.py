"""Image files of many kinds, made for tests."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin


def scene(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    """A smooth image `[H, W, 3]` that looks different when turned or mirrored in any way."""
    y, x = np.mgrid[:height, :width]
    red, green, blue = 255 * x / width, 255 * y / height, 255 * (x + y > width / 2)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ramp(largest: float, dtype: Any) -> NDArray[Any]:
    """From 0 to `largest` in 256 steps, one row."""
    return np.linspace(0, largest, 256)[None].astype(dtype)


def sixteen_bit_color(levels: NDArray[np.uint16], kind: str) -> bytes:
    """Gray as color of 16 bits per channel, which Pillow cannot write."""
    if kind == "PNG":
        return sixteen_bit_png(np.repeat(levels.reshape(1, -1, 1), 3, axis=2))
    return tiff(np.repeat(levels[..., None], 3, axis=2), photometric=2)


def sixteen_bit_png(pixels: NDArray[np.uint16]) -> bytes:
    """Colors `[H, W, 3]`, or with transparency `[H, W, 4]`."""
    height, width, bands = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    file = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        file += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return file


def tiff(pixels: NDArray[Any], photometric: int, extra: tuple[int, ...] = (), planes: int = 1) -> bytes:
    """A plain TIFF of any bands [H, W, C], little-endian, interleaved or one behind the other (planes=2)."""
    height, width, bands = pixels.shape
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    values: dict[int, Any] = {
        256: width,
        257: height,
        258: (8 * pixels.itemsize,) * bands,
        259: 1,
        262: photometric,
        277: bands,
    }
    parts = [pixels.tobytes()] if planes == 1 else [pixels[..., band].tobytes() for band in range(bands)]
    values |= {278: height, 284: planes, 339: (kind,) * bands} | ({338: extra} if extra else {})
    values |= {279: tuple(map(len, parts)), 273: tuple(np.cumsum([0, *map(len, parts[:-1])]).tolist())}
    for tag, value in values.items():
        directory.tagtype[tag] = 4 if tag in (256, 257, 273, 279) else 3
        directory[tag] = value
    # The pixels follow the directory, which adds its own length to where they begin.
    return struct.pack("<2sHI", b"II", 42, 8) + directory.tobytes(8) + b"".join(parts)


def heic() -> bytes:
    """An image as an iPhone stores it."""
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(scene())).save(file, quality=-1)
    return file.getvalue()


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root
