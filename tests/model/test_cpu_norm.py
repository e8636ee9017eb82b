"""The kernels are BatchNorm, the addition and ReLU: to 1e-10 in float64, and within the rounding of bfloat16."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import stepclr
from stepclr.machine_code import numba_is_missing
from stepclr.model import cpu_norm
from stepclr.model.cpu_conv import cpu_convolutions
from stepclr.model.cpu_norm import FusedNorm, cpu_norms, fused

pytestmark = pytest.mark.skipif(bool(numba_is_missing()), reason="Numba is missing")
HALF_ULP = 2.0**-8  # of bfloat16, relative


@pytest.fixture
def small_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels take maps of any size, also in float64, in many pieces."""
    monkeypatch.setattr(cpu_norm, "TYPES", (torch.bfloat16, torch.float64))
    monkeypatch.setattr(cpu_norm, "LEAST", 1)
    monkeypatch.setattr(cpu_norm, "PIECE", 1000)


def maps(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Channels of unlike means and deviations."""
    draw = torch.Generator().manual_seed(seed)
    means, deviations = torch.randn(2, shape[1], 1, 1, generator=draw)
    x = torch.randn(shape, generator=draw) * deviations + 5 * means
    return x.to(dtype, memory_format=torch.channels_last).requires_grad_()


def norm(channels: int, seed: int) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for tensor in (made.weight, made.bias, made.running_mean):
            assert tensor is not None
            nn.init.normal_(tensor)
    return made


def by_torch(x: Tensor, layer: nn.BatchNorm2d, shortcut: Tensor | None, relu: bool) -> Tensor:
    y: Tensor = layer(x)
    y = y if shortcut is None else y + shortcut
    return y.relu() if relu else y


def by_kernels(x: Tensor, layer: nn.BatchNorm2d, shortcut: Tensor | None, relu: bool) -> Tensor:
    return fused(x, layer, shortcut, 0.0 if relu else -np.inf)


Way = Callable[[Tensor, nn.BatchNorm2d, Tensor | None, bool], Tensor]


def results(way: Way, layer: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None, relu: bool = True) -> list[Tensor]:
    """y, its gradients, and the running statistics after it."""
    y = way(x, layer, shortcut, relu)
    inputs = [x, layer.weight, layer.bias] + ([] if shortcut is None else [shortcut])
    push = maps(*y.shape, seed=9, dtype=torch.bfloat16).detach().to(y.dtype)
    gradients = torch.autograd.grad(y, inputs, push)
    return [y.detach(), *gradients, *(buffer.clone() for buffer in layer.buffers())]


CASES = [pytest.param(False, False, id="norm"), pytest.param(False, True, id="norm and ReLU")]
CASES += [pytest.param(True, True, id="norm, shortcut and ReLU")]


@pytest.mark.usefixtures("small_maps")
@pytest.mark.parametrize(("added", "relu"), CASES)
@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (4, 1, 5, 3), (5, 24, 7, 6), (3, 33, 11, 13)])
def test_it_is_torchs_in_float64(added: bool, relu: bool, shape: tuple[int, ...]) -> None:
    x = maps(*shape, seed=1, dtype=torch.float64)
    shortcut = maps(*shape, seed=2, dtype=torch.float64) if added else None
    ours, theirs = norm(shape[1], 3).double(), norm(shape[1], 3).double()
    found = results(by_kernels, ours, x, shortcut, relu)
    wanted = results(by_torch, theirs, x, shortcut, relu)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("small_maps")
@pytest.mark.parametrize(("added", "relu"), CASES)
def test_in_bfloat16_it_is_rounded_once(added: bool, relu: bool) -> None:
    shape = (5, 24, 17, 16)
    x = maps(*shape, seed=1, dtype=torch.bfloat16)
    shortcut = maps(*shape, seed=2, dtype=torch.bfloat16) if added else None
    found = results(by_kernels, norm(24, 3), x, shortcut, relu)
    exact = [None if each is None else each.detach().double().requires_grad_() for each in (x, shortcut)]
    assert exact[0] is not None
    wanted = results(by_torch, norm(24, 3).double(), exact[0], exact[1], relu)
    for one, other in zip(found, wanted, strict=True):
        rounding = HALF_ULP if one.dtype == torch.bfloat16 else 1e-5
        # Where terms cancel, what counts is their size: that of the largest numbers.
        torch.testing.assert_close(one.double(), other.double(), rtol=rounding, atol=1e-5 * float(other.abs().max()))


@pytest.mark.usefixtures("small_maps")
def test_a_mean_far_from_zero_costs_no_digits() -> None:
    x = maps(8, 4, 16, 16, seed=1, dtype=torch.bfloat16).detach() / 64 + 100
    found, layer = norm(4, 3), norm(4, 3).double()
    fused(x, found, None, 0.0), layer(x.double())
    assert found.running_var is not None
    torch.testing.assert_close(found.running_var.double(), layer.running_var, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("small_maps")
def test_the_number_of_threads_changes_no_bit() -> None:
    x, shortcut = (maps(5, 24, 17, 16, seed=seed, dtype=torch.bfloat16) for seed in (1, 2))
    before, of_each = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            of_each.append(results(by_kernels, norm(24, 3), x, shortcut))
    finally:
        torch.set_num_threads(before)
    for found in of_each[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found, of_each[0], strict=True))


@pytest.mark.usefixtures("small_maps")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    x = maps(4, 3, 8, 8, seed=1, dtype=torch.bfloat16).detach()
    x[2, 1, 3, 3] = bad
    x.requires_grad_()
    found, wanted = (results(way, norm(3, 3), x, None) for way in (by_kernels, by_torch))
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())


@pytest.mark.usefixtures("small_maps")
@pytest.mark.parametrize(
    ("network", "stem", "size"),
    [("resnet18", "imagenet", 48), ("resnet50x0.25", "small", 16), ("resnet10", "small", 12)],
)
@pytest.mark.parametrize("recomputed", [False, True])
def test_a_resnet_is_the_same_network_in_float64(network: str, stem: str, size: int, recomputed: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = stepclr.build_encoder(network, stem, size=size).double().train().to(memory_format=torch.channels_last)
        for layer in plain.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight)  # timm begins some with 0, where nothing comes back
        x = torch.rand(4, 3, size, size, dtype=torch.float64).to(memory_format=torch.channels_last)
    ours = deepcopy(plain)
    calls: list[int] = []
    forward = FusedNorm.forward

    def counted(*given: Any) -> Tensor:
        calls.append(1)
        return forward(*given)

    def trained(encoder: nn.Module) -> dict[str, Tensor]:
        if recomputed:
            encoder.body.set_grad_checkpointing(True)  # type: ignore[union-attr, operator]
        h = encoder(x)
        (h * h.detach().cos()).sum().backward()
        gradients = {f"gradient of {name}": each.grad for name, each in encoder.named_parameters()}
        return {"h": h.detach(), **gradients, **dict(encoder.named_buffers())}

    wanted = trained(plain)
    with pytest.MonkeyPatch.context() as patch, cpu_norms(ours):
        patch.setattr(FusedNorm, "forward", staticmethod(counted))
        found = trained(ours)
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules())
    assert len(calls) >= norms
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-8 * float(value.abs().max()), msg=name)


def test_modules_are_put_back_and_names_stay() -> None:
    encoder = stepclr.build_encoder("resnet18", "small", size=32)
    before, names, printed = list(encoder.modules()), list(encoder.state_dict()), str(encoder)
    with cpu_norms(encoder), cpu_convolutions(encoder):
        kinds = {type(module).__name__ for module in encoder.modules()}
        assert {"CpuResNet", "CpuBasicBlock", "CpuBatchNorm2d", "SmallConv2d"} < kinds
        assert list(encoder.state_dict()) == names
        with torch.no_grad():
            encoder.get_parameter("body.layer4.1.bn2.weight").fill_(3.0)
    assert all(now is then for now, then in zip(encoder.modules(), before, strict=True))
    assert str(encoder) == printed
    assert bool((encoder.get_parameter("body.layer4.1.bn2.weight") == 3.0).all())


def test_a_block_that_does_more_stays_as_it_is() -> None:
    attentive = stepclr.build_encoder("seresnet18", size=32)
    with cpu_norms(attentive):
        assert type(attentive.get_submodule("body.layer1.0")).__name__ == "BasicBlock"
    watched = stepclr.build_encoder("resnet18", size=32)
    seen: list[Tensor] = []
    watched.get_submodule("body.layer2.0.bn1").register_forward_hook(lambda *given: seen.append(given[2]))
    with cpu_norms(watched):
        watched(torch.rand(2, 3, 32, 32))
        assert type(watched.get_submodule("body.layer2.0")).__name__ == "BasicBlock"
        assert type(watched.get_submodule("body.layer2.1")).__name__ == "CpuBasicBlock"
    assert len(seen) == 1

    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrize.register_parametrization(watched.get_submodule("body.layer3.0.bn1"), "weight", Doubled())
    with cpu_norms(watched):
        assert type(watched.get_submodule("body.layer3.0")).__name__ == "BasicBlock"


def averaging_all(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    layer.momentum = None
    return x


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda _, x: x.float(), id="float32"),
        pytest.param(lambda layer, x: (layer.eval(), x)[1], id="eval mode"),
        pytest.param(lambda _, x: x.contiguous(), id="channels first"),
        pytest.param(lambda _, x: x[:1], id="few maps"),
        pytest.param(averaging_all, id="an average of all batches"),
    ],
)
def test_everything_else_goes_the_plain_way(
    other: Callable[[nn.BatchNorm2d, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = nn.Sequential(nn.BatchNorm2d(32))
    x = maps(16, 32, 32, 32, seed=1, dtype=torch.bfloat16).detach()
    with cpu_norms(layers):
        layer = layers[0]
        assert isinstance(layer, nn.BatchNorm2d)
        monkeypatch.setattr(FusedNorm, "forward", None)  # the other way is closed
        with pytest.raises(TypeError):
            layer(x)
        twin = deepcopy(layer)
        given, same = other(layer, x), other(twin, x)
        assert torch.equal(layer(given), nn.BatchNorm2d.forward(twin, same))


def test_a_step_compiles_nothing_more() -> None:
    encoder = stepclr.build_encoder("resnet10x0.5", "small", size=32).train().to(memory_format=torch.channels_last)
    known: list[Any] = [list(kernel.signatures) for kernel in cpu_norm.kernels()]  # type: ignore[attr-defined]
    with cpu_norms(encoder), torch.autocast("cpu", torch.bfloat16):
        encoder(torch.rand(16, 3, 32, 32).to(memory_format=torch.channels_last)).sum().backward()
    assert [kernel.signatures for kernel in cpu_norm.kernels()] == known  # type: ignore[attr-defined]


def test_a_run_in_bfloat16_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"encoder": "resnet10x0.5", "stem": "small", "size": 32, "precision": "bf16"}
    settings |= {"batch_size": 16, "limit": 32, "epochs": 2, "progress": False}
    whole = stepclr.pretrain("sample:unlabeled", tmp_path / "whole", **settings)
    forward, calls = FusedNorm.forward, [0]

    def killed(*given: Any) -> Tensor:
        calls[0] += 1
        if calls[0] > 25:  # in the third of four steps
            raise RuntimeError("killed")
        return forward(*given)

    with monkeypatch.context() as patch:
        patch.setattr(FusedNorm, "forward", staticmethod(killed))
        with pytest.raises(RuntimeError, match="killed"):
            stepclr.pretrain("sample:unlabeled", tmp_path / "run", **settings)
    resumed = stepclr.pretrain("sample:unlabeled", tmp_path / "run", **settings, resume=True)
    states = [stepclr.load_encoder(run.folder).state_dict() for run in (whole, resumed)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
