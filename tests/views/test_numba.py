"""The Numba renderer against the reference on the same parameters: op by op, by policy, on odd images; its cache.

The promise is 1/255; what is found is less than a hundredth of that, and a tenth is what the tests allow.
"""

import multiprocessing
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_views import cut, images, made_up, plain_draws, real_images  # noqa: F401  # a fixture, too
from torch import Tensor

from stepclr import StepclrError, Views, machine_code, view_keys
from stepclr.threads import threads_for
from stepclr.views.color import BRIGHTNESS, CONTRAST, HUE, SATURATION
from stepclr.views.numba.batch import compiled, render_numba
from stepclr.views.ops import (
    AutoAugment,
    Blur,
    BlurParams,
    ColorJitter,
    Grayscale,
    GrayscaleParams,
    JitterParams,
    Op,
    Warp,
    WarpParams,
)
from stepclr.views.reference import Interpolation, render_reference
from stepclr.views.sample import ViewParams

ImageBatch = Tensor | list[Tensor]
CLOSE = 0.1 / 255
ALL = (ColorJitter(1.0), Grayscale(), Warp(), Blur())
LISTS: dict[str, Sequence[Op]] = {
    "crop": [],
    "jitter": [ColorJitter(1.0, p=1.0)],
    "strong jitter": [ColorJitter(2.5, p=1.0)],
    "gray": [Grayscale(0.5)],
    "warp": [Warp(0.7)],
    "blur": [Blur(0.7)],
    "another order, and twice": [Blur(), Warp(), Grayscale(), ColorJitter(1.0), Blur(), ColorJitter(0.5)],
}


def reference(batch: ImageBatch, draws: Sequence[ViewParams], size: int, interpolation: Interpolation) -> Tensor:
    return torch.stack([render_reference(batch, drawn, size, interpolation) for drawn in draws])


def check_close(x: Tensor, expected: Tensor) -> None:
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert x.min() >= 0
    assert x.max() <= 1
    torch.testing.assert_close(x, expected, rtol=0, atol=CLOSE)


def check_views(batch: ImageBatch, views: Views) -> None:
    """Two views of each image."""
    keys = view_keys(4, 2, range(len(batch)))
    assert views.renderer == "numba"
    check_close(views(batch, keys), reference(batch, views.sample_params(batch, keys), views.size, views.interpolation))


# The same pixels.


@pytest.mark.parametrize("size", [28, 32, 96, 224])
@pytest.mark.parametrize("policy", ["simclr", "simaugment", "crop"])
def test_views_are_the_references(images: Tensor, policy: str, size: int) -> None:  # noqa: F811
    settings: dict[str, Any] = {} if policy == "crop" else {"strength": 1.0, "blur": 0.5}
    check_views(images, Views(policy, size, min_area=0.08, **settings))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("name", LISTS)
def test_each_op_is_the_references(images: Tensor, name: str, interpolation: Interpolation) -> None:  # noqa: F811
    for size in (28, 32, 100):
        check_views(images, Views(LISTS[name], size, min_area=0.05, interpolation=interpolation))


@pytest.mark.parametrize("which", [BRIGHTNESS, CONTRAST, SATURATION, HUE])
def test_each_color_change_is_the_references(images: Tensor, which: int) -> None:  # noqa: F811
    """From no change to more than any policy makes, also around whole turns of the hue."""
    n = len(images)
    factors = np.tile([1.0, 1.0, 1.0, 0.0], (n, 1))
    factors[:, which] = np.linspace(-1, 1, n) if which == HUE else np.linspace(0, 3, n)
    jitter = JitterParams(np.ones(n, dtype=bool), factors, np.tile([2, 0, 3, 1], (n, 1)))
    draws = [ViewParams(plain_draws(images).box, np.zeros(n, dtype=bool), (jitter,))]
    check_close(render_numba(images, draws, 48), reference(images, draws, 48, "bicubic"))


@pytest.mark.parametrize("size", [4, 19, 20, 96, 224])
def test_any_blur_is_the_references(images: Tensor, size: int) -> None:  # noqa: F811
    sigma = np.array([0.0, 1e-3, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 5.0, 100.0])
    flip = np.arange(len(sigma)) % 2 == 0
    draws = [ViewParams(plain_draws(images).box, flip, (BlurParams(sigma),))]
    check_close(render_numba(images, draws, size), reference(images, draws, size, "bicubic"))


