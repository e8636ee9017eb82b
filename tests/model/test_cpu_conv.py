"""The other ways are the same convolutions: small integers are exact in bfloat16, so equal is equal."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

import stepclr
from stepclr.device import amd_family
from stepclr.model import cpu_conv
from stepclr.model.cpu_conv import SmallConv2d


def integers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).float()


def convolution(side: int, stride: int, kernel: int, bias: bool) -> SmallConv2d:
    made = SmallConv2d(nn.Conv2d(3, 5, kernel, stride, kernel // 2, bias=bias))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(integers(*parameter.shape, seed=side))
    return made


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("side", "stride", "kernel"),
    [  # fewer positions than taps, few positions, then as many as the weights' gradient takes by patches
        *((2, 2, 3), (1, 2, 3), (4, 1, 5), (4, 2, 5)),
        *((1, 1, 3), (2, 1, 3), (1, 1, 2), (4, 2, 2), (3, 2, 3), (4, 2, 3), (6, 2, 3), (4, 3, 3)),
        *((10, 2, 3), (11, 2, 3), (14, 3, 3)),
    ],
)
@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("limits", [cpu_conv.INTEL, cpu_conv.ZEN4, replace(cpu_conv.ZEN5, wide=1)])
def test_value_and_gradients_are_the_convolutions(
    side: int,
    stride: int,
    kernel: int,
    bias: bool,
    images: int,
    autocast: bool,
    limits: cpu_conv.Limits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_conv, "limits", lambda: limits)
    module = convolution(side, stride, kernel, bias)
    x = integers(images, 3, side, side + 1, seed=7).requires_grad_()
    expected = F.conv2d(x, module.weight, module.bias, stride, kernel // 2)
    push = integers(*expected.shape, seed=9)
    wanted = torch.autograd.grad(expected, [x, *module.parameters()], push)

    monkeypatch.setattr(nn.Conv2d, "forward", None)  # the plain way is closed
    if not autocast:
        module.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = module(x if autocast else x.bfloat16())
    assert torch.equal(y.float(), expected)
    found = torch.autograd.grad(y, [x, *module.parameters()], push.to(y.dtype))
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours.float(), theirs)


@pytest.mark.parametrize(("side", "kernel"), [(4, 3), (5, 3), (2, 5), (5, 5)])
def test_patches_alone_have_the_value_and_gradients(side: int, kernel: int) -> None:
    x, weight = integers(4, 3, side, side + 1, seed=7), integers(5, 3, kernel, kernel, seed=9)
    x.requires_grad_(), weight.requires_grad_()
    pad = kernel // 2
    expected = F.conv2d(x, weight, None, 1, pad)
    push = integers(*expected.shape, seed=9)
    to_x, to_weight = torch.autograd.grad(expected, [x, weight], push)
    seen, taps, g = (tensor.detach().bfloat16() for tensor in (x, weight, push))
    assert torch.equal(cpu_conv.value_by_patches(seen, taps, 1, pad), expected.bfloat16())
    assert torch.equal(cpu_conv.to_x_by_patches(g, taps, pad), to_x.bfloat16())
    assert torch.equal(cpu_conv.to_weight_by_patches(g, seen, kernel, 1, pad), to_weight.bfloat16())


def test_large_maps_and_float32_go_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for way in ("_AsLinear", "_ByPatches"):
        monkeypatch.setattr(cpu_conv, way, torch.autograd.Function)  # the short ways are closed
    module = convolution(2, 1, 3, False)
    tiny, large = integers(4, 3, 2, 2, seed=0), integers(4, 3, 7, 7, seed=0)
    module(tiny)
    with torch.autocast("cpu", torch.bfloat16):
        module(large)
        with pytest.raises(NotImplementedError):
            module(tiny)


@pytest.mark.parametrize("side", [2, 3, 4])
def test_an_empty_batch_and_a_kernel_larger_than_its_map_are_as_in_torch(side: int) -> None:
    padded, bare = convolution(side, 1, 3, True), SmallConv2d(nn.Conv2d(3, 5, 5))
    with torch.autocast("cpu", torch.bfloat16):
        y = padded(torch.zeros(0, 3, side, side, requires_grad=True))
        assert y.shape == (0, 5, side, side)
        y.sum().backward()
        assert padded.weight.grad is not None
        assert not padded.weight.grad.any()
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            bare(torch.zeros(4, 3, side, side))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (1, 5), (2, 5), (1, 7), (3, 2)])
@pytest.mark.parametrize("same", [False, True], ids=["padded", "padded as TensorFlow does"])
def test_a_depthwise_convolution_has_the_value_and_gradients(stride: int, kernel: int, bias: bool, same: bool) -> None:
    kind = Conv2dSame if same else nn.Conv2d
    plain = kind(6, 6, kernel, stride, 0 if same else kernel // 2, groups=6, bias=bias)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(integers(*parameter.shape, seed=kernel))
    x = integers(3, 6, 9, 8, seed=7).requires_grad_()
    expected = plain(x)
    push = integers(*expected.shape, seed=9)
    wanted = torch.autograd.grad(expected, [x, *plain.parameters()], push)

    network = nn.Sequential(plain)
    with cpu_conv.cpu_convolutions(network):
        assert (type(network[0]) is type(plain)) == ((stride, kernel) == (1, 3))  # oneDNN is quick there
        assert torch.equal(network(x), expected)  # float32: the plain way
        with torch.autocast("cpu", torch.bfloat16):
            y = network(x)
        found = torch.autograd.grad(y, [x, *plain.parameters()], push.bfloat16())
    assert network[0] is plain
    assert y.dtype == torch.bfloat16
    assert torch.equal(y.float(), expected)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs.bfloat16().float())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_in_memory_makes_no_difference(layout: torch.memory_format) -> None:
    module = convolution(4, 1, 3, False).to(memory_format=layout)
    x = integers(4, 3, 4, 4, seed=7).to(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x).float(), F.conv2d(x, module.weight, None, 1, 1).float())


def test_a_resnet_takes_it_where_it_can_and_keeps_its_weights() -> None:
    encoder = stepclr.build_encoder("resnet18", "small-stride2", size=32)
    before, names, printed = list(encoder.modules()), list(encoder.state_dict()), str(encoder)
    with cpu_conv.cpu_convolutions(encoder):
        kinds = {name: type(module) for name, module in encoder.named_modules() if isinstance(module, nn.Conv2d)}
        assert kinds["body.layer4.1.conv2"] is SmallConv2d
        assert kinds["body.layer4.0.downsample.0"] is nn.Conv2d  # 1x1: nothing to gain
        assert list(encoder.state_dict()) == names
        with torch.no_grad():
            encoder.get_parameter("body.layer4.1.conv2.weight").fill_(3.0)
    assert all(now is then for now, then in zip(encoder.modules(), before, strict=True))
    assert str(encoder) == printed
    assert bool((encoder.get_parameter("body.layer4.1.conv2.weight") == 3.0).all())
    grouped = stepclr.build_encoder("resnext50_32x4d", size=64)
    with cpu_conv.cpu_convolutions(grouped):
        assert type(grouped.get_submodule("body.layer1.0.conv2")) is nn.Conv2d


@pytest.mark.parametrize(
    ("cpuinfo", "limits"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\n", cpu_conv.ZEN4),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\n", cpu_conv.ZEN5),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\n", cpu_conv.INTEL),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", cpu_conv.INTEL),
    ],
    ids=["Zen 4", "Zen 5", "Intel", "another"],
)
def test_the_processor_decides_which_way_is_taken(
    cpuinfo: str, limits: cpu_conv.Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathlib.Path.read_text", lambda _: cpuinfo)
    monkeypatch.setattr(cpu_conv, "amd_family", amd_family.__wrapped__)  # what it remembers is this machine's
    assert cpu_conv.limits() is limits
