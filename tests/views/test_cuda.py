"""The CUDA renderer against the reference, on the same parameters; on a GPU, also that the host never waits."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_views import made_up, real_images
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from stepclr import Views, view_keys
from stepclr.device import to_device
from stepclr.views import cuda
from stepclr.views.cuda import pack_params, render_cuda, render_packed
from stepclr.views.ops import GrayscaleParams, JitterParams, OpParams
from stepclr.views.reference import Interpolation, render_reference
from stepclr.views.sample import ViewParams

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
]
CLOSE = 1 / 255  # what is promised
SAME = 1e-4  # what float32 keeps of it on a CPU


def all_ops(policy: str, size: int, **options: object) -> Views:
    """Views with every op of the policy at full strength: at small sizes some are off by default."""
    strong = {} if policy == "crop" else {"strength": 1.0, "blur": 0.5}
    return Views(policy, size, **{**strong, **options})  # type: ignore[arg-type]


def farthest(images: Tensor | list[Tensor], views: Views, seed: int = 0, device: str = "cpu") -> float:
    """The largest difference from the reference in any number of any view."""
    draws = views.sample_params(images, view_keys(seed, 0, range(len(images))))
    there = images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]
    made = render_cuda(there, draws, views.size, views.interpolation)
    expected = torch.stack([render_reference(images, view, views.size, views.interpolation) for view in draws])
    assert made.shape == expected.shape
    return float((made.cpu() - expected).abs().max())


def numbers_of(images: Tensor, views: Views) -> tuple[Tensor, cuda.Kinds]:
    draws = views.sample_params(images, view_keys(0, 0, range(len(images))))
    return to_device(pack_params(draws), images.device), tuple(type(drawn) for drawn in draws[0].ops)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("policy", ["simclr", "simaugment", "crop"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("source", "size"), [("cifar10", 28), ("cifar10", 32), ("imagenette", 96)])
def test_real_images_look_as_the_reference_renders_them(
    shared_data: Path, device: str, policy: str, interpolation: Interpolation, source: str, size: int
) -> None:
    images = real_images(shared_data, source)
    views = all_ops(policy, size, interpolation=interpolation)
    assert farthest(images, views, device=device) < (SAME if device == "cpu" else CLOSE)


@pytest.mark.parametrize("policy", ["simclr", "simaugment", "crop"])
def test_made_up_images_in_many_draws_and_any_number_of_views(policy: str) -> None:
    for seed, (views, height, width) in enumerate([(1, 40, 31), (2, 9, 57), (4, 64, 64)]):
        assert farthest(made_up(40, height, width), all_ops(policy, 24, views=views), seed) < SAME


@pytest.mark.parametrize("size", [4, 5, 10, 20, 30])
def test_tiny_views_whose_blur_has_one_tap_or_three(size: int) -> None:
    assert farthest(made_up(24, 13, 17), all_ops("simaugment", size)) < SAME


def test_views_of_unlike_strength() -> None:
    assert farthest(made_up(16, 40, 40), Views("simclr", 32, strength=(0.2, 1.5), blur=1.0)) < SAME


def test_images_whose_sizes_differ() -> None:
    images = [made_up(1, 10 + 7 * k, 90 - 8 * k)[0] for k in range(9)]
    assert farthest(images, all_ops("simclr", 32)) < SAME


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment", "stacked"])
def test_policies_of_tables_are_rendered_by_the_reference(policy: str) -> None:
    assert farthest(made_up(8, 40, 40), Views(policy, 32)) == 0


def test_what_was_not_drawn_leaves_a_view_exactly_as_it_was() -> None:
    images = made_up(12, 50, 40)
    views = all_ops("simaugment", 32)
    draws = views.sample_params(images, view_keys(0, 0, range(12)))
    bare = [replace(view, ops=()) for view in draws]
    none = [replace(view, ops=tuple(without(drawn) for drawn in view.ops)) for view in draws]
    expected = render_cuda(images, bare, 32)
    assert torch.equal(render_cuda(images, none, 32), expected)
    assert not torch.equal(render_cuda(images, draws, 32), expected)


def without(drawn: OpParams) -> OpParams:
    """The same parameters, with no op to be applied."""
    for name in ("jitter", "gray", "warp", "sigma"):
        if hasattr(drawn, name):
            return replace(drawn, **{name: np.zeros_like(getattr(drawn, name))})
    raise AssertionError(drawn)


def wrong_order(draws: ViewParams) -> ViewParams:
    return replace(draws, ops=tuple(replace(d, order=d.order[:, ::-1]) if isinstance(d, JitterParams) else d
                                    for d in draws.ops))  # fmt: skip


def wrong_flip(draws: ViewParams) -> ViewParams:
    return replace(draws, flip=~draws.flip)


def wrong_gray(draws: ViewParams) -> ViewParams:
    return replace(
        draws, ops=tuple(GrayscaleParams(~d.gray) if isinstance(d, GrayscaleParams) else d for d in draws.ops)
    )


@pytest.mark.parametrize("wrong", [wrong_order, wrong_flip, wrong_gray])
def test_other_parameters_are_told_apart_by_far(wrong: Callable[[ViewParams], ViewParams]) -> None:
    images = made_up(12, 50, 40)
    draws = all_ops("simclr", 32).sample_params(images, view_keys(0, 0, range(12)))
    made = render_cuda(images, draws, 32)
    other = render_cuda(images, [wrong(view) for view in draws], 32)
    assert float((made - other).abs().max()) > 10 * CLOSE


def test_a_view_does_not_depend_on_the_batch_it_is_in() -> None:
    images = made_up(16, 40, 40)
    views = all_ops("simaugment", 32)
    draws = views.sample_params(images, view_keys(0, 0, range(16)))
    alone = [ViewParams(d.box[3:4], d.flip[3:4], tuple(part(o, 3) for o in d.ops)) for d in draws]
    together = render_cuda(images, draws, 32)
    assert float((render_cuda(images[3:4], alone, 32)[:, 0] - together[:, 3]).abs().max()) < 1e-5


def part(drawn: OpParams, row: int) -> OpParams:
    return replace(drawn, **{name: value[row : row + 1] for name, value in vars(drawn).items()})


def test_autocast_around_it_changes_nothing() -> None:
    images = made_up(6, 40, 40)
    views = all_ops("simclr", 32)
    numbers, kinds = numbers_of(images, views)
    with torch.autocast("cpu", torch.bfloat16):
        inside = render_packed(images, numbers, kinds, 32, "bicubic")
    assert torch.equal(inside, render_packed(images, numbers, kinds, 32, "bicubic"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_operation_has_a_shape_that_depends_on_what_was_drawn_or_mixes_devices(device: str) -> None:
    """Fake tensors have a shape and a device but no values: anything that looks at a value fails."""
    if device == "cuda" and not torch.backends.cuda.is_built():
        pytest.skip("this torch knows no CUDA")
    every = "simaugment+VerticalFlip+Rotate+Equalize+RandomErasing"
    numbers, kinds = numbers_of(made_up(6, 40, 40), all_ops(every, 32))
    with FakeTensorMode():
        images = torch.empty(6, 3, 40, 40, dtype=torch.uint8, device=device)
        there = torch.empty(numbers.shape, dtype=numbers.dtype, device=device)
        made = render_packed(images, there, kinds, 32, "bicubic")
        assert (made.shape, made.device.type) == ((2, 6, 3, 32, 32), device)
        with pytest.raises(DynamicOutputShapeException):
            there.nonzero()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(images, size of the views) of each batch that a GPU would render by compiled code."""
    batches: list[tuple[int, int]] = []

    def stand_in(images: Tensor, numbers: Tensor, kinds: cuda.Kinds, size: int, *rest: object) -> Tensor:
        batches.append((len(images), size))
        return render_packed(images, numbers, kinds, size, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cuda, "compiles", lambda _: True)
    monkeypatch.setattr(cuda, "_compiled", lambda: stand_in)
    monkeypatch.setattr(cuda, "_batches_of", type(cuda._batches_of)())
    monkeypatch.setattr(cuda, "_frequent", set())
    return batches


