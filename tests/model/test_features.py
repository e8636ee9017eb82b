"""A frozen encoder over a set: the short ways of bfloat16 give the same features, and float32 takes none of them."""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stepclr import build_encoder
from stepclr.data.sources import open_images
from stepclr.model.encoder import Encoder
from stepclr.model.features import fold_batch_norm, represent


def used(name: str, size: int) -> Encoder:
    """An encoder whose BatchNorms are those of a trained one: no scale is 0 or 1, no mean is 0."""
    torch.manual_seed(0)
    encoder = build_encoder(name, size=size)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                assert isinstance(tensor, Tensor)
                nn.init.normal_(tensor, 0, 0.1)
    return encoder.eval()


def noise(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 32), ("resnet18", 96), ("resnet50", 32), ("resnet50d", 32), ("resnetv2_50", 32), ("test_vit", 160)],
)
def test_bfloat16_gives_the_features_of_float32_and_leaves_the_encoder_alone(name: str, size: int) -> None:
    encoder = used(name, size)
    encoder.mean.fill_(0.4)
    encoder.std.fill_(0.3)
    encoder.normalize_h = size == 96
    images = open_images(noise(35, size))
    before = copy.deepcopy(encoder.state_dict())
    h, _ = represent(encoder, images)
    half, kept = represent(encoder, images, torch.bfloat16)
    assert (half.dtype, kept.tolist()) == (torch.float32, list(range(35)))
    assert 0 < (half - h).norm() < 0.02 * h.norm()
    assert nn.functional.cosine_similarity(half, h).min() > 0.9995
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_float32_is_the_encoder_itself_bit_for_bit() -> None:
    encoder = used("resnet18", 32)
    images = noise(40, 32)
    h, _ = represent(encoder, open_images(images), batch_size=32)
    with torch.inference_mode():
        x = encoder.preprocess(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        parts = [encoder(part.contiguous(memory_format=torch.channels_last)) for part in x.split(32)]
    assert torch.equal(h, torch.cat(parts))


@pytest.mark.parametrize(("name", "all_of_them"), [("resnet18", True), ("resnet50", True), ("resnetv2_50", False)])
def test_a_folded_batch_norm_changes_no_feature(name: str, all_of_them: bool) -> None:
    encoder = used(name, 32).double()
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = encoder.body(x)
        assert fold_batch_norm(encoder.body) == all_of_them
        torch.testing.assert_close(encoder.body(x), expected)


class Watched(torch.utils.data.Dataset[Tensor]):
    """40 images that tell how far they have been read; the 18th waits until the encoder is at work."""

    def __init__(self) -> None:
        self.last, self.working, self.second_lot = -1, threading.Event(), threading.Event()

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Tensor:
        self.last = max(self.last, index)
        if index == 18:
            if not self.working.wait(20):
                raise TimeoutError
            self.second_lot.set()
        return torch.full((3, 32, 32), index, dtype=torch.uint8)


def test_the_next_batch_is_read_meanwhile_and_no_further_one() -> None:
    encoder, dataset = build_encoder("test_resnet", size=32), Watched()
    images = open_images(dataset)
    reached: list[int] = []

    def work(*_: object) -> None:
        dataset.working.set()
        assert dataset.second_lot.wait(20)
        reached.append(dataset.last)

    encoder.body.register_forward_hook(work)
    h, _ = represent(encoder, images, batch_size=10)
    assert len(h) == 40
    assert all(last < 10 * (batch + 2) for batch, last in enumerate(reached))


def test_a_set_without_images_has_no_features() -> None:
    encoder = build_encoder("test_resnet", size=32)
    h, kept = represent(encoder, open_images(noise(3, 32)).take([]), torch.bfloat16)
    assert (h.shape, len(kept)) == ((0, encoder.num_features), 0)
