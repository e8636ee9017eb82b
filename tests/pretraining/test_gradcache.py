"""Cached gradients: a batch in parts has the gradient of the batch at once, on real images (the sample)."""

import math
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small import one_step, without_batch_statistics
from torch import Tensor, nn

import stepclr
from stepclr.config import PretrainConfig
from stepclr.distributed import ALONE
from stepclr.model.weights import is_finite
from stepclr.pretraining import gradcache
from stepclr.pretraining.checkpoint import checkpoints
from stepclr.pretraining.gradcache import simclr_step_in_parts
from stepclr.pretraining.model import SimCLR, build_model
from stepclr.pretraining.optim import build_optimizer
from stepclr.pretraining.resolve import resolve, views_of

CONFIG = PretrainConfig("test_resnet", stem="small-stride2", head="32-16", batch_size=22, epochs=1, precision="fp32")
N = 22  # in parts of 8: 8, 7 and 7


@pytest.fixture(scope="module")
def images() -> stepclr.ImageSet:
    return stepclr.open_images("sample:train", limit=N)


def step_of(
    images: stepclr.ImageSet,
    micro_batch: int | None,
    prepare: Callable[[nn.Module], object] = without_batch_statistics,
    pixels: Any = None,
    **options: Any,
) -> tuple[Tensor, Tensor, SimCLR]:
    """Loss, whole gradient and model of one training step of one seed."""
    config = resolve(replace(CONFIG, micro_batch=micro_batch, **options), images)
    torch.manual_seed(0)
    model = build_model(config, images).train()
    prepare(model.encoder)
    keys = stepclr.view_keys(0, 0, range(N))
    pixels = images.read(range(N)) if pixels is None else pixels
    labels = torch.from_numpy(images.labels)
    optimizer = build_optimizer(model, replace(config, lr=0.0))
    torch.manual_seed(1)
    loss, _ = one_step(model, optimizer, config, views_of(config), pixels, keys, labels)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), model


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "options",
    [{}, {"loss": "supcon"}, {"views": 4}, {"loss": "supcon", "views": 3}, {"loss": "cross-entropy"}],
    ids=str,
)
@pytest.mark.parametrize("micro_batch", [1, 8, 21])
def test_the_gradient_is_that_of_the_whole_batch(
    images: stepclr.ImageSet, micro_batch: int, options: dict[str, Any]
) -> None:
    loss, gradient, _ = step_of(images, None, **options)
    same_loss, same_gradient, _ = step_of(images, micro_batch, **options)
    torch.testing.assert_close(same_loss, loss, rtol=1e-6, atol=1e-6)
    assert distance(same_gradient, gradient) < 1e-5


def test_images_of_unequal_sizes_come_in_parts_too(images: stepclr.ImageSet) -> None:
    pixels = [image[:, : 28 - i % 5] for i, image in enumerate(images.read(range(N)))]
    _, gradient, _ = step_of(images, None, pixels=pixels)
    _, same, _ = step_of(images, 8, pixels=pixels)
    assert distance(same, gradient) < 1e-5


def test_batchnorm_sees_each_part_by_itself(images: stepclr.ImageSet) -> None:
    _, gradient, _ = step_of(images, None, prepare=lambda _: None)
    _, parted, _ = step_of(images, 8, prepare=lambda _: None)
    assert distance(parted, gradient) > 1e-3


def dropout_after_every_norm(encoder: nn.Module) -> None:
    encoder.set_submodule("body.act1", nn.Sequential(encoder.get_submodule("body.act1"), nn.Dropout(0.3)))


@pytest.mark.parametrize("prepare", [lambda _: None, dropout_after_every_norm], ids=["batchnorm", "dropout"])
@pytest.mark.parametrize("options", [{}, {"checkpoint_activations": True}], ids=str)
def test_the_second_pass_repeats_the_first(
    images: stepclr.ImageSet,
    prepare: Callable[[nn.Module], object],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {**options, "encoder": "resnet18"} if options else options  # test_resnet has no such way
    loss, gradient, model = step_of(images, 8, prepare, **options)
    monkeypatch.setattr(gradcache, "checkpoint", lambda encode, *rest, **_: encode(*rest))  # all in one graph
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        same_loss, same_gradient, other = step_of(images, 8, prepare, **options)
    assert torch.equal(loss, same_loss)
    assert distance(gradient, same_gradient) < 1e-6
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, other.get_buffer(name))


def representations(
    encoder: nn.Module, views: Callable[..., Tensor], pixels: Any, keys: Tensor, micro_batch: int
) -> tuple[Tensor, ...]:
    """h of each view, the encoder having seen the batch in parts."""
    step = partial(simclr_step_in_parts, micro_batch=micro_batch, world=ALONE)
    _, h = step(encoder, nn.Identity(), views, lambda z, _: z[0].sum(), pixels, keys, torch.zeros(len(keys)))
    return h


def test_running_statistics_move_once_a_step_by_the_mean_of_the_parts(images: stepclr.ImageSet) -> None:
    pixels, keys = images.read(range(N)), stepclr.view_keys(0, 0, range(N))
    assert isinstance(pixels, Tensor)
    norm = nn.BatchNorm2d(3).train()
    norm.running_mean.fill_(0.4)  # type: ignore[union-attr]

    encoder = nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (h,) = representations(encoder, lambda pixels, _: (pixels.float() / 255)[None], pixels, keys, 8)
    assert h.shape == (N, 3)
    means = [part.float().div(255).mean((0, 2, 3)) for part in (pixels[:8], pixels[8:15], pixels[15:])]
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, 0.9 * 0.4 + 0.1 * torch.stack(means).mean(0))
    assert norm.num_batches_tracked == 1