def test_a_warp_whose_knots_nearly_coincide_is_the_references() -> None:
    """Among many warps there are some whose weights are large and cancel."""
    views = Views([Warp(p=1.0)], size=28, min_area=1.0, views=1)
    batch, keys = made_up(1, 28, 28).expand(600, -1, -1, -1), view_keys(0, 0, range(600))
    (draws,) = views.sample_params(batch, keys)
    (drawn,) = draws.ops
    assert isinstance(drawn, WarpParams)
    assert np.abs(drawn.weights).max() > 30
    torch.testing.assert_close(views(batch, keys)[0], render_reference(batch, draws, 28), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [28, 32, 96, 224])
def test_images_of_unequal_sizes_are_the_references(shared_data: Path, size: int, interpolation: Interpolation) -> None:
    batch = [*cut(real_images(shared_data, "imagenette")), *real_images(shared_data, "cifar10")[:3]]
    check_views(batch, Views(ALL, size, min_area=0.05, interpolation=interpolation))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [4, 32, 90])
def test_crops_of_any_place_and_size_are_the_references(size: int, interpolation: Interpolation) -> None:
    batch = made_up(8, 200, 300)
    box = np.array(
        [
            [0, 0, 200, 300], [0, 0, 1, 1], [199, 299, 1, 1], [7, 9, 1, 250],
            [3, 299, 190, 1], [50, 60, size, size], [100, 0, 2, 3], [0, 5, 199, 16],
        ]
    )  # fmt: skip
    for mirrored in (False, True):
        draws = [ViewParams(box, np.full(8, mirrored), ())]
        check_close(render_numba(batch, draws, size, interpolation), reference(batch, draws, size, interpolation))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_huge_image_is_the_references(interpolation: Interpolation) -> None:
    batch = made_up(1, 3000, 2500)
    for box, size in (([0, 0, 3000, 2500], 32), ([11, 300, 2980, 90], 28), ([5, 0, 130, 2500], 224)):
        draws = [ViewParams(np.array([box]), np.array([True]), ())]
        check_close(render_numba(batch, draws, size, interpolation), reference(batch, draws, size, interpolation))


@pytest.mark.parametrize("height_width", [(1, 1), (1, 60), (60, 1), (2, 3), (700, 8), (8, 700)])
def test_tiny_and_elongated_images_are_the_references(height_width: tuple[int, int]) -> None:
    check_views(made_up(6, *height_width), Views(ALL, 32, min_area=0.08))


def test_black_white_gray_and_colored_images_are_the_references() -> None:
    colors = [[0, 0, 0], [255, 255, 255], [77, 77, 77], [255, 0, 0], [0, 255, 255], [255, 255, 0], [0, 0, 255]]
    flat = torch.tensor(colors, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 40, 50)
    gray = made_up(5, 40, 50)[:, :1].expand(-1, 3, -1, -1)
    for policy in LISTS.values():
        check_views(torch.cat([flat, gray]), Views(policy, 32, min_area=0.2))


# The comparison itself.


def faulty(draws: ViewParams, fault: str) -> ViewParams:
    """Parameters with something wrong."""
    jitter, gray, warp, blur = draws.ops
    assert isinstance(jitter, JitterParams)
    assert isinstance(gray, GrayscaleParams)
    assert isinstance(warp, WarpParams)
    assert isinstance(blur, BlurParams)
    box = draws.box.copy()
    match fault:
        case "crop a pixel off":
            box[:, 1] += np.where(box[:, 1] > 0, -1, 0)
        case "not mirrored":
            return replace(draws, flip=~draws.flip)
        case "order":
            jitter = replace(jitter, order=jitter.order[:, ::-1].copy())
        case "hue":
            jitter = replace(jitter, factors=jitter.factors * [1, 1, 1, -1])
        case "contrast":
            jitter = replace(jitter, factors=jitter.factors * [1, 1.02, 1, 1])
        case "gray":
            gray = replace(gray, gray=~gray.gray)
        case "warp":
            warp = replace(warp, weights=warp.weights * 1.02)
        case "sigma":
            blur = replace(blur, sigma=blur.sigma * 1.02)
        case "ops in another order":
            return replace(draws, ops=(gray, jitter, blur, warp))
    return replace(draws, box=box, ops=(jitter, gray, warp, blur))


@pytest.mark.parametrize(
    "fault",
    ["crop a pixel off", "not mirrored", "order", "hue", "contrast", "gray", "warp", "sigma", "ops in another order"],
)
def test_the_comparison_rejects_wrong(fault: str, shared_data: Path) -> None:
    batch = real_images(shared_data, "imagenette")
    views = Views(ALL, 96, views=1)
    (draws,) = views.sample_params(batch, view_keys(0, 0, range(len(batch))))
    expected = reference(batch, [draws], 96, "bicubic")
    check_close(render_numba(batch, [draws], 96), expected)
    with pytest.raises(AssertionError):
        check_close(render_numba(batch, [faulty(draws, fault)], 96), expected)
    if fault == "sigma":
        with pytest.raises(AssertionError):
            check_close(render_numba(batch, [draws], 96, "bilinear"), expected)


