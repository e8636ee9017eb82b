"""`SimCLRTransform`: one image in any form, in anyone's Dataset and DataLoader."""

import doctest
import pickle
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stepclr import SimCLRTransform, StepclrError, Views, view_keys
from stepclr.views import transform as module


def image(height: int = 40, width: int = 50) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


class Images(Dataset[list[Tensor]]):
    """The same image again and again, so that views differ by their keys alone."""

    def __init__(self, transform: SimCLRTransform) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(image())


def loaded(**options: Any) -> Tensor:
    """The views [V, 8, 3, 16, 16] of an epoch, in batches of two."""
    torch.manual_seed(options.pop("seed", 0))
    loader = DataLoader(Images(SimCLRTransform(size=16)), batch_size=2, **options)
    return torch.cat([torch.stack(views) for views in loader], dim=1)


@pytest.mark.parametrize("renderer", ["torch", "numba"])
def test_a_known_key_gives_the_views_of_views(renderer: Any) -> None:
    settings: dict[str, Any] = {"strength": [1.0, 0.5, 0.2], "blur": 0.9, "min_area": 0.3, "views": 3}
    transform = SimCLRTransform(size=32, policy="simaugment+VerticalFlip", warp=1.0, renderer=renderer, **settings)
    views = transform(image(), key=int(view_keys(1, 2, [3])))
    batched = Views("simaugment+VerticalFlip", size=32, warp=1.0, renderer=renderer, **settings)
    assert torch.equal(torch.stack(views), batched(image()[None], view_keys(1, 2, [3]))[:, 0])
    assert all(view.dtype == torch.float32 and view.shape == (3, 32, 32) for view in views)


def test_pil_tensor_and_array_agree() -> None:
    transform, channels_last = SimCLRTransform(size=32), image().permute(1, 2, 0).numpy()
    expected = torch.stack(transform(image(), key=5))
    for form in (channels_last, Image.fromarray(channels_last)):
        assert torch.equal(torch.stack(transform(form, key=5)), expected)


def test_a_gray_image_is_one_of_three_equal_channels() -> None:
    transform, gray = SimCLRTransform(size=32), image()[0]
    expected = torch.stack(transform(gray.expand(3, -1, -1), key=5))
    for form in (gray, gray[None], gray.numpy(), gray.numpy()[..., None], Image.fromarray(gray.numpy())):
        assert torch.equal(torch.stack(transform(form, key=5)), expected)


def test_more_than_eight_bits_need_a_value_range() -> None:
    grey = image()[0].numpy()
    deep = Image.fromarray(grey.astype(np.uint16) * 16)
    with pytest.raises(StepclrError, match="needs --value-range LOW,HIGH"):
        SimCLRTransform(size=16)(deep, key=7)
    views = SimCLRTransform(size=16, value_range=(0, 16 * 255))(deep, key=7)
    assert torch.equal(torch.stack(views), torch.stack(SimCLRTransform(size=16)(Image.fromarray(grey), key=7)))


def test_torchs_seed_repeats_the_views() -> None:
    transform = SimCLRTransform(size=32)
    torch.manual_seed(3)
    first, second = (torch.stack(transform(image())) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(torch.stack(transform(image())), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_of_a_loader_draw_their_own_views_by_torchs_seed(context: str, workers: int) -> None:
    options = {"num_workers": workers, "multiprocessing_context": context}
    views = loaded(**options)
    assert len({view.numpy().tobytes() for view in views.flatten(0, 1)}) == 16  # no worker repeats another's
    if context == "fork":
        assert torch.equal(loaded(**options), views)
        assert not torch.equal(loaded(**options, seed=1), views)


def test_the_loader_of_one_process_is_seeded_too() -> None:
    assert torch.equal(loaded(), loaded())


def test_a_pickled_transform_gives_the_same_views() -> None:
    transform = SimCLRTransform(size=32, blur=1.0)
    copy = pickle.loads(pickle.dumps(transform))
    assert torch.equal(torch.stack(copy(image(), key=9)), torch.stack(transform(image(), key=9)))
    assert repr(copy) == "SimCLRTransform(simclr 32 px: strength 0.5, blur 1, min_area 0.2)"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.rand(3, 8, 8), "must be uint8"),
        (np.zeros((8, 8, 4), np.uint8), "must be .3, H, W."),
        ("cat.jpg", "must be a PIL image or a uint8 tensor, not str"),
    ],
)
def test_what_is_not_an_image_is_an_error(wrong: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    with pytest.raises(StepclrError, match=message):
        SimCLRTransform(size=32)(wrong)


def test_the_example_in_the_docstring_runs() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (32, 32)}, r"size must be a number, not \(32, 32\)"),
        ({"size": 32.0}, "size must be a whole number, not 32.0"),
        ({"views": 2.5}, "views must be a whole number, not 2.5"),
        ({"channels": 0}, "channels must be at least 1, not 0"),
        ({"min_area": "0.2"}, "min_area must be a number, not '0.2'"),
    ],
)
def test_settings_of_a_wrong_kind_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(StepclrError, match=words):
        SimCLRTransform(**options)
