"""Images that are not RGB: their bands are kept as they are, in any file, in the cache, in shards and in arrays."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_files import file_of, fill, sixteen_bit_png, tiff
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

import stepclr
from stepclr import StepclrError, open_images
from stepclr.data.decode import decoded, size_of, upright_rgb
from stepclr.data.formats import UnsupportedError
from stepclr.data.images import ImageSet
from stepclr.data.reading import Reading
from stepclr.data.shards.packing import pack

ANY = np.random.default_rng(0).integers(0, 256, (5, 20, 30, 16), np.uint8)


def npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def pages(pixels: NDArray[Any]) -> bytes:
    """Each channel as a gray page of a TIFF."""
    first, *others = (Image.fromarray(pixels[..., band]) for band in range(pixels.shape[2]))
    return file_of(first, "TIFF", save_all=True, append_images=others)


def read(content: bytes, channels: int, value_range: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Pixels `[H, W, C]`, whose size is what the header says."""
    reading = Reading(value_range, channels=channels)
    pixels, remark = decoded(io.BytesIO(content), None, reading)
    assert size_of(io.BytesIO(content), reading) == tuple(pixels.shape[1:])
    assert not remark
    return pixels.permute(1, 2, 0).numpy()


def sixteen(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return pixels.astype(np.uint16) * 257


FILES: dict[str, Callable[[NDArray[Any]], bytes]] = {
    "npy": npy,
    "npy, channels first": lambda pixels: npy(np.moveaxis(pixels, 2, 0)),
    "npy of 16 bits": lambda pixels: npy(sixteen(pixels).astype(">u2")),
    "interleaved TIFF": lambda pixels: tiff(pixels, 1, (0,) * (pixels.shape[2] - 1)),
    "TIFF of planes": lambda pixels: tiff(pixels, 1, (0,) * (pixels.shape[2] - 1), planes=2),
    "TIFF of 16 bits": lambda pixels: tiff(sixteen(pixels), 1, (0,) * (pixels.shape[2] - 1)),
    "TIFF of pages": pages,
    "TIFF of pages of 16 bits": lambda pixels: pages(sixteen(pixels)),
}


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 16])
@pytest.mark.parametrize("kind", FILES)
def test_every_band_of_a_file_is_kept_in_its_place(kind: str, channels: int) -> None:
    if channels == 3 and not kind.startswith("npy"):
        pytest.skip("RGB is read as ever")
    pixels = ANY[0, ..., :channels]
    np.testing.assert_array_equal(read(FILES[kind](pixels), channels), pixels)


