"""Encoders of images that are not RGB: the stem fits, weights are adapted, and the file says how many channels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small import put_where_timm_looks
from torch import nn

import stepclr
from stepclr import StepclrError, build_encoder, load_encoder
from stepclr.model.files import save_encoder


@pytest.mark.parametrize("stem", ["imagenet", "small", "small-stride2"])
@pytest.mark.parametrize("channels", [1, 4, 16])
def test_the_first_convolution_fits(stem: str, channels: int) -> None:
    encoder = build_encoder("resnet18", stem, size=32, channels=channels)
    assert encoder.get_parameter("body.conv1.weight").shape[1] == channels
    assert encoder(torch.rand(2, channels, 32, 32)).shape == (2, 512)
    assert encoder.channels == len(encoder.mean) == len(encoder.std) == channels


@pytest.mark.parametrize("name", ["resnet18x2", "test_vit"])
def test_wide_resnets_and_other_networks_fit_too(name: str) -> None:
    encoder = build_encoder(name, size=160 if name == "test_vit" else 32, channels=4)
    size = encoder.size
    assert encoder(torch.rand(1, 4, size, size)).shape == (1, encoder.num_features)


def test_a_module_is_measured_on_its_channels() -> None:
    module = nn.Sequential(nn.Conv2d(4, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert build_encoder(module, size=16, channels=4).num_features == 7
    with pytest.raises(StepclrError, match=r"must map images \[2, 3, 16, 16\]"):
        build_encoder(module, size=16)


def test_weights_of_timm_are_adapted(off_the_shelf: str) -> None:
    """As timm does it: gray gets the sum of the filters, so that a gray image has the same features as one of RGB."""
    network = put_where_timm_looks("test_resnet.r160_in1k")
    gray = build_encoder("test_resnet", weights=off_the_shelf, size=160, channels=1, mean_std="none").eval()
    rgb = build_encoder("test_resnet", weights=off_the_shelf, size=160, mean_std="none").eval()
    x = torch.rand(2, 1, 160, 160)
    torch.testing.assert_close(gray(x), rgb(x.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)
    four = build_encoder("test_resnet", weights=off_the_shelf, size=160, channels=4)
    known = network.get_parameter("layer1.0.conv1.weight")
    assert torch.equal(four.get_parameter("body.layer1.0.conv1.weight"), known)
    mean = load_encoder(off_the_shelf).mean.mean()
    torch.testing.assert_close(four.mean.flatten(), mean.expand(4))


def test_a_file_says_how_many_channels_it_takes(tmp_path: Path) -> None:
    encoder = build_encoder("test_resnet", "small", size=16, channels=4, mean_std="0.1,0.2,0.3,0.4,1,1,1,2")
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    again = load_encoder(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    x = again.preprocess(image)
    assert x.shape == (1, 4, 16, 16)
    assert torch.equal(again(x), encoder.eval()(encoder.preprocess(torch.from_numpy(image).permute(2, 0, 1))))
    # The mutant: bands in another order are another image.
    permuted = again.preprocess(np.ascontiguousarray(image[..., ::-1]))
    assert torch.equal(permuted, x.flip(1))
    assert not torch.allclose(again(permuted), again(x), atol=1e-3)
    with pytest.raises(StepclrError, match="takes 4 channels, not 3: set channels=4"):
        build_encoder("test_resnet", "small", tmp_path / "encoder.safetensors", size=16)
    with pytest.raises(StepclrError, match=r"an image must be \[4, H, W\]"):
        again.preprocess(image[..., :3])


def test_files_of_earlier_versions_are_of_rgb(tmp_path: Path) -> None:
    save_encoder(build_encoder("test_resnet", size=16), tmp_path / "encoder.safetensors")
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"channels":"3"', b'"chanels_":"3"'))
    assert load_encoder(tmp_path).channels == 3


@pytest.mark.parametrize("text", ["imagenet", "0,0,0,1,1,1", "0,0,0,0,1,1,1,0"])
def test_mean_and_std_have_a_number_for_each_channel(text: str) -> None:
    with pytest.raises(StepclrError, match=r"mean_std must be none or 8 numbers|the std in mean_std"):
        build_encoder("test_resnet", size=16, channels=4, mean_std=text)


def test_images_of_other_channels_are_refused() -> None:
    encoder = build_encoder("test_resnet", size=16, channels=4)
    images = stepclr.open_images(np.zeros((2, 20, 20, 5), np.uint8))
    with pytest.raises(StepclrError, match="opened with channels=5, but test_resnet takes images of 4"):
        encoder.ranged(images)
    gray = build_encoder("test_resnet", size=16, channels=1)
    assert gray.ranged(stepclr.open_images("sample:test")).channels == 1
    with pytest.raises(StepclrError, match="opened with channels=3, but test_resnet takes images of 1 channel"):
        gray.ranged(stepclr.open_images("sample:test", channels=3))  # RGB by name is another number too
