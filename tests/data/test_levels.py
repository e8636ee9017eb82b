"""Step 1: which numbers are black and white is declared, asked for, or a reason; never guessed from one image."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_files import file_of, ramp, scene, sixteen_bit_color, tiff
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from stepclr.data.decode import decoded
from stepclr.data.formats import UnsupportedError
from stepclr.data.reading import Range, Reading
from stepclr.data.sources import open_images
from stepclr.errors import StepclrError

BYTES = np.arange(256)
LARGEST = {"10 bits": 1023, "12 bits": 4095, "14 bits": 16383, "16 bits": 65535}


def tagged(image: NDArray[Any], **tags: Any) -> bytes:
    """A TIFF with further tags: name=(number, type, value)."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, kind, value in tags.values():
        directory.tagtype[tag] = kind
        directory[tag] = value
    return file_of(Image.fromarray(image), "TIFF", tiffinfo=directory)


def read(file: bytes, value_range: Range | None = None) -> NDArray[np.int64]:
    """Every color of the first row, which has to be gray."""
    image, _ = decoded(io.BytesIO(file), None, Reading(value_range))
    assert (image == image[:1]).all()
    return image[0, 0].numpy().astype(np.int64)


def close(levels: NDArray[np.int64], expected: NDArray[np.int64] = BYTES) -> bool:
    return bool(np.abs(levels - expected).max() <= 1)


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "PPM", "JPEG2000"])
@pytest.mark.parametrize("bits", LARGEST)
def test_ten_to_fourteen_bits_in_a_file_of_sixteen_are_never_black(bits: str, kind: str) -> None:
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    file = file_of(Image.fromarray(ramp(LARGEST[bits], np.uint16)), kind, **options)
    if bits == "16 bits":
        assert close(read(file))
    else:
        with pytest.raises(UnsupportedError, match=rf"^needs --value-range LOW,HIGH.* at most {LARGEST[bits]:,} "):
            read(file)
    assert close(read(file, (0, LARGEST[bits])))


@pytest.mark.parametrize("largest", LARGEST.values())
def test_the_largest_value_that_a_tiff_declares_is_white(largest: int) -> None:
    assert close(read(tagged(ramp(largest, np.uint16), white=(281, 3, largest))))


def test_a_declared_range_of_floats_and_a_declared_black() -> None:
    declared = {"black": (340, 11, -1.0), "white": (341, 11, 1.0)}
    assert close(read(tagged(ramp(2, np.float32) - 1, **declared)))


@pytest.mark.parametrize(
    ("numbers", "value_range"),
    [
        (ramp(1, np.float32), (0, 1)),
        (ramp(65535, np.float32), (0, 65535)),
        (ramp(2, np.float32) - 1, (-1, 1)),
        (ramp(255, np.int32), (0, 255)),
        (ramp(4095, np.int32) - 1024, (-1024, 3071)),
    ],
    ids=["floats to 1", "floats to 65535", "floats from -1", "int32 to 255", "tomography"],
)
def test_numbers_without_a_declared_range_need_one(numbers: NDArray[Any], value_range: Range) -> None:
    file = file_of(Image.fromarray(numbers), "TIFF")
    with pytest.raises(UnsupportedError, match=r"^needs --value-range LOW,HIGH.*without a declared range"):
        read(file)
    assert close(read(file, value_range))