@pytest.mark.parametrize("cubic", [True, False])
@pytest.mark.parametrize("size", [4, 5, 17, 28, 32, 100, 224, 1030])
def test_no_vector_reaches_outside_the_memory(size: int, cubic: bool) -> None:
    """Machine code checks no index: the memory of a row must hold everything that its vectors read, at any scale."""
    from stepclr.views.numba import crop
    from stepclr.views.numba.simd import LANES, up

    first = np.arange(0, size, LANES)
    for length in [*range(1, 40), 95, 96, 97, 223, 224, 225, 448, 640, 1000, 3001, 9000]:
        box = np.array([[0, 0, length, length]])
        (start, row_weights), (shift, taps, weights), line, rows = crop.crop_memory(box, size)
        margin = crop.margin_of(length, size)
        crop.column_filters(length, size, cubic, shift, taps, weights)
        assert taps.min() > 0
        assert taps.sum() * LANES <= len(weights)
        assert (first + shift).min() >= -margin
        assert (first + shift + taps - 1 + LANES).max() <= up(length) + margin
        assert 3 * (up(length) + 2 * margin) <= len(line)
        down = crop.row_filters(length, size, cubic, start, row_weights)
        assert down * size <= len(row_weights)
        assert start.min() >= 0
        assert (start + down).max() <= length
        assert np.diff(start).min() >= 0
        assert np.diff(start).max() <= down
        kept = crop.rows_kept(length, size)
        assert kept == length or kept >= 2 * down
        assert kept * 3 * max(up(size), up(length)) <= len(rows)


# Bit for bit the same.


@pytest.mark.parametrize("size", [28, 32, 96, 224])
def test_a_view_is_the_same_in_any_company_and_memory_and_by_any_number_of_threads(size: int) -> None:
    n = 24
    views = Views(ALL, size, min_area=0.08)
    batch, keys = made_up(n, 61, 70), view_keys(0, 0, range(n))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        x = views(batch, keys)
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            assert torch.equal(views(batch, keys), x)
            order = torch.randperm(n, generator=torch.Generator().manual_seed(count))
            assert torch.equal(views(batch[order], keys[order]), x[:, order])
            assert torch.equal(views(list(batch), keys), x)
            assert torch.equal(views(batch[3:4], keys[3:4]), x[:, 3:4])
        larger = [made_up(1, 300, 433)[0], *batch[:3], made_up(1, 2, 1)[0]]
        assert torch.equal(views(larger, torch.cat([keys[-1:], keys[:3], keys[-1:]]))[:, 1:4], x[:, :3])
        padded = torch.nn.functional.pad(batch, (9, 4, 1, 7))
        for other in (batch.contiguous(memory_format=torch.channels_last), padded[:, :, 1:-7, 9:-4]):
            assert not other.is_contiguous()
            assert torch.equal(views(other, keys), x)
            assert torch.equal(views(list(other), keys), x)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    views, batch, keys = Views("simclr", 96), made_up(24, 40, 40), view_keys(0, 0, range(24))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        x = views(batch, keys)
        assert threads_for.cache_info().currsize
        same = lambda: sys.exit(not np.array_equal(views(batch, keys).numpy(), x.numpy()))  # noqa: E731
        child = multiprocessing.get_context("fork").Process(target=same)
        child.start()
        child.join(60)
        child.kill()
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(threads)


# The choice.


def test_auto_is_numba_where_all_ops_are_known_and_torch_elsewhere() -> None:
    known: list[str | list[Op]] = ["simclr", "simaugment", "crop", [Blur(), Grayscale()], "simclr+Equalize+Rotate"]
    known += ["domain:aerial", "domain:microscopy", "domain:xray", "domain:document"]
    others: list[str | list[Op]] = ["autoaugment", "randaugment", "stacked", [Grayscale(), AutoAugment()]]
    for policy in known:
        assert Views(policy, 32).renderer == "numba"
        assert Views(policy, 32, renderer="torch").renderer == "torch"
    for policy in others:
        assert Views(policy, 32).renderer == "torch"


