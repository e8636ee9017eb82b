"""The short way over tiny maps is the same convolution: small integers are exact in bfloat16, so equal is equal."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stepclr
from stepclr.model import tiny_maps
from stepclr.model.tiny_maps import TinyMapConv2d


def integers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).float()


def convolution(side: int, stride: int, kernel: int, bias: bool) -> TinyMapConv2d:
    made = TinyMapConv2d(3, 5, kernel, stride, kernel // 2, bias=bias)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(integers(*parameter.shape, seed=side))
    return made


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("side", "stride", "kernel"), [(2, 1, 3), (4, 2, 3), (3, 2, 3), (1, 1, 3), (2, 1, 5), (4, 3, 3)]
)
def test_value_and_gradients_are_the_convolutions(
    side: int, stride: int, kernel: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = convolution(side, stride, kernel, bias)
    x = integers(4, 3, side, side, seed=7).requires_grad_()
    expected = F.conv2d(x, module.weight, module.bias, stride, kernel // 2)
    push = integers(*expected.shape, seed=9)
    wanted = torch.autograd.grad(expected, [x, *module.parameters()], push)

    monkeypatch.setattr(tiny_maps, "LEAST", 1)
    monkeypatch.setattr(nn.Conv2d, "forward", None)  # the plain way is closed
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert torch.equal(y.float(), expected)
    for ours, theirs in zip(torch.autograd.grad(y, [x, *module.parameters()], push.to(y.dtype)), wanted, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("side", "stride", "kernel"), [(6, 1, 3), (5, 1, 5), (12, 2, 3), (7, 2, 3), (4, 1, 3), (2, 1, 3), (9, 3, 3)]
)
def test_tap_by_tap_the_gradients_are_the_convolutions(
    side: int, stride: int, kernel: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = convolution(side, stride, kernel, bias)
    x = integers(4, 3, side, side, seed=7).requires_grad_()
    expected = F.conv2d(x, module.weight, module.bias, stride, kernel // 2)
    push = integers(*expected.shape, seed=9)
    wanted = torch.autograd.grad(expected, [x, *module.parameters()], push)
    monkeypatch.setattr(nn.Conv2d, "forward", None)  # the plain way is closed
    monkeypatch.setattr(tiny_maps, "_taps", None)  # and that of one matrix
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert torch.equal(y.float(), expected)
    for ours, theirs in zip(torch.autograd.grad(y, [x, *module.parameters()], push.to(y.dtype)), wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_large_maps_float32_evaluation_and_small_batches_go_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_maps, "_taps", None)  # the short ways are closed
    monkeypatch.setattr(tiny_maps, "_TapByTap", None)
    module = convolution(2, 1, 3, False)
    tiny, large = integers(128, 3, 2, 2, seed=0), integers(4, 3, 7, 7, seed=0)
    module(tiny)
    with torch.autocast("cpu", torch.bfloat16):
        module(large)
        with torch.no_grad():
            module(tiny)
        with pytest.raises(TypeError):
            module(tiny)
        with pytest.raises(AttributeError):
            module(tiny[:3])


def test_a_resnet_takes_it_where_it_can_and_keeps_its_weights() -> None:
    encoder = stepclr.build_encoder("resnet18", "small-stride2", size=32)
    kinds = {name: type(module) for name, module in encoder.named_modules() if isinstance(module, nn.Conv2d)}
    assert kinds["body.layer4.1.conv2"] is TinyMapConv2d
    assert kinds["body.layer4.0.downsample.0"] is nn.Conv2d  # 1x1: nothing to gain
    assert list(encoder.body.state_dict())[:1] == ["conv1.weight"]
    grouped = stepclr.build_encoder("resnext50_32x4d", size=64)
    assert type(grouped.get_submodule("body.layer1.0.conv2")) is nn.Conv2d