def test_one_image_never_decides_its_own_range() -> None:
    """Half as bright in the file is half as bright for the encoder; what lies outside is clipped."""
    dark, bright = (file_of(Image.fromarray(ramp(top, np.float32)), "TIFF") for top in (0.5, 2))
    assert close(read(dark, (0, 1)), BYTES // 2)
    assert close(read(bright, (0, 1)), (2 * BYTES).clip(0, 255))
    assert read(file_of(Image.fromarray(np.full((1, 256), np.nan, np.float32)), "TIFF"), (0, 1)).max() == 0


def test_eight_bits_are_what_they_are_whatever_the_range() -> None:
    assert (read(file_of(Image.fromarray(ramp(255, np.uint8))), (0, 4095)) == BYTES).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_color_of_sixteen_bits_is_read_to_its_lower_byte(kind: str) -> None:
    assert close(read(sixteen_bit_color(ramp(65535, np.uint16), kind)))
    twelve = sixteen_bit_color(ramp(4095, np.uint16), kind)
    with pytest.raises(UnsupportedError, match="--value-range"):
        read(twelve)
    assert close(read(twelve, (0, 4095)))


@pytest.mark.parametrize(
    ("pixels", "photometric", "reason"),
    [
        (np.zeros((4, 4, 5), np.uint8), 1, "a TIFF of 5 bands of 8-bit whole numbers"),
        (np.zeros((4, 4, 3), np.float32), 2, "a TIFF of 3 bands of 32-bit floating-point numbers"),
        (np.zeros((4, 4, 2), np.uint16), 1, "a TIFF of 2 bands of 16-bit whole numbers"),
    ],
    ids=["five bands", "floats in color", "two bands"],
)
def test_bands_that_cannot_be_read_are_named(pixels: NDArray[Any], photometric: int, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        decoded(io.BytesIO(tiff(pixels, photometric)), None, Reading())


@pytest.mark.parametrize(
    ("pixels", "photometric", "reason"),
    [
        (np.zeros((4, 4, 3), np.uint16), 2, "3 separate planes of 16 bits"),
        (np.zeros((4, 4, 4), np.uint8), 2, "4 separate planes of 8 bits"),
        (np.zeros((4, 4, 1), np.int8), 1, "signed 8-bit numbers"),
    ],
    ids=["16-bit planes", "a plane of unknown meaning", "signed bytes"],
)
def test_layouts_that_pillow_would_read_wrongly_are_refused(
    pixels: NDArray[Any], photometric: int, reason: str
) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        decoded(io.BytesIO(tiff(pixels, photometric, planes=2)), None, Reading())


@pytest.mark.parametrize(("kind", "said"), [("GIF", True), ("TIFF", True), ("PNG", True), ("MPO", False)])
def test_further_frames_are_left_out_aloud(kind: str, said: bool) -> None:
    """But not those that a phone adds to a JPEG."""
    first, second = Image.fromarray(scene()), Image.fromarray(scene()[::-1])
    _, remark = decoded(io.BytesIO(file_of(first, kind, save_all=True, append_images=[second])), None, Reading())
    assert remark == ("the first of several frames or pages" if said else "")


@pytest.mark.parametrize("extra", [(0,), ()], ids=["of no meaning", "not declared"])
@pytest.mark.parametrize("deep", [1, 256], ids=["8 bits", "16 bits"])
def test_a_fourth_band_is_left_out_aloud(extra: tuple[int, ...], deep: int) -> None:
    """Near infrared is not transparency."""
    color = scene()
    with_infrared = np.dstack([color, np.full(color.shape[:2], 9, np.uint8)])
    if deep > 1:
        with_infrared = with_infrared.astype(np.uint16) * deep
    image, remark = decoded(io.BytesIO(tiff(with_infrared, 2, extra)), None, Reading())
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), color)
    assert remark == "only red, green and blue of its bands"


@pytest.mark.parametrize(
    ("shade", "background"), [(255, 0), (247, 0), (0, 255), (128, 255)], ids=["white", "light", "black", "gray"]
)
def test_a_drawing_on_transparency_keeps_its_contrast(shade: int, background: int) -> None:
    drawing = np.full((40, 40, 2), shade, np.uint8)
    drawing[..., 1] = 0
    drawing[10:20, 10:30, 1] = 255
    for image in (Image.fromarray(drawing), Image.fromarray(drawing).convert("RGBA")):
        pixels, remark = decoded(io.BytesIO(file_of(image)), None, Reading())
        assert (int(pixels[0, 15, 15]), int(pixels[0, 0, 0])) == (shade, background)
        assert remark == ("a light drawing on transparency, laid over black" if background == 0 else "")


def test_a_range_without_effect_is_noted(tmp_path: Path) -> None:
    def noted(value_range: Range | None) -> list[str]:
        return open_images(tmp_path, value_range=value_range).ledger.lines_of_ignored()

    (tmp_path / "a.png").write_bytes(file_of(Image.fromarray(scene())))
    assert noted(None) == []
    (tmp_path / "b.png").write_bytes(b"no image")
    assert noted((0, 9)) == ["the value range has no effect on images of 8 bits per channel, such as a.png"]
    (tmp_path / "c.png").write_bytes(file_of(Image.fromarray(ramp(4095, np.uint16))))
    assert noted((0, 9)) == []
    assert "has no effect" in open_images("sample:test", value_range=(0, 9)).ledger.notes[0]


@pytest.mark.parametrize("value_range", [(1, 0), (1, 1), (0, float("nan")), (0, float("inf"))])
def test_a_range_is_two_ascending_numbers(value_range: Range) -> None:
    with pytest.raises(StepclrError, match="value_range must be two ascending numbers"):
        Reading(value_range)
