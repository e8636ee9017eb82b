"""Step 1: images of every kind come out upright and RGB, or with the reason why they cannot be read."""

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made_files import file_of, scene
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stepclr.data.decode import decode, reduced, size_of, upright_rgb
from stepclr.data.formats import UnreadableError
from stepclr.data.reading import Reading
from stepclr.errors import StepclrError


def hwc(image: torch.Tensor) -> NDArray[np.uint8]:
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    return image.permute(1, 2, 0).numpy()


def test_a_real_lossless_image_comes_out_as_its_own_pixels(shared_data: Path) -> None:
    with zipfile.ZipFile(shared_data / "stl10_airplane_car.zip") as archive:
        name = next(name for name in archive.namelist() if name.endswith(".png"))
        file = archive.read(name)
    expected = np.asarray(Image.open(io.BytesIO(file)))
    assert expected.shape == (96, 96, 3)
    np.testing.assert_array_equal(hwc(upright_rgb(file)), expected)
    np.testing.assert_array_equal(hwc(upright_rgb(Image.open(io.BytesIO(file)))), expected)


def test_grey_becomes_three_equal_channels() -> None:
    grey = scene()[:, :, 0]
    np.testing.assert_array_equal(hwc(upright_rgb(file_of(Image.fromarray(grey)))), np.stack([grey] * 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_divided_by_257(kind: str) -> None:
    levels = np.array([[0, 257, 128 * 257, 65535, 128, 129]], np.uint16)
    file = file_of(Image.fromarray(levels), kind)
    np.testing.assert_array_equal(hwc(upright_rgb(file))[0, :, 0], [0, 1, 128, 255, 0, 1])


def test_what_is_transparent_is_laid_over_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 0, 128, 255
    white_grey_black = [[255, 127, 0]]
    np.testing.assert_array_equal(hwc(upright_rgb(file_of(Image.fromarray(rgba))))[..., 0], white_grey_black)
    grey_alpha = file_of(Image.fromarray(rgba[..., 2:]))
    np.testing.assert_array_equal(hwc(upright_rgb(grey_alpha))[..., 0], white_grey_black)


def test_palettes_with_and_without_transparency() -> None:
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    red, green, blue = [255, 0, 0], [0, 255, 0], [0, 0, 255]
    np.testing.assert_array_equal(hwc(upright_rgb(file_of(palette)))[0], [red, green, blue])
    one_clear = file_of(palette, transparency=1)
    np.testing.assert_array_equal(hwc(upright_rgb(one_clear))[0], [red, [255] * 3, blue])
    by_degrees = file_of(palette, transparency=bytes([255, 0, 255]))
    np.testing.assert_array_equal(hwc(upright_rgb(by_degrees))[0], [red, [255] * 3, blue])
    np.testing.assert_array_equal(hwc(upright_rgb(file_of(palette, "GIF")))[0], [red, green, blue])


def test_black_and_white_cmyk_floats_and_the_first_frame_of_an_animation() -> None:
    black_white = Image.fromarray(np.array([[True, False]]))
    np.testing.assert_array_equal(hwc(upright_rgb(file_of(black_white)))[0, :, 0], [255, 0])
    cmyk = file_of(Image.fromarray(scene()).convert("CMYK"), "TIFF")
    assert np.abs(hwc(upright_rgb(cmyk)).astype(int) - scene()).max() <= 1
    floats = file_of(Image.fromarray(np.array([[0.0, 100.0, 300.0]], np.float32)), "TIFF")
    np.testing.assert_array_equal(hwc(upright_rgb(floats, Reading((0, 255))))[0, :, 0], [0, 100, 255])
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    first = hwc(upright_rgb(file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    np.testing.assert_array_equal(first[0, 0], [255, 0, 0])


def test_cmyk_jpegs_which_store_their_inks_inverted() -> None:
    file = file_of(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert Image.open(io.BytesIO(file)).mode == "CMYK"
    assert np.abs(hwc(upright_rgb(file)).astype(int) - scene()).mean() < 3


def test_sixteen_bit_color_keeps_its_upper_byte() -> None:
    levels = np.array([[[0, 256, 65535], [255, 32768, 513]]], ">u2")
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + levels.tobytes())), (b"IEND", b"")]
    file = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        file += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    np.testing.assert_array_equal(hwc(upright_rgb(file)), [[[0, 1, 255], [0, 128, 2]]])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (60, 40), color) for color in ("red", "blue", "green")]
    options = {"lossless": True} if kind == "WEBP" else {}
    file = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(file)).n_frames == 3  # type: ignore[attr-defined]  # which all of these have
    assert (hwc(upright_rgb(file)) == [255, 0, 0]).all()
    assert (hwc(decode(io.BytesIO(file), 20)) == [255, 0, 0]).all()
    assert size_of(io.BytesIO(file)) == (40, 60)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    file = file_of(Image.fromarray(scene()), kind, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB"))
    np.testing.assert_array_equal(hwc(upright_rgb(file)), expected)
    assert size_of(io.BytesIO(file)) == expected.shape[:2]
    small = hwc(decode(io.BytesIO(file), 20))
    assert small.shape == ((20, 30, 3) if orientation < 5 else (30, 20, 3))
    size = (small.shape[1], small.shape[0])
    fair = np.asarray(Image.fromarray(expected).resize(size, Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(small - fair).mean() < 2


def test_an_orientation_stored_behind_the_pixels_of_a_png_counts() -> None:
    file = file_of(Image.fromarray(scene()))
    exif = Image.Exif()
    exif[0x0112] = 6
    body = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    end = file.rindex(b"IEND") - 4
    np.testing.assert_array_equal(hwc(upright_rgb(file[:end] + chunk + file[end:])), np.rot90(scene(), -1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"\xff" * 50, b"MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03"], ids=["none of it", "cut short"]
)
def test_broken_exif_data_neither_spoils_an_image_nor_warns(kind: str, exif: bytes) -> None:
    file = file_of(Image.fromarray(scene()), kind, exif=b"Exif\0\0" + exif)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert upright_rgb(file).shape == (3, 40, 60)
        assert size_of(io.BytesIO(file)) == (40, 60)
    assert not warned


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_large_images_are_reduced_as_a_careful_antialiased_resize_would(kind: str) -> None:
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (30, 41, 3), dtype=np.uint8))
    large = coarse.resize((1640, 1200), Image.Resampling.BICUBIC)
    small = decode(io.BytesIO(file_of(large, kind, **({"quality": 95} if kind == "JPEG" else {}))), 100)
    assert small.shape == (3, 100, 137)
    fair = np.asarray(large.resize((137, 100), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(hwc(small) - fair).mean() < 1.5


def mosaic(shared_data: Path, width: int, height: int) -> Image.Image:
    """Real images of 96 pixels, side by side and unscaled: as much detail as a photo can have."""
    whole = Image.new("RGB", (width, height))
    with zipfile.ZipFile(shared_data / "stl10_airplane_car.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        places = [(x, y) for y in range(0, height, 96) for x in range(0, width, 96)]
        for name, place in zip(names, places, strict=False):
            whole.paste(Image.open(io.BytesIO(archive.read(name))), place)
    return whole


@pytest.mark.parametrize(
    ("size", "least"),
    [((1600, 1200), 36), ((1200, 900), 60)],
    ids=["JPEG's own reduction and a margin", "no margin, no reduction of JPEG's own"],
)
def test_real_jpegs_are_reduced_as_if_they_had_been_decoded_in_full(
    size: tuple[int, int], least: float, shared_data: Path
) -> None:
    file = file_of(mosaic(shared_data, *size), "JPEG", quality=90)
    fair = Image.open(io.BytesIO(file)).resize((597, 448), Image.Resampling.BICUBIC)
    error = hwc(decode(io.BytesIO(file), 448)) - np.asarray(fair).astype(float)
    assert 10 * np.log10(255**2 / np.square(error).mean()) > least  # peak signal to noise, dB


def test_resizing_is_pillows_antialiased_one_but_for_rounding(shared_data: Path) -> None:
    real = mosaic(shared_data, 640, 480)
    fair = np.asarray(real.resize((299, 224), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(hwc(decode(io.BytesIO(file_of(real)), 224)) - fair).max() <= 2
    assert np.abs(hwc(reduced(upright_rgb(real), 224)) - fair).max() <= 2


def test_small_images_are_never_enlarged_and_strips_keep_their_shape() -> None:
    assert decode(io.BytesIO(file_of(Image.fromarray(scene()))), 41).shape == (3, 40, 60)
    assert decode(io.BytesIO(file_of(Image.new("RGB", (1, 1)))), 8).shape == (3, 1, 1)
    assert decode(io.BytesIO(file_of(Image.new("RGB", (30_000, 2)))), 8).shape == (3, 2, 30_000)
    assert decode(io.BytesIO(file_of(Image.new("L", (20, 600)), "JPEG")), 10).shape == (3, 300, 10)


def broken_files() -> dict[str, tuple[bytes, str]]:
    jpeg, png = file_of(Image.fromarray(scene()), "JPEG"), file_of(Image.fromarray(scene()))
    return {
        "empty": (b"", "not an image"),
        "text": (b"hello", "not an image"),
        "cut short JPEG": (jpeg[: len(jpeg) * 9 // 10], "truncated"),
        "cut short PNG": (png[: len(png) // 2], "truncated|broken"),
        "broken PNG": (png[:60] + bytes(20) + png[80:], "the file is damaged.*: broken"),
        "EPS, which would start Ghostscript": (file_of(Image.fromarray(scene()), "EPS"), "not an image"),
    }


@pytest.mark.parametrize("which", broken_files())
def test_a_broken_file_is_one_line_with_the_reason(which: str) -> None:
    file, reason = broken_files()[which]
    with pytest.raises(StepclrError, match=reason) as error:
        upright_rgb(file)
    assert "\n" not in str(error.value)
    assert "0x" not in str(error.value)


@pytest.mark.parametrize("read", [decode, size_of])
def test_an_image_above_max_pixels_is_refused_with_the_option_that_reads_it(read: Callable[..., object]) -> None:
    """Whatever Pillow's own limit is: that one holds for the whole process."""
    file = file_of(Image.fromarray(scene()))
    options = {"short_side": None} if read is decode else {}
    with pytest.raises(UnreadableError, match=r"60 x 40: above the limit of 2,399 pixels; --max-pixels 2400"):
        read(io.BytesIO(file), reading=Reading(max_pixels=40 * 60 - 1), **options)
    read(io.BytesIO(file), reading=Reading(max_pixels=40 * 60), **options)


def test_a_huge_png_is_reduced_as_a_jpeg_is() -> None:
    """Within what a careful resize gives; whole, it would take three times the memory."""
    ramp = np.arange(7_100) / 56
    large = Image.fromarray((ramp[:, None] + ramp).astype(np.uint8))
    small = decode(io.BytesIO(file_of(large, "PPM")), 71)
    middles = (100 * np.arange(71) + 50) / 56
    assert np.abs(hwc(small)[..., 0] - (middles[:, None] + middles - 0.5)).max() <= 2


def test_a_phones_108_million_pixels_are_decoded_reduced() -> None:
    file = file_of(Image.new("L", (12_000, 9_000), 77), "JPEG")
    assert size_of(io.BytesIO(file)) == (9_000, 12_000)
    small = decode(io.BytesIO(file), 96)
    assert small.shape == (3, 96, 128)
    assert (small == 77).all()
