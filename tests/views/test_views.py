"""Step 2 against torchvision and PIL, op by op on the parameters drawn, and against SimCLR App. A's distributions.

Bounds of random rates are five standard deviations wide; every draw has a fixed seed: nothing is left to chance.
"""

import hashlib
import io
import itertools
import math
import os
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv
from touches import Forks

from stepclr import StepclrError, Views, view_keys
from stepclr.data.order import epoch_order
from stepclr.tools.sheet import sheet
from stepclr.views import reference as renderer
from stepclr.views.color import BRIGHTNESS, CONTRAST, HUE, SATURATION
from stepclr.views.keys import uniforms
from stepclr.views.ops import BlurParams, GrayscaleParams, JitterParams
from stepclr.views.policies import POLICIES, read_policy
from stepclr.views.reference import Interpolation, blur_kernel
from stepclr.views.sample import ViewParams
from stepclr.views.views import Renderer

ImageBatch = Tensor | list[Tensor]
CLOSE = 2 / 255
RENDERERS = ["torch", "numba"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ADJUST: dict[int, Callable[[Tensor, float], Tensor]] = {
    BRIGHTNESS: tv.adjust_brightness,
    CONTRAST: tv.adjust_contrast,
    SATURATION: tv.adjust_saturation,
    HUE: tv.adjust_hue,
}


# Images and parameters.


@cache
def real_images(folder: Path, source: str) -> Tensor:
    """Ten images of ten kinds: 96 x 96 of Imagenette or 32 x 32 of CIFAR-10."""
    if source == "imagenette":
        with zipfile.ZipFile(folder / "imagenette_96.zip") as archive:
            names = [name for name in archive.namelist() if name.startswith("val/") and name.endswith("JPEG")]
            files = [archive.read(name) for name in names[:: len(names) // 9][:10]]
    else:
        stored = np.load(folder / "cifar10_test.npz")
        blob, ends = stored["jpeg"].tobytes(), stored["offsets"]
        files = [blob[ends[i] : ends[i + 1]] for i in range(10)]
    opened = [np.array(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    return torch.from_numpy(np.stack(opened)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(params=["imagenette", "cifar10"])
def images(request: pytest.FixtureRequest, shared_data: Path) -> Tensor:
    return real_images(shared_data, request.param)


def made_up(n: int, height: int, width: int) -> Tensor:
    """Images with edges, slopes and noise, without a file."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    noise = torch.randint(0, 256, (n, 3, height, width), generator=generator)
    slope = torch.linspace(0, 255, width).expand(n, 3, height, width)
    square = 255 * (torch.arange(height)[:, None] > height // 3).expand(n, 3, height, width)
    return (noise * 0.2 + slope * 0.4 + square * 0.4).to(torch.uint8)


def cut(images: Tensor) -> list[Tensor]:
    """The images cut to unequal sizes, from tiny to very elongated."""
    sides = [(1.0, 1.0), (0.5, 0.8), (0.9, 0.2), (0.1, 1.0), (0.34, 0.33), (1.0, 0.05), (0.7, 1.0), (0.02, 0.02)]
    height, width = images.shape[2:]
    return [
        image[:, : max(1, round(a * height)), : max(1, round(b * width))]
        for image, (a, b) in zip(images, sides, strict=False)
    ]


@dataclass(frozen=True)
class Flat:
    """The parameters of the policy simclr for one view of N images, side by side."""

    box: NDArray[np.int64]
    flip: NDArray[np.bool_]
    jitter: NDArray[np.bool_]
    factors: NDArray[np.float64]
    order: NDArray[np.int64]
    gray: NDArray[np.bool_]
    sigma: NDArray[np.float64]


def flat(draws: ViewParams) -> Flat:
    values = {field.name: getattr(drawn, field.name) for drawn in draws.ops for field in fields(drawn)}
    return replace(plain_draws(len(draws.box)), box=draws.box, flip=draws.flip, **values)


def render(images: ImageBatch, draws: Flat, size: int, interpolation: Interpolation = "bicubic") -> Tensor:
    ops = (JitterParams(draws.jitter, draws.factors, draws.order), GrayscaleParams(draws.gray), BlurParams(draws.sigma))
    return renderer.render_reference(images, ViewParams(draws.box, draws.flip, ops), size, interpolation)


def plain_draws(images: ImageBatch | int) -> Flat:
    """Parameters that change nothing but the size."""
    n = images if isinstance(images, int) else len(images)
    whole = [] if isinstance(images, int) else [[0, 0, *image.shape[1:]] for image in images]
    return Flat(
        box=np.array(whole, dtype=np.int64),
        flip=np.zeros(n, dtype=bool),
        jitter=np.zeros(n, dtype=bool),
        factors=np.tile([1.0, 1.0, 1.0, 0.0], (n, 1)),
        order=np.tile(np.arange(4), (n, 1)),
        gray=np.zeros(n, dtype=bool),
        sigma=np.zeros(n),
    )


def drawn(height_width: tuple[int, int], keys: Tensor, **settings: object) -> list[Flat]:
    """The parameters of each view of images of this size; at full strength unless `settings` say otherwise."""
    batch = torch.zeros(1, 3, *height_width, dtype=torch.uint8).expand(len(keys), -1, -1, -1)
    return [flat(draws) for draws in Views(**{"size": 96, **settings}).sample_params(batch, keys)]  # type: ignore[arg-type]


def columns(draws: Flat) -> NDArray[np.float64]:
    """The parameters of each view as a row of numbers."""
    box = draws.box.astype(np.float64)
    area, aspect = box[:, 2] * box[:, 3], np.log(box[:, 3] / box[:, 2])
    rest = [draws.flip, draws.jitter, *draws.factors.T, *draws.order.T[:3], draws.gray, draws.sigma]
    return np.stack([box[:, 0], box[:, 1], area, aspect, *rest], axis=1).astype(np.float64)


# The reference: torchvision's functional ops, one image at a time.


def crop_by_torchvision(image: Tensor, box: Sequence[int], size: int, interpolation: str, antialias: bool) -> Tensor:
    mode = {"bicubic": tv.InterpolationMode.BICUBIC, "bilinear": tv.InterpolationMode.BILINEAR}[interpolation]
    x: Tensor = tv.resized_crop(image.float() / 255, *box, [size, size], mode, antialias)
    return x.clamp(0, 1)


def with_setting(change: Callable[..., Tensor], *settings: object) -> Callable[[Tensor], Tensor]:
    return lambda x: change(x, *settings)


def by_torchvision(
    images: ImageBatch, draws: Flat, size: int, interpolation: Interpolation = "bicubic", fault: str = ""
) -> Tensor:
    """SimCLR App. A: crop and resize, flip, jitter in the drawn order, gray, blur; or with one thing wrong."""
    sigmas = [draws.sigma.max() * (sigma > 0) for sigma in draws.sigma] if "one sigma" in fault else draws.sigma
    kernel = blur_kernel(size) + (2 if "kernel" in fault else 0)
    views = []
    for n, image in enumerate(images):
        x = crop_by_torchvision(image, draws.box[n].tolist(), size, interpolation, "antialias" not in fault)
        steps: list[Callable[[Tensor], Tensor]] = []
        if draws.flip[n]:
            steps.append(tv.vertical_flip if "upside" in fault else tv.horizontal_flip)
        if draws.jitter[n]:
            order = [BRIGHTNESS, CONTRAST, SATURATION, HUE] if "fixed order" in fault else draws.order[n].tolist()
            for which in order[::-1] if "backwards" in fault else order:
                factor = float(draws.factors[n, which]) * (-1 if which == HUE and "hue" in fault else 1)
                steps.append(with_setting(ADJUST[which], factor))
        if draws.gray[n]:
            steps.insert(0 if "gray" in fault else len(steps), with_setting(tv.rgb_to_grayscale, 3))
        if sigmas[n] > 0:
            blur = with_setting(tv.gaussian_blur, [kernel] * 2, [float(sigmas[n])] * 2)
            steps.insert(0 if "blur" in fault else len(steps), blur)
        for step in steps:
            x = step(x)
        views.append(x)
    return torch.stack(views)


def check_close(x: Tensor, expected: Tensor) -> None:
    assert x.dtype == torch.float32
    error = (x.cpu() - expected).abs()
    assert error.max() <= CLOSE
    assert error.mean() <= CLOSE / 10


# Render: each operation, then all of them.


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [28, 96])
def test_cropping_and_resizing_are_torchvisions_and_pils(
    images: Tensor, size: int, interpolation: Interpolation
) -> None:
    """Enlarged and reduced, from boxes of any place and size. PIL on floats: on bytes it clips between its passes."""
    side = images.shape[-1]
    boxes = drawn((side, side), view_keys(1, 2, range(len(images))), min_area=0.02)[0].box
    boxes[:4] = [[0, 0, side, side], [3, 5, 1, 1], [side - 2, 0, 2, side], [0, side // 2, side, 3]]
    x = render(images, replace(plain_draws(images), box=boxes), size, interpolation)
    cropped = [
        crop_by_torchvision(pixels, box, size, interpolation, True)
        for pixels, box in zip(images, boxes.tolist(), strict=True)
    ]
    check_close(x, torch.stack(cropped))
    resized = []
    for pixels, (top, left, height, width) in zip(images, boxes.tolist(), strict=True):
        for channel in pixels.float() / 255:
            image = Image.fromarray(channel.numpy()).crop((left, top, left + width, top + height))
            resized.append(
                torch.from_numpy(np.array(image.resize((size, size), Image.Resampling[interpolation.upper()])))
            )
    check_close(x, torch.stack(resized).view_as(x).clamp(0, 1))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_images_of_unequal_sizes_are_cropped_like_equal_ones(shared_data: Path, interpolation: Interpolation) -> None:
    batch = cut(real_images(shared_data, "imagenette"))
    views = Views("crop", size=32, interpolation=interpolation)
    keys = view_keys(0, 0, range(len(batch)))
    for x, draws in zip(views(batch, keys), views.sample_params(batch, keys), strict=True):
        check_close(x, by_torchvision(batch, flat(draws), 32, interpolation))


def test_an_image_of_the_views_own_size_stays_as_it_is(images: Tensor) -> None:
    x = render(images, plain_draws(images), images.shape[-1])
    torch.testing.assert_close(x, images.float() / 255, rtol=0, atol=1e-6)


def test_a_flip_mirrors_left_and_right(images: Tensor) -> None:
    flip = np.arange(len(images)) % 3 == 0
    draws = plain_draws(images)
    plain, mirrored = (render(images, replace(draws, flip=f), 40) for f in (draws.flip, flip))
    for view, original, flipped in zip(mirrored, plain, flip, strict=True):
        assert torch.equal(view, original.flip(-1) if flipped else original)


@pytest.mark.parametrize(
    ("which", "factors"),
    [(BRIGHTNESS, (0.2, 1.8)), (CONTRAST, (0.2, 1.8)), (SATURATION, (0.2, 1.8)), (HUE, (-0.5, 0.5))],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_each_color_change_is_torchvisions(images: Tensor, which: int, factors: tuple[float, float]) -> None:
    draws = plain_draws(images)
    draws.factors[:, which] = np.linspace(*factors, len(images))
    draws.jitter[1:] = True
    x = render(images, draws, 32)
    plain = render(images, plain_draws(images), 32)
    changed = [
        ADJUST[which](view, factor) for view, factor in zip(plain, draws.factors[:, which].tolist(), strict=True)
    ]
    check_close(x[1:], torch.stack(changed[1:]))
    assert torch.equal(x[0], plain[0])  # not chosen for jitter
    assert (x[1] - plain[1]).abs().max() > 5 * CLOSE


def test_the_four_color_changes_come_in_the_order_drawn(images: Tensor) -> None:
    batch = images[torch.arange(24) % len(images)]
    order = np.array(list(itertools.permutations(range(4))))
    draws = replace(plain_draws(batch), order=order, jitter=np.ones(24, dtype=bool))
    draws.factors[:] = [1.6, 1.7, 1.8, 0.2]
    check_close(render(batch, draws, 32), by_torchvision(batch, draws, 32))


def test_gray_has_the_weights_of_luma_in_all_three_channels(images: Tensor) -> None:
    draws = replace(plain_draws(images), gray=np.arange(len(images)) % 2 == 0)
    x = render(images, draws, 48)
    check_close(x, by_torchvision(images, draws, 48))
    assert torch.equal(x[::2, :1].expand(-1, 3, -1, -1), x[::2])
    assert (x[1::2].amax(1) - x[1::2].amin(1)).max() > 0.1


@pytest.mark.parametrize("size", [32, 96, 224])
def test_blur_is_torchvisions_with_a_sigma_for_each_image(shared_data: Path, size: int) -> None:
    images = real_images(shared_data, "imagenette")[:5]
    draws = replace(plain_draws(images), sigma=np.array([2.0, 0.1, 0.0, 0.7, 1.3]))
    x = render(images, draws, size)
    check_close(x, by_torchvision(images, draws, size))
    assert torch.equal(x[2], render(images, plain_draws(images), size)[2])


@pytest.mark.parametrize(("size", "side"), [(32, 3), (96, 9), (224, 23), (28, 3), (4, 1), (100, 11)])
def test_blur_spreads_a_point_over_a_tenth_of_the_view_made_odd(size: int, side: int) -> None:
    point = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    point[:, :, size // 2, size // 2] = 255
    x = render(point, replace(plain_draws(point), sigma=np.array([2.0])), size)[0, 0]
    assert blur_kernel(size) == side
    assert (x > 0).any(0).sum() == side
    assert (x > 0).any(1).sum() == side
    assert x.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_views_are_what_torchvision_makes_of_the_same_draws(
    images: Tensor, interpolation: Interpolation, renderer: Renderer, device: str
) -> None:
    how = {"interpolation": interpolation, "renderer": renderer}
    views = Views("simclr", size=32, strength=1.0, blur=0.5, min_area=0.08, **how)  # type: ignore[arg-type]
    batch = images.repeat(3, 1, 1, 1)
    keys = view_keys(3, 1, range(len(batch)))
    made = views(batch.to(device), keys)
    assert made.device.type == device
    for x, draws in zip(made, views.sample_params(batch, keys), strict=True):
        check_close(x, by_torchvision(batch, flat(draws), 32, interpolation))


@pytest.mark.parametrize(
    "fault",
    [
        "no antialias",
        "upside down",
        "jitter in a fixed order",
        "jitter backwards",
        "hue the other way",
        "gray before jitter",
        "blur before jitter",
        "one sigma a batch",
        "larger kernel",
    ],
)
def test_the_comparison_rejects_a_reference_with(fault: str, shared_data: Path) -> None:
    batch = real_images(shared_data, "imagenette").repeat(3, 1, 1, 1)
    views = Views("simclr", size=32, strength=1.0, blur=0.5, min_area=0.08)
    keys = view_keys(3, 1, range(len(batch)))
    x, draws = views(batch, keys)[0], flat(views.sample_params(batch, keys)[0])
    check_close(x, by_torchvision(batch, draws, 32))
    with pytest.raises(AssertionError):
        check_close(x, by_torchvision(batch, draws, 32, fault=fault))


@pytest.mark.parametrize("height_width", [(1, 1), (1, 60), (60, 1), (2, 3), (700, 8), (8, 700), (3, 3)])
@pytest.mark.parametrize("renderer", RENDERERS)
def test_tiny_and_elongated_images_give_proper_views(height_width: tuple[int, int], renderer: Renderer) -> None:
    batch = made_up(6, *height_width)
    views = Views("simclr", size=32, blur=0.5, strength=1.0, renderer=renderer)
    x = views(batch, view_keys(0, 0, range(6)))
    assert x.isfinite().all()
    assert x.min() >= 0
    assert x.max() <= 1


# The views of a key, bit for bit.

EVERY = (*POLICIES, "autoaugment:cifar10", "autoaugment:svhn")
STRONG = {"size": 48, "strength": 1.0, "blur": 0.5, "min_area": 0.08}


def fingerprint(views: Tensor) -> str:
    return hashlib.sha256(views.contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 96])
def test_views_of_a_key_are_the_same_in_any_company(
    size: int, interpolation: Interpolation, renderer: Renderer
) -> None:
    """In any batch and order, alone, in a tensor or a list with larger images, in any memory format: bit for bit."""
    n = 44  # at 96 px more than are rendered at a time
    how = {**STRONG, "size": size, "interpolation": interpolation, "renderer": renderer}
    views = Views("simclr", **how)  # type: ignore[arg-type]
    batch, keys = made_up(n, 61, 70), view_keys(0, 0, range(n))
    x = views(batch, keys)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    assert torch.equal(views(batch[order], keys[order]), x[:, order])
    assert torch.equal(views(batch[5:9], keys[5:9]), x[:, 5:9])
    for k in (0, 7, n - 1):
        assert torch.equal(views(batch[k : k + 1], keys[k : k + 1])[:, 0], x[:, k])
        assert torch.equal(views([batch[k]], keys[k : k + 1])[:, 0], x[:, k])
    assert torch.equal(views(list(batch), keys), x)
    larger = [made_up(1, 90, 33)[0], *batch[:3], made_up(1, 20, 200)[0]]
    assert torch.equal(views(larger, torch.cat([keys[-1:], keys[:3], keys[-1:]]))[:, 1:4], x[:, :3])
    assert torch.equal(views(batch.contiguous(memory_format=torch.channels_last), keys), x)
    padded = torch.nn.functional.pad(batch, (9, 4, 1, 7))
    assert torch.equal(views(padded[:, :, 1:-7, 9:-4], keys), x)


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize(("size", "n"), [(96, 12), (224, 3)])
def test_views_of_a_key_are_the_same_with_one_thread_or_two(size: int, n: int, renderer: Renderer) -> None:
    """Also alone: libraries share the sum over a single image out among threads."""
    views = Views("simclr", size=size, strength=1.0, blur=0.5, min_area=0.08, renderer=renderer)
    batch, keys = made_up(n, 120, 130), view_keys(0, 0, range(n))
    threads = torch.get_num_threads()
    try:
        made = []
        for count in (1, 2):
            torch.set_num_threads(count)
            made += [views(batch, keys), torch.cat([views(batch[k : k + 1], keys[k : k + 1]) for k in (0, 2)], dim=1)]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[2])
    assert torch.equal(made[1], made[0][:, [0, 2]])
    assert torch.equal(made[3], made[0][:, [0, 2]])


def test_views_of_a_key_are_the_same_after_a_restart(forked: Forks) -> None:
    """A new process, with other threads and other random numbers drawn before, makes the same views."""
    program = """
import sys
sys.path[:0] = sys.argv[1:]
import torch
from test_views import EVERY, Views, fingerprint, made_up, view_keys
torch.set_num_threads(1)
torch.rand(7)
batch = made_up(12, 61, 70)
for policy in EVERY:
    for renderer in ("auto", "torch"):
        views = Views(policy, size=48, renderer=renderer)
        views(batch, view_keys(5, 5, range(12)))
        print(fingerprint(views(batch[8:], view_keys(0, 3, [8, 9, 10, 11]))))
"""
    command = [forked.python, "-W", "ignore", "-c", program, *map(str, Path(__file__).parents[:2])]
    told = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert told.returncode == 0, told.stderr
    keys = view_keys(0, 3, range(12))
    own = [
        [fingerprint(Views(policy, 48, renderer=renderer)(made_up(12, 61, 70), keys)[:, 8:]) for policy in EVERY]
        for renderer in ("auto", "torch")
    ]
    assert [told.stdout.split()[0::2], told.stdout.split()[1::2]] == own
    assert [len(set(views)) for views in own] == [len(EVERY)] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_renders_the_same_views() -> None:
    batch, keys = made_up(12, 61, 70), view_keys(0, 0, range(12))
    views = Views("simclr", **STRONG)  # type: ignore[arg-type]
    on_cpu = Views("simclr", **STRONG, renderer="torch")(batch, keys)  # type: ignore[arg-type]
    torch.testing.assert_close(views(batch.cuda(), keys).cpu(), on_cpu, rtol=0, atol=1e-5)


PINNED = {  # SHA-256 of draws and views of release 0.1: whoever finds a run in a year sees the same views
    32: "ea85a9b0b251698f61ac88317bcb064b349f4f1f975923438c021ef72ea038ad",
    96: "0e992930a0ee896999ccd649370657baca85079162a78a87dec51d858e51db19",
}
PINNED_DRAWS = "be65dad6021de23833c7db99613338eb0fc5a6e58e7fd821421aff769e1345bc"


@pytest.mark.parametrize("size", [32, 96])
def test_the_views_of_a_key_stay_what_they_have_been(size: int) -> None:
    """The views of the reference; without blur, because exp may differ by a rounding between processors."""
    batch, keys = made_up(12, 61, 70), view_keys(3, 1, range(12))
    sharp = Views("simclr", size=size, strength=1.0, blur=0.0, min_area=0.08, views=3, renderer="torch")
    assert fingerprint(sharp(batch, keys)) == PINNED[size]
    blurred = Views("simclr", size=size, strength=1.0, blur=0.5, min_area=0.08, views=3)
    digest = hashlib.sha256()
    for draws in blurred.sample_params(batch, keys):
        for field in fields(Flat):
            digest.update(np.ascontiguousarray(getattr(flat(draws), field.name)).tobytes())
    assert digest.hexdigest() == PINNED_DRAWS


def test_making_views_changes_neither_the_images_nor_anyones_random_state() -> None:
    batch = made_up(4, 50, 50)
    before, state, numpy_state = batch.clone(), torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    Views("simclr", **STRONG)(batch, view_keys(0, 0, range(4)))  # type: ignore[arg-type]
    assert torch.equal(batch, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert str(np.random.get_state()) == numpy_state  # noqa: NPY002


# Draw: rates and ranges.

MANY = 20_000


def within(count: float, n: int, p: float) -> bool:
    return bool(abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p)))


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("size", [32, 96])
def test_a_half_are_flipped_a_fifth_gray_four_fifths_jittered_a_half_blurred(size: int, view: int) -> None:
    blur = read_policy("simclr", size).defaults()["blur"]
    draws = drawn((96, 96), view_keys(0, 0, range(MANY)), size=size)[view]
    assert within(draws.flip.sum(), MANY, 0.5)
    assert within(draws.gray.sum(), MANY, 0.2)
    assert within(draws.jitter.sum(), MANY, 0.8)
    assert within((draws.sigma > 0).sum(), MANY, blur)
    assert within((draws.gray & draws.flip).sum(), MANY, 0.1)
    assert within((draws.gray & ~draws.jitter).sum(), MANY, 0.04)


@pytest.mark.parametrize("blur", [0.0, 0.1, 1.0])
def test_blur_happens_as_often_as_asked(blur: float) -> None:
    draws = drawn((96, 96), view_keys(0, 0, range(MANY)), blur=blur)[0]
    assert within((draws.sigma > 0).sum(), MANY, blur)


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_color_factors_are_uniform_in_the_ranges_of_the_paper(strength: float) -> None:
    draws = drawn((96, 96), view_keys(0, 0, range(MANY)), strength=strength)[0]
    low, high = max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength
    for which in (BRIGHTNESS, CONTRAST, SATURATION):
        assert stats.kstest(draws.factors[:, which], stats.uniform(low, high - low).cdf).pvalue > 1e-4
    spread = 0.2 * strength
    assert stats.kstest(draws.factors[:, HUE], stats.uniform(-spread, 2 * spread).cdf).pvalue > 1e-4
    blurred = draws.sigma[draws.sigma > 0]
    assert stats.kstest(blurred, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-4


def test_every_order_of_the_color_changes_is_equally_likely() -> None:
    draws = drawn((96, 96), view_keys(0, 0, range(MANY)))[0]
    seen, counts = np.unique(draws.order, axis=0, return_counts=True)
    assert sorted(map(tuple, seen.tolist())) == list(itertools.permutations(range(4)))
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("min_area", [0.08, 0.2, 0.9])
@pytest.mark.parametrize("height_width", [(400, 400), (300, 520), (900, 200)])
def test_crops_are_distributed_like_torchvisions(height_width: tuple[int, int], min_area: float) -> None:
    n = 1500
    box = drawn(height_width, view_keys(0, 0, range(n)), min_area=min_area)[0].box
    canvas = torch.empty(3, *height_width, device="meta")
    crop = v2.RandomResizedCrop(96, scale=(min_area, 1.0), ratio=(3 / 4, 4 / 3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [crop.make_params([canvas]) for _ in range(n)]
    for column, name in enumerate(("top", "left", "height", "width")):
        assert stats.ks_2samp(box[:, column], [params[name] for params in theirs]).pvalue > 1e-4


@pytest.mark.parametrize("size", [32, 96])
def test_crops_keep_to_their_smallest_area_and_aspect(size: int) -> None:
    box = drawn((500, 500), view_keys(0, 0, range(MANY)), size=size)[0].box
    area, aspect = box[:, 2] * box[:, 3] / 500**2, box[:, 3] / box[:, 2]
    smallest = read_policy("simclr", size).defaults()["min_area"]
    assert smallest * 0.98 <= area.min() < smallest * 1.1
    assert area.max() > 0.95
    assert 0.98 * 3 / 4 <= aspect.min() < 0.76
    assert 1.32 < aspect.max() <= 1.02 * 4 / 3


@pytest.mark.parametrize(
    "height_width", [(1, 1), (1, 2), (2, 1), (2, 3), (4, 4), (1, 50), (50, 1), (3000, 10), (7, 4096), (96, 96)]
)
def test_every_box_lies_inside_its_image(height_width: tuple[int, int]) -> None:
    for min_area in (0.0, 0.08, 1.0):
        for draws in drawn(height_width, view_keys(0, 0, range(2000)), min_area=min_area):
            top, left, height, width = draws.box.T
            assert min(height.min(), width.min()) >= 1
            assert min(top.min(), left.min()) >= 0
            assert (top + height).max() <= height_width[0]
            assert (left + width).max() <= height_width[1]


def test_every_place_that_a_crop_fits_is_used() -> None:
    box = drawn((8, 8), view_keys(0, 0, range(MANY)), min_area=0.2)[0].box
    squares = box[(box[:, 2:] == 5).all(1), :2]
    _, counts = np.unique(squares, axis=0, return_counts=True)
    assert len(counts) == 16
    assert stats.chisquare(counts).pvalue > 1e-4


NEIGHBORS: dict[str, Callable[[Tensor], Iterable[Flat]]] = {
    "keys next to each other": lambda i: (drawn((96, 96), i)[0], drawn((96, 96), i + 1)[0]),
    "samples next to each other": lambda i: (drawn((96, 96), view_keys(0, 0, j))[0] for j in (i, i + 1)),
    "epochs next to each other": lambda i: (drawn((96, 96), view_keys(0, epoch, i))[0] for epoch in (0, 1)),
    "seeds next to each other": lambda i: (drawn((96, 96), view_keys(seed, 0, i))[0] for seed in (0, 1)),
    "seed and epoch exchanged": lambda i: (drawn((96, 96), view_keys(*pair, i))[0] for pair in ((0, 1), (1, 0))),
    "epoch and sample exchanged": lambda i: (drawn((96, 96), view_keys(0, e, i + d))[0] for e, d in ((0, 1), (1, 0))),
    "the two views": lambda i: drawn((96, 96), view_keys(0, 0, i)),
}


@pytest.mark.parametrize("neighbors", NEIGHBORS)
def test_neighbors_draw_different_and_unrelated_parameters(neighbors: str) -> None:
    n = 5000
    first, second = NEIGHBORS[neighbors](torch.arange(n))
    assert (first.box == second.box).all(1).mean() < 0.01
    assert (first.factors == second.factors).all(1).sum() == 0
    for one, other in zip(columns(first).T, columns(second).T, strict=True):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(n)


def test_the_parameters_of_a_view_are_unrelated_to_each_other() -> None:
    table = columns(drawn((400, 400), view_keys(0, 0, range(MANY)))[0])
    related = np.abs(np.corrcoef(table.T)) > 5 / math.sqrt(MANY)
    np.fill_diagonal(related, False)
    related[:4, :4] = False  # a small crop has more room, and a very flat one fits nowhere if large
    related[10:13, 10:13] = False  # the places of a permutation exclude each other
    assert not related.any()


# Keys.


def split_mix(state: int) -> int:
    """SplitMix64's output for a state, from its authors' C."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_uniforms_are_splitmix64_streams_so_that_no_version_or_machine_draws_others() -> None:
    assert split_mix(1234567) == 6457827717110365317  # the generator's published first number
    keys = [0, 1, -1, 2**63 - 1, -(2**63)]
    for view in (0, 1, 63):
        numbers = uniforms(np.array(keys), view, 35)
        for key, row in zip(keys, numbers.tolist(), strict=True):
            start = split_mix(key % 2**64)
            steps = [(start + (64 * view + slot) * 0x9E3779B97F4A7C15) % 2**64 for slot in range(1, 36)]
            assert row == [(split_mix(step) >> 11) / 2**53 for step in steps]


def test_uniforms_are_uniform_and_their_slots_independent() -> None:
    n = 10_000
    u = np.concatenate([uniforms(view_keys(0, 0, range(n)).numpy(), view, 64) for view in (0, 1)], axis=1)
    assert u.min() >= 0
    assert u.max() < 1
    pvalues = [stats.kstest(column, "uniform").pvalue for column in u.T]
    assert min(pvalues) > 1e-5
    assert stats.kstest(pvalues, "uniform").pvalue > 1e-4
    related = np.abs(np.corrcoef(u.T) - np.eye(u.shape[1]))
    assert related.max() < 5.5 / math.sqrt(n)
    assert np.abs(np.corrcoef(u[:-1, :8].T, u[1:, :8].T)[:8, 8:]).max() < 5.5 / math.sqrt(n)


def test_any_int64_is_a_valid_key() -> None:
    keys = torch.tensor([-(2**63), -(2**63) + 1, -2, -1, 0, 1, 2, 2**63 - 2, 2**63 - 1])
    for draws in drawn((96, 96), keys):
        assert len(np.unique(draws.factors, axis=0)) == len(keys)
        assert len(np.unique(draws.box, axis=0)) == len(keys)
    assert Views("simclr", size=32)(made_up(9, 40, 40), keys).isfinite().all()


def test_keys_may_come_as_a_tensor_an_array_or_a_list() -> None:
    batch, keys = made_up(3, 40, 40), view_keys(0, 0, [5, 6, 7])
    views = Views("simclr", size=32)
    x = views(batch, keys)
    assert torch.equal(views(batch, keys.numpy()), x)
    assert torch.equal(views(batch, keys.tolist()), x)
    assert torch.equal(views(batch, keys.repeat_interleave(2)[::2]), x)


def test_a_view_key_is_a_function_of_seed_epoch_and_sample() -> None:
    samples = [0, 1, 7, 10**9, 2**40]
    keys = view_keys(3, 4, samples)
    assert keys.dtype == torch.int64
    assert torch.equal(view_keys(3, 4, samples[::-1]), keys.flip(0))
    assert torch.equal(view_keys(3, 4, torch.tensor(samples)), keys)
    assert torch.equal(view_keys(3, 4, np.array(samples)), keys)
    grid = [view_keys(seed, epoch, range(500)) for seed in (-1, 0, 1, 2**40) for epoch in (0, 1, 2, 999)]
    assert len(torch.cat(grid).unique()) == 16 * 500


def test_an_epochs_order_is_a_permutation_that_differs_by_epoch_and_seed() -> None:
    n = 1000
    orders = [epoch_order(seed, epoch, n) for seed in (0, 1, -1) for epoch in (0, 1, 2)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(n))
        assert order.dtype == np.int64
    for one, other in itertools.combinations([np.arange(n), *orders], 2):
        assert (one == other).sum() < 15  # about one is expected
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(n)
    assert np.array_equal(epoch_order(1, 2, n), epoch_order(1, 2, n))
    assert epoch_order(0, 0, 0).tolist() == []
    assert epoch_order(0, 0, 1).tolist() == [0]


def test_each_sample_comes_at_each_place_of_an_epoch_equally_often() -> None:
    orders = np.stack([epoch_order(0, epoch, 10) for epoch in range(5000)])
    for place in range(10):
        assert stats.chisquare(np.bincount(orders[:, place], minlength=10)).pvalue > 1e-5


def test_an_epochs_order_is_unrelated_to_its_views() -> None:
    n = 5000
    place = np.argsort(epoch_order(0, 0, n))
    for column in columns(drawn((96, 96), view_keys(0, 0, range(n)))[0]).T:
        assert abs(np.corrcoef(place, column)[0, 1]) < 5 / math.sqrt(n)


# `Views`: policies, sizes, shapes and errors.


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (28, {"strength": 0.5, "blur": 0.0, "min_area": 0.2}),
        (32, {"strength": 0.5, "blur": 0.0, "min_area": 0.2}),
        (33, {"strength": 1.0, "blur": 0.5, "min_area": 0.08}),
        (96, {"strength": 1.0, "blur": 0.5, "min_area": 0.08}),
        (224, {"strength": 1.0, "blur": 0.5, "min_area": 0.08}),
    ],
)
def test_settings_left_open_follow_the_size(size: int, expected: dict[str, float]) -> None:
    assert read_policy("simclr", size).defaults() == expected
    views = Views("simclr", size=size)
    assert {name: getattr(views, name) for name in expected} == expected
    for name in expected:
        assert getattr(Views("simclr", size=size, **{name: 0.3}), name) == 0.3  # type: ignore[arg-type]
        assert getattr(Views("simclr", size=size, **{name: 0.0}), name) == 0  # type: ignore[arg-type]


def test_the_defaults_are_two_simclr_views_of_224_pixels_with_bicubic_crops() -> None:
    views = Views()
    assert (views.policy, views.size, views.views, views.interpolation) == ("simclr", 224, 2, "bicubic")


def test_views_come_as_float32_in_0_to_1_without_mean_and_std() -> None:
    batch, keys = made_up(5, 50, 40), view_keys(0, 0, range(5))
    x = Views("simclr", size=64)(batch, keys)
    assert x.dtype == torch.float32
    assert x.shape == (2, 5, 3, 64, 64)
    assert x.min() >= 0
    assert 0.9 < x.max() <= 1
    assert not torch.equal(x[0], x[1])


def test_more_views_leave_the_first_ones_as_they_are() -> None:
    batch, keys = made_up(5, 50, 40), view_keys(0, 0, range(5))
    x = Views("simclr", size=32, views=6)(batch, keys)
    assert torch.equal(Views("simclr", size=32, views=1)(batch, keys), x[:1])
    assert torch.equal(Views("simclr", size=32)(batch, keys), x[:2])
    assert len({fingerprint(view) for view in x}) == 6


def test_the_policy_crop_never_changes_a_color() -> None:
    for draws in drawn((96, 96), view_keys(0, 0, range(2000)), policy="crop"):
        assert not draws.jitter.any()
        assert not draws.gray.any()
        assert not draws.sigma.any()
        assert within(draws.flip.sum(), 2000, 0.5)
    colors = torch.tensor([[255, 0, 0], [1, 2, 3], [200, 255, 128]], dtype=torch.uint8)
    batch = colors[:, :, None, None].expand(-1, -1, 50, 70)
    x = Views("crop", size=40)(batch, view_keys(0, 0, range(3)))
    expected = (colors.float() / 255)[None, :, :, None, None].expand(2, -1, -1, 40, 40)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policy": "simcrl"}, "Did you mean 'simclr'"),
        ({"interpolation": "bicubical"}, "Did you mean 'bicubic'"),
        ({"size": 0}, "size must lie between"),
        ({"size": -32}, "size must lie between"),
        ({"views": 0}, "views must lie between"),
        ({"strength": -1.0}, "strength must lie between"),
        ({"strength": 10.0}, "strength must lie between"),
        ({"blur": 1.5}, "blur must lie between"),
        ({"blur": math.nan}, "blur must lie between"),
        ({"min_area": 8.0}, "min_area must lie between"),
        ({"min_area": -0.1}, "min_area must lie between"),
    ],
)
def test_a_setting_out_of_range_is_answered_in_one_line(settings: dict[str, object], words: str) -> None:
    with pytest.raises(StepclrError, match=words) as error:
        Views(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("batch", "n_keys", "words"),
    [
        (made_up(3, 8, 8), 2, "3 images but 2 keys"),
        (made_up(3, 8, 8)[:0], 0, "no images"),
        ([], 0, "no images"),
        (made_up(3, 8, 8).float(), 3, "uint8"),
        (made_up(3, 8, 8)[:, :1], 3, r"\[1, 8, 8\]"),
        ([made_up(1, 8, 8)[0], made_up(1, 8, 8)[0].permute(1, 2, 0)], 2, r"\[8, 8, 3\]"),
        (made_up(1, 8, 8)[0], 3, r"not torch.uint8 \[8, 8\]"),
        (made_up(3, 8, 8)[:, :, :0], 3, r"\[3, 0, 8\]"),
    ],
    ids=["keys", "empty tensor", "empty list", "floats", "gray", "channels last", "one image", "no rows"],
)
def test_images_that_cannot_be_used_are_answered_in_one_line(batch: ImageBatch, n_keys: int, words: str) -> None:
    with pytest.raises(StepclrError, match=words) as error:
        Views("simclr", size=32)(batch, view_keys(0, 0, range(n_keys)))
    assert "\n" not in str(error.value)


# The sheet.


@pytest.mark.parametrize("equal", [True, False], ids=["a batch", "images of unequal sizes"])
def test_a_sheet_has_a_row_an_image_the_original_and_its_pairs(equal: bool) -> None:
    batch: ImageBatch = (
        made_up(3, 40, 40) if equal else [made_up(1, 40, 20)[0], made_up(1, 80, 80)[0], made_up(1, 9, 18)[0]]
    )
    views = Views("simclr", size=32)
    image = sheet(batch, views, seed=4, pairs=3)
    assert image.mode == "RGB"
    assert image.size == (7 * 34 + 2, 3 * 34 + 2)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert (pixels[:, :2] == 255).all()  # white between the cells

    def cell(row: int, column: int) -> Tensor:
        return pixels[:, 2 + 34 * row :, 2 + 34 * column :][:, :32, :32].float() / 255

    for epoch in range(3):
        for v, view in enumerate(views(batch, view_keys(4, epoch, range(3)))):
            for row in range(3):
                torch.testing.assert_close(cell(row, 1 + 2 * epoch + v), view[row], rtol=0, atol=1.01 / 255)
    for row, original in enumerate(batch):
        height, width = (round(side * 32 / max(original.shape[1:])) for side in original.shape[1:])
        fitted = tv.resize(original, [height, width], antialias=True).float() / 255
        torch.testing.assert_close(cell(row, 0)[:, :height, :width], fitted, rtol=0, atol=1.01 / 255)
        assert (cell(row, 0)[:, height:] == 1).all()
        assert (cell(row, 0)[:, :, width:] == 1).all()