class Masked(nn.Module):
    """Buffers of other kinds, which no step moves."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("shown", torch.tensor([True, False]))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.norm(x).mean((2, 3))
        return h


class WithBuffers(nn.Module):
    """Buffers that cannot be written in place, or that have no floor."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 4)
        self.register_buffer("frequencies", torch.ones(3, dtype=torch.complex64))
        self.register_buffer("shared", torch.zeros(1).expand(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.mean((2, 3)))


def test_parts_leave_all_other_buffers_as_they_are(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 16, "micro_batch": 5, "limit": 32, "epochs": 1, "progress": False}
    net = WithBuffers()
    stepclr.pretrain("sample:unlabeled", tmp_path / "run", encoder=net, **options)
    assert torch.equal(net.get_buffer("frequencies").cpu(), torch.ones(3, dtype=torch.complex64))
    assert net.get_buffer("shared").tolist() == [0.0] * 4


class Counting(nn.Module):
    """Statistics whose tensors a forward pass replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.moving: Tensor
        self.register_buffer("moving", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.moving = 0.9 * self.moving + 0.1 * x.detach().mean((0, 2, 3))
        return x.mean((2, 3))


def test_statistics_of_a_module_that_replaces_them_move_once_a_step(images: stepclr.ImageSet) -> None:
    pixels, keys = images.read(range(N)), stepclr.view_keys(0, 0, range(N))
    assert isinstance(pixels, Tensor)
    encoder = Counting().train()
    representations(encoder, lambda pixels, _: (pixels.float() / 255)[None], pixels, keys, 8)
    means = [part.float().div(255).mean((0, 2, 3)) for part in (pixels[:8], pixels[8:15], pixels[15:])]
    torch.testing.assert_close(encoder.moving, 0.1 * torch.stack(means).mean(0))


def test_masks_of_a_module_of_ones_own_stay_as_they_are(images: stepclr.ImageSet) -> None:
    """They may be infinite; weights, statistics and what is not a number may not."""
    pixels, keys = images.read(range(N)), stepclr.view_keys(0, 0, range(N))
    assert isinstance(pixels, Tensor)
    encoder = Masked().train()
    representations(encoder, lambda pixels, _: (pixels.float() / 255)[None], pixels, keys, 8)
    state = encoder.state_dict()
    assert torch.equal(state["mask"], torch.tensor([0.0, -torch.inf]))
    assert state["norm.num_batches_tracked"] == 1
    assert is_finite(encoder)
    for name, value in (("mask", math.nan), ("norm.weight", math.inf), ("norm.running_var", math.inf)):
        before = state[name].clone()
        state[name][0] = value
        assert not is_finite(encoder), name
        state[name].copy_(before)


def test_under_autocast_the_gradients_of_parts_are_added_up_in_float32() -> None:
    torch.manual_seed(0)
    images, keys = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8), torch.arange(64)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 16))
    weight, push = encoder.get_parameter("1.weight"), torch.randn(64, 16)

    def views(images: Any, _: Tensor) -> Tensor:
        return (images.float() / 255)[None]

    with torch.autocast("cpu", torch.bfloat16):
        step = partial(simclr_step_in_parts, micro_batch=2, world=ALONE)
        loss, _ = step(encoder, nn.Identity(), views, lambda z, _: (z[0].float() * push).sum(), images, keys, keys)
    loss.backward()
    assert weight.grad is not None
    found = weight.grad.clone()

    weight.grad = None
    for part in torch.arange(64).split(2):
        with torch.autocast("cpu", torch.bfloat16):
            h = encoder(views(images[part], keys[part])[0])
        (h.float() * push[part]).sum().backward()
    torch.testing.assert_close(found, weight.grad, rtol=1e-5, atol=1e-5)


def test_the_memory_of_a_part_is_given_back(images: stepclr.ImageSet) -> None:
    """Between the two passes nothing of the encoder's graph is held: no saved tensor outlives its part."""
    alive: list[int] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            alive.append(sum(saved() is not None for saved in seen))
            y = (x * 2).relu()  # relu saves its output
            seen.append(weakref.ref(y))
            return y.mean((2, 3))

    seen: list[Any] = []
    network, weight = Watched(), torch.ones(1, requires_grad=True)
    pixels = images.read(range(N))

    keys = stepclr.view_keys(0, 0, range(N))
    (h,) = representations(network, lambda pixels, _: (pixels.float() * weight)[None], pixels, keys, 5)
    h.sum().backward()
    assert len(alive) == 10  # five parts, each twice
    assert max(alive) <= 1


SMALL: dict[str, Any] = {"encoder": "test_resnet", "stem": "small-stride2", "epochs": 2, "batch_size": 16}


@pytest.mark.parametrize("options", [{}, {"loss": "supcon", "views": 4}], ids=str)
def test_a_run_in_parts_resumes_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    settings = {**SMALL, **options, "limit": 40, "head": "32-16", "micro_batch": 5, "progress": False}
    whole = stepclr.pretrain("sample:train", tmp_path / "whole", **settings)
    assert whole.config.micro_batch == 5
    shutil.copytree(whole.folder, tmp_path / "run")
    (tmp_path / "run" / "encoder.safetensors").unlink()
    checkpoints(tmp_path / "run" / "checkpoint")[-1].unlink()
    again = stepclr.pretrain("sample:train", tmp_path / "run", resume=True, **settings)
    for name, tensor in whole.encoder().state_dict().items():
        assert torch.equal(tensor, again.encoder().state_dict()[name]), name


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_micro_batch_below_1_is_refused(images: stepclr.ImageSet) -> None:
    with pytest.raises(stepclr.StepclrError, match="micro_batch must be at least 1, not 0"):
        resolve(replace(CONFIG, micro_batch=0), images)