def test_a_batch_is_rendered_by_compiled_code_when_its_like_comes_again_and_again(
    compiled: list[tuple[int, int]],
) -> None:
    for n in (8, 8, 5, 8, 8, 5):
        assert farthest(made_up(n, 40, 40), all_ops("simclr", 24)) < SAME
    assert compiled == [(8, 24), (8, 24)]


def test_views_of_another_size_or_policy_are_others(compiled: list[tuple[int, int]]) -> None:
    images = made_up(4, 40, 40)
    for policy, size in (("simclr", 12), ("simclr", 12), ("simclr", 24), ("crop", 12), ("simclr", 12)):
        assert farthest(images, all_ops(policy, size)) < SAME
    assert compiled == [(4, 12)]


def test_no_more_is_compiled_than_torch_allows_of_one_function(compiled: list[tuple[int, int]]) -> None:
    images = made_up(2, 9, 9)
    for size in range(4, 4 + 2 * cuda.MAX_SHAPES):
        for _ in range(cuda.COMPILE_FROM):
            farthest(images, all_ops("crop", size))
    assert len(compiled) == cuda.MAX_SHAPES < torch._dynamo.config.recompile_limit


COMPILED = """
import sys, torch
from stepclr import Views, view_keys
from stepclr.device import to_device
from stepclr.views.cuda import pack_params, render_packed
images = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
images = images.to(sys.argv[1])
views = Views("simaugment+VerticalFlip+Rotate+RandomErasing", 24, strength=1.0, blur=0.5)
draws = views.sample_params(images, view_keys(0, 0, range(3)))
numbers, kinds = to_device(pack_params(draws), images.device), tuple(type(drawn) for drawn in draws[0].ops)
expected = render_packed(images, numbers, kinds, 24, "bicubic")
made = torch.compile(render_packed, dynamic=False, fullgraph=True)(images, numbers, kinds, 24, "bicubic")
assert (made - expected).abs().max() < 1e-4, (made - expected).abs().max()
"""


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_it_compiles_whole_and_gives_the_same(device: str) -> None:
    # In a process of its own: the shape checks that the tests switch on cannot be compiled.
    subprocess.run([sys.executable, "-c", COMPILED, device], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device to record a graph of")
@pytest.mark.parametrize("policy", ["simclr", "simaugment", "crop"])
def test_a_cuda_graph_can_be_recorded_so_nothing_waits_for_the_device(policy: str) -> None:
    images = made_up(8, 40, 40).cuda()
    numbers, kinds = numbers_of(images, all_ops(policy, 32))
    expected = render_packed(images, numbers, kinds, 32, "bicubic")  # and a warm-up: cuBLAS allocates
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = render_packed(images, numbers, kinds, 32, "bicubic")
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(recorded, expected, rtol=0, atol=1e-5)
