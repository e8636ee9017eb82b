"""Views of images that are not RGB: the geometry of RGB's, and brightness and contrast of each channel by itself."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stepclr import StepclrError, Views, view_keys
from stepclr.views.color import ChannelJitter, ChannelJitterParams, channel_jitter
from stepclr.views.cuda import render_cuda
from stepclr.views.keys import uniforms
from stepclr.views.ops import Blur, ColorJitter, Grayscale, RandAugment

KEYS = view_keys(0, 0, range(200))


def images(channels: int, n: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(0, 256, (n, channels, 40, 50), generator=generator, dtype=torch.uint8)


def test_each_channel_is_changed_as_the_paper_changes_brightness_and_contrast() -> None:
    """Against loops in float64, in either order."""
    x = torch.rand(2, 4, 6, 6)
    factors = np.array([[[1.3, 0.4], [0.5, 1.7], [1.0, 1.0], [0.2, 0.3]]] * 2)
    params = ChannelJitterParams(np.array([True, True]), np.array([False, True]), factors)
    expected = x.double().clone()
    for n in range(2):
        for c in range(4):
            brightness, contrast = factors[n, c]
            for name in ("contrast", "brightness") if params.contrast_first[n] else ("brightness", "contrast"):
                channel = expected[n, c]
                if name == "brightness":
                    channel = channel * brightness
                else:
                    channel = channel * contrast + channel.mean() * (1 - contrast)
                expected[n, c] = channel.clamp(0, 1)
    channel_jitter(x, params)
    torch.testing.assert_close(x, expected.float(), atol=1e-5, rtol=0)


def test_the_factors_are_independent_and_uniform() -> None:
    """As many as three channels have elsewhere; the mutant: one number for all."""
    u = uniforms(view_keys(0, 0, range(20_000)).numpy(), 0, 6)
    params = ChannelJitter(4, strength=0.5).sample(u, 32)
    factors = params.factors.reshape(len(u), -1)
    assert factors.min() > 0.6
    assert factors.max() < 1.4
    np.testing.assert_allclose(factors.mean(0), 1, atol=0.01)
    np.testing.assert_allclose(factors.std(0), 0.8 / 12**0.5, rtol=0.02)
    correlation = np.corrcoef(factors.T) - np.eye(8)
    assert abs(correlation).max() < 0.03
    assert 0.78 < params.jitter.mean() < 0.82
    assert 0.48 < params.contrast_first.mean() < 0.52


@pytest.mark.parametrize("channels", [1, 2, 4, 16])
@pytest.mark.parametrize("policy", ["simclr", "simaugment", "crop"])
def test_views_have_all_channels(policy: str, channels: int) -> None:
    views = Views(policy, 16, channels=channels)
    batch = views(images(channels), KEYS[:4])
    assert batch.shape == (2, 4, channels, 16, 16)
    assert 0 <= batch.min() < batch.max() <= 1
    as_list = [image[:, :30] for image in images(channels)]
    assert torch.equal(views(as_list, KEYS[:4])[:, 2], views([as_list[2]], KEYS[2:3])[:, 0])


def test_crop_and_flip_are_those_of_rgb() -> None:
    """Bit for bit in each channel, whatever lies beside it; and so is the blur."""
    four = images(4)
    rgb, infrared = four[:, :3], four[:, [3, 3, 3]]
    for policy in ("crop", [Blur(p=1.0)]):
        of_four = Views(policy, 24, channels=4)(four, KEYS[:4])
        assert torch.equal(of_four[:, :, :3], Views(policy, 24, renderer="torch")(rgb, KEYS[:4]))
        assert torch.equal(of_four[:, :, 3], Views(policy, 24, renderer="torch")(infrared, KEYS[:4])[:, :, 0])


def test_colors_do_not_change() -> None:
    views = Views([ColorJitter(1.0, p=1.0), Grayscale(p=1.0)], 16, channels=4, min_area=1.0)
    kinds = [type(op) for op in views.ops[0]]
    assert kinds == [ChannelJitter]
    x = views(images(4), KEYS[:4])[0]
    assert not torch.equal(x[:, 0], x[:, 1])


def test_strength_and_blur_are_settings_as_ever() -> None:
    views = Views("simclr", 96, strength=0.5, blur=0.2, channels=4)
    assert (views.strength, views.blur) == (0.5, 0.2)
    assert views.ops[0] == (ChannelJitter(4, 0.5), Blur(0.2))


def test_what_needs_colors_says_so() -> None:
    for policy in ("autoaugment", "randaugment", "stacked", [RandAugment()]):
        with pytest.raises(StepclrError, match="is for RGB, not for 4 channels: choose the policy simclr"):
            Views(policy, 16, channels=4)
    with pytest.raises(StepclrError, match="views are taken of uint8 images"):
        Views("simclr", 16, channels=4)(images(3), KEYS[:4])


@pytest.mark.parametrize("policy", ["ChannelJitter(strength=0.5)+Blur(p=1)", [ChannelJitter(4), Blur(p=1.0)]])
def test_rgb_may_have_its_channels_jittered_too(policy: Any) -> None:
    views = Views(policy, 16)
    x = views(images(3), KEYS[:4])
    assert x.shape == (2, 4, 3, 16, 16)
    assert torch.equal(render_cuda(images(3), views.sample_params(images(3), KEYS[:4]), 16), x)
    for values in ("p=2", "strength=3"):
        with pytest.raises(StepclrError, match="must lie between 0"):
            Views(f"ChannelJitter({values})", 16)