def test_the_renderer_torch_is_the_reference_bit_for_bit() -> None:
    batch, keys = made_up(3, 40, 40), view_keys(0, 0, range(3))
    views = Views("simclr", 96, renderer="torch")
    assert torch.equal(views(batch, keys), reference(batch, views.sample_params(batch, keys), 96, "bicubic"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_on_a_gpu_is_torchs() -> None:
    batch, keys = made_up(3, 40, 40).cuda(), view_keys(0, 0, range(3))
    for given in (batch, list(batch)):
        x = Views("simclr", 96, renderer="numba")(given, keys)
        assert x.is_cuda
        assert torch.equal(x, Views("simclr", 96, renderer="torch")(given, keys))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("policy", "renderer", "words"),
    [
        ("simclr", "nunba", "Did you mean 'numba'"),
        ("stacked", "numba", "has no RandAugment; torch can"),
        ([Grayscale(), AutoAugment()], "numba", "has no AutoAugment; torch can"),
    ],
)
def test_a_renderer_that_cannot_be_had_is_answered_in_one_line(policy: Any, renderer: Any, words: str) -> None:
    with pytest.raises(StepclrError, match=words) as error:
        Views(policy, 32, renderer=renderer)
    assert "\n" not in str(error.value)


def test_without_numba_torch_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    views = Views("simclr", 32)
    assert views.renderer == "torch"
    assert views(made_up(2, 40, 40), view_keys(0, 0, range(2))).shape == (2, 2, 3, 32, 32)
    with pytest.raises(StepclrError, match=r"numba.*torch can") as error:
        Views("simclr", 32, renderer="numba")
    assert "\n" not in str(error.value)


def test_with_numba_switched_off_torch_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import config

    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    assert Views("simclr", 32).renderer == "torch"


# The machine code.


def run_in_a_new_process(kernels: Path) -> tuple[str, str]:
    """The views and Numba's own cache folder, as text, and what was written to stderr."""
    program = """
import hashlib, torch, numba
from stepclr import Views, view_keys
batch = torch.arange(2 * 3 * 50 * 40).remainder(251).to(torch.uint8).view(2, 3, 50, 40)
x = Views("simclr", 96)(batch, view_keys(0, 0, range(2)))
print(hashlib.sha256(x.numpy().tobytes()).hexdigest(), repr(numba.config.CACHE_DIR))
"""
    environment = {**os.environ, "STEPCLR_KERNELS": str(kernels)}
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert told.returncode == 0, told.stderr
    return told.stdout, told.stderr


def test_it_is_compiled_once_into_a_private_folder(tmp_path: Path) -> None:
    first, said = run_in_a_new_process(tmp_path / "a" / "b")
    assert said == "compiling the renderer of views (about 10 seconds, once on this machine)\n"
    assert first.endswith("''\n")
    folders = [tmp_path / "a" / "b", *(tmp_path / "a" / "b").iterdir()]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700, 0o700]
    assert run_in_a_new_process(tmp_path / "a" / "b") == (first, "")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Path | None]]:
    """The folders that the machine code would be kept in; nothing is compiled."""
    folders: list[Path | None] = []

    def compile_into(_: str, folder: Path | None) -> list[Callable[..., None]]:
        folders.append(folder)
        return [folders.clear]

    monkeypatch.setattr(machine_code, "_compile", compile_into)
    monkeypatch.setenv("STEPCLR_KERNELS", str(tmp_path / "kernels"))
    machine_code._machine_code.cache_clear()
    yield folders
    machine_code._machine_code.cache_clear()


def test_where_nothing_can_be_kept_it_is_compiled_for_the_process(
    asked: list[Path | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kernels").write_text("a file where a folder should be")
    compiled()
    assert asked == [None]
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "for this process only: set STEPCLR_KERNELS to a folder of yours" in told


def test_code_that_others_could_have_written_is_not_run(asked: list[Path | None], tmp_path: Path) -> None:
    compiled()
    (folder,) = asked
    assert folder is not None
    folder.chmod(0o777)
    machine_code._machine_code.cache_clear()
    compiled()
    assert asked == [folder, None]
    folder.chmod(0o700)
    (tmp_path / "kernels").chmod(0o777)
    machine_code._machine_code.cache_clear()
    compiled()
    assert asked[2:] == [None]


def test_a_damaged_cache_is_done_without(asked: list[Path | None], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_with(_: str, folder: Path | None) -> list[Callable[..., None]]:
        asked.append(folder)
        if folder:
            (folder / "index.nbi").write_bytes(b"half of")
            raise EOFError
        return [asked.clear]

    monkeypatch.setattr(machine_code, "_compile", fails_with)
    assert compiled() == asked.clear
    damaged, none = asked
    assert damaged is not None
    assert list(damaged.iterdir()) == []  # so that the next process keeps its own there
    assert none is None