@pytest.mark.parametrize(
    ("content", "pixels"),
    [
        (npy(ANY[0, ..., 0]), ANY[0, ..., :1]),
        (npy(ANY[0, ..., :1]), ANY[0, ..., :1]),
        (npy(ANY[0, ..., 0] > 127), 255 * (ANY[0, ..., :1] > 127)),
        (file_of(Image.fromarray(ANY[0, ..., 0])), ANY[0, ..., :1]),
        (file_of(Image.fromarray(sixteen(ANY[0, ..., 0]))), ANY[0, ..., :1]),
        (file_of(Image.fromarray(sixteen(ANY[0, ..., 0])), "TIFF"), ANY[0, ..., :1]),
        (file_of(Image.fromarray(ANY[0, ..., :2].copy())), ANY[0, ..., :2]),
        (file_of(Image.fromarray(ANY[0, ..., :4].copy())), ANY[0, ..., :4]),
        (file_of(Image.fromarray(ANY[0, ..., 0] > 127)), 255 * (ANY[0, ..., :1] > 127)),
    ],
    ids=["npy", "npy of one", "npy of truths", "gray", "16 bits", "16-bit TIFF", "gray and alpha", "RGBA", "1 bit"],
)
def test_what_pillow_reads_has_its_own_bands(content: bytes, pixels: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(read(content, pixels.shape[2]), pixels)


def test_an_exif_orientation_turns_gray_too() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels = read(file_of(Image.fromarray(ANY[0, ..., 0]), exif=turned), 1)
    np.testing.assert_array_equal(pixels[..., 0], np.rot90(ANY[0, ..., 0], -1))


def test_numbers_of_other_kinds_need_a_range() -> None:
    numbers = np.linspace(-1, 3, 240).reshape(6, 10, 4)
    with pytest.raises(UnsupportedError, match="needs --value-range LOW,HIGH"):
        read(npy(numbers), 4)
    with pytest.raises(UnsupportedError, match="16-bit numbers of at most 4,095 would be nearly black"):
        read(npy(np.full((6, 10, 4), 4095, np.uint16)), 4)
    expected = np.rint(np.clip(numbers / 2, 0, 1) * 255)
    np.testing.assert_array_equal(read(npy(numbers), 4, (0, 2)), expected)
    np.testing.assert_array_equal(read(tiff(numbers.astype(np.float32), 1, (0, 0, 0)), 4, (0, 2)), expected)


def test_a_value_range_is_one_for_all_channels_also_for_what_a_png_calls_transparency() -> None:
    numbers = np.random.default_rng(0).integers(0, 4096, (20, 30, 4), np.uint16)
    np.testing.assert_array_equal(read(sixteen_bit_png(numbers), 4, (0, 4095)), np.rint(numbers / 4095 * 255))


def test_a_palette_with_transparency_has_four_channels() -> None:
    image = Image.fromarray(ANY[0, ..., :4]).convert("PA")
    np.testing.assert_array_equal(
        upright_rgb(image, Reading(channels=4)), np.asarray(image.convert("RGBA")).transpose(2, 0, 1)
    )
    with pytest.raises(UnsupportedError, match="4 bands, not 2"):
        upright_rgb(image, Reading(channels=2))


SHORT = npy(ANY[0, ..., :4])[:-1]


@pytest.mark.parametrize(
    ("content", "channels", "reason"),
    [
        (npy(ANY[0, ..., :5]), 4, "5 bands, not 4; --channels 5 reads such images"),
        (npy(ANY[0, ..., :4]), 3, "4 bands, not 3; --channels 4 reads such images"),
        (npy(ANY[0, ..., 0]), 4, "1 band, not 4; --channels 1"),
        (file_of(Image.fromarray(ANY[0, ..., :3].copy())), 1, "3 bands, not 1; --channels 3"),
        (file_of(Image.fromarray(ANY[0, ..., 0]).convert("P")), 1, "3 bands, not 1"),
        (tiff(ANY[0, ..., :5], 1, (0,) * 4), 4, "5 bands, not 4"),
        (tiff(ANY[0, ..., :5], 1, (0,) * 4), 3, "of 5 bands of 8-bit whole numbers.*; --channels 5 reads all bands"),
        (pages(ANY[0, ..., :5]), 4, "5 bands, not 4"),
        (npy(ANY[0, :4, :, :4]), 4, "may be its first axis or its last"),
        (npy(ANY[..., :4]), 4, r"\[5, 20, 30, 4\] is not one image"),
        (npy(np.array([["a"]])), 1, "an array of <U1, not of numbers"),
        (npy(np.zeros((200, 200, 17))), 4, "17 bands, not 4; at most 16 are read"),
        (SHORT, 4, "a NumPy array that is damaged"),
        (b"\x93NUMPY\1\0", 4, "a NumPy array that is damaged"),
        (npy(ANY[0, ..., :4]) + b"more", 4, "a NumPy array that is damaged"),
        (b"II*\0" + bytes(30), 4, "the file is damaged"),
        (tiff(ANY[0, ..., :4], 1, (0,))[:-300], 4, "the file is damaged"),
        (pages(ANY[0, ..., :4])[:-300], 4, "the file is damaged"),
        (b"text", 4, "not an image in a known format"),
    ],
)
def test_what_cannot_be_read_so_says_why(content: bytes, channels: int, reason: str) -> None:
    with pytest.raises(StepclrError, match=reason):
        read(content, channels)


def test_pages_of_several_sizes_are_not_one_image() -> None:
    first, other = Image.fromarray(ANY[0, ..., 0]), Image.fromarray(ANY[0, :9, :9, 0])
    with pytest.raises(UnsupportedError, match="2 pages of different sizes"):
        read(file_of(first, "TIFF", save_all=True, append_images=[other]), 2)


def test_an_array_is_never_unpickled() -> None:
    file = io.BytesIO()
    np.save(file, np.array([[object()] * 3] * 3), allow_pickle=True)
    with pytest.raises(StepclrError, match="damaged"):
        read(file.getvalue(), 1)


@pytest.mark.parametrize("kind", ["npy", "TIFF of pages"])
def test_the_limit_of_pixels_holds(kind: str) -> None:
    with pytest.raises(UnsupportedError, match="30 x 20: above the limit of 599 pixels; --max-pixels 600 reads it"):
        decoded(io.BytesIO(FILES[kind](ANY[0, ..., :4])), None, Reading(max_pixels=599, channels=4))


def test_without_tifffile_the_reason_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepclr.data.bands.TIFFFILE", None)
    with pytest.raises(UnsupportedError, match=r"tifffile: pip install 'stepclr\[tiff\]'"):
        read(pages(ANY[0, ..., :4]), 4)


def test_rgb_arrays_are_read_like_images(tmp_path: Path) -> None:
    """A source of .npy alone; gray ones become RGB, as ever."""
    pixels = ANY[..., :3]
    fill(tmp_path, {"a/0.npy": npy(pixels[0]), "a/1.npy": npy(pixels[1]), "b/gray.NPY": npy(pixels[2, ..., 0])})
    images = open_images(tmp_path)
    assert (images.names, images.classes, images.channels) == (["a/0.npy", "a/1.npy", "b/gray.NPY"], ["a", "b"], 3)
    assert not images.ledger.lines()
    batch = images.read(range(3))
    np.testing.assert_array_equal(batch[:2], np.moveaxis(pixels[:2], 3, 1))
    np.testing.assert_array_equal(batch[2], np.stack([pixels[2, ..., 0]] * 3))


def test_arrays_beside_images_are_not_images(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": file_of(Image.fromarray(ANY[0, ..., :3].copy())), "mask.npy": npy(ANY[0, ..., 0])})
    for channels in (None, 1):
        images = open_images(tmp_path, channels=channels)
        assert images.names == ["a.png"]
        assert images.ledger.ignored["mask.npy"].hint.startswith("arrays beside other images")


def folder(root: Path, channels: int, n: int = 5) -> Path:
    files = {}
    for i in range(n):
        kind = ".npy" if channels > 1 else ".png"
        pixels = ANY[i % 5, : 20 - i % 2, ..., :channels]
        files[f"{'ab'[i % 2]}/{i}{kind}"] = npy(pixels) if channels > 1 else file_of(Image.fromarray(pixels[..., 0]))
    return fill(root, files)


@pytest.mark.parametrize("channels", [1, 2, 4, 16])
def test_the_cache_keeps_all_bands(channels: int, tmp_path: Path) -> None:
    """Once written, and once found again; also reduced, and in memory."""
    images = open_images(folder(tmp_path / "images", channels), channels=channels)
    for side in (100, 10):
        expected = [images.store.image(row, side) for row in images.rows.tolist()]
        for _ in range(2):
            cached = images.decoded(side, cache_dir=tmp_path / "cache")
            assert cached.channels == channels
            for image, one in zip(cached.read(range(5)), expected, strict=True):
                assert image.shape[0] == channels
                np.testing.assert_array_equal(image, one)
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 2
    reopened = open_images(tmp_path / "images", channels=5)
    with pytest.raises(StepclrError, match="no image can be read"):  # another number is another cache
        reopened.decoded(100, cache_dir=tmp_path / "cache")
    assert set(reopened.ledger.unreadable) == set(reopened.names)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_shards_keep_all_bands_and_say_how_many(channels: int, tmp_path: Path) -> None:
    images = open_images(folder(tmp_path / "images", channels), channels=channels)
    pack(images, tmp_path / "shards", per_shard=2)
    again = open_images(tmp_path / "shards")
    assert again.channels == channels
    assert again.labels.tolist() == images.labels.tolist()
    for image, one in zip(again.read(range(5)), images.read(range(5)), strict=True):
        np.testing.assert_array_equal(image, one)
    pack(images, tmp_path / "smaller", short_side=10)
    smaller = open_images(tmp_path / "smaller")
    difference = 3 if channels == 1 else 0  # JPEG
    for image, one in zip(smaller.read(range(5)), images.decoded(10).read(range(5)), strict=True):
        assert abs(image.double() - one.double()).mean() <= difference * 10
    with pytest.raises(StepclrError, match="packed from other images or with other settings: channels was"):
        pack(open_images(tmp_path / "images"), tmp_path / "shards", per_shard=2)


def test_arrays_are_packed_without_a_loss(tmp_path: Path) -> None:
    array = np.ascontiguousarray(np.moveaxis(ANY[..., :4], 3, 1))
    pack(open_images(array), tmp_path / "shards")
    np.testing.assert_array_equal(open_images(tmp_path / "shards").read(range(5)), array)
    with pytest.raises(StepclrError, match="quality is that of JPEG, which does not have 4 channels"):
        pack(open_images(array), tmp_path / "other", quality=80)


@pytest.mark.parametrize("channels", [2, 4, 16])
def test_an_array_says_how_many_channels_it_has(channels: int) -> None:
    last = ANY[..., :channels]
    first = np.ascontiguousarray(np.moveaxis(last, 3, 1))
    for array in (first, last):
        images = open_images(array)
        assert images.channels == channels
        np.testing.assert_array_equal(images.read(range(5)), first)
    with pytest.raises(StepclrError, match=f"has images of {channels} channels, not of 5"):
        images.read_as(Reading(channels=5))


def shape_of(images: ImageSet) -> tuple[int, ...]:
    """Of the first image, as a batch."""
    pixels = images.read([0])
    assert isinstance(pixels, torch.Tensor)
    return tuple(pixels.shape)


def test_gray_arrays_are_rgb_unless_one_channel_is_asked_for() -> None:
    gray = ANY[..., 0]
    assert shape_of(open_images(gray)) == (1, 3, 20, 30)
    assert shape_of(open_images(gray, channels=1)) == (1, 1, 20, 30)
    assert shape_of(open_images(open_images(gray), channels=1)) == (1, 1, 20, 30)


def test_an_axis_that_may_be_either_is_asked_for() -> None:
    array = np.zeros((5, 8, 8, 8), np.uint8)
    with pytest.raises(StepclrError, match=r"1 to 16 channels, not the shape \[5, 8, 8, 8\]"):
        open_images(array)
    assert shape_of(open_images(array, channels=8)) == (1, 8, 8, 8)
    assert open_images(np.zeros((5, 4, 8, 8), np.uint8)).channels == 4
    assert open_images(np.zeros((5, 8, 8, 4), np.uint8)).channels == 4
    assert open_images(np.zeros((5, 3, 8, 4), np.uint8), channels=4).channels == 4


def test_images_of_a_dataset_have_their_channels() -> None:
    tensors = [stepclr.open_images(ANY[..., :4]).read([i])[0] for i in range(4)]
    items: list[Any] = [(tensors[0], 0), (tensors[1], 1), (ANY[2, ..., :4], 0)]

    class Items(Dataset[Any]):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int) -> Any:
            return items[index]

    images = open_images(Items(), channels=4)
    np.testing.assert_array_equal(images.read(range(3)), np.moveaxis(ANY[:3, ..., :4], 3, 1))
    with pytest.raises(StepclrError, match=r"an image must be \[3, H, W\]"):
        open_images(Items())


@pytest.mark.parametrize("channels", [0, 17, -1])
def test_the_number_of_channels_is_checked(channels: int) -> None:
    with pytest.raises(StepclrError, match=f"channels must be from 1 to 16, not {channels}"):
        open_images("sample:train", channels=channels)


def test_rgb_may_be_asked_for_by_name(tmp_path: Path) -> None:
    """It is the same set as one that is RGB by default: it joins others, and is packed alike."""
    photos = fill(tmp_path / "photos", {f"{i}.png": file_of(Image.fromarray(ANY[i, ..., :3])) for i in range(2)})
    named = open_images(photos, channels=3)
    assert len(open_images([named, "sample:test"])) == 2002
    pack(named, tmp_path / "shards")
    assert pack(open_images(photos), tmp_path / "shards").images == 2


def test_decoded_images_keep_their_channels(tmp_path: Path) -> None:
    """Of several sizes they lie end to end: with other channels, each would begin elsewhere."""
    sizes = {"0.png": ANY[0, ..., 0], "1.png": ANY[1, :18, :, 0]}
    photos = fill(tmp_path, {name: file_of(Image.fromarray(pixels)) for name, pixels in sizes.items()})
    decoded = open_images(photos).decoded(10)
    with pytest.raises(StepclrError, match="were decoded with 3 channels, not with 1"):
        decoded.read_as(Reading(channels=1))
    assert decoded.read_as(Reading(channels=3)).read([1])[0].shape == (3, 10, 17)


def test_shards_and_files_are_read_with_the_channels_asked_for(tmp_path: Path) -> None:
    for name, pixels in zip("ab", ANY[..., :4], strict=False):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.npy").write_bytes(npy(pixels))
    pack(open_images(tmp_path / "a", channels=4), tmp_path / "shards")
    images = open_images([tmp_path / "shards", tmp_path / "b"], channels=4)
    assert [tuple(image.shape) for image in images.read([0, 1])] == [(4, 20, 30)] * 2
