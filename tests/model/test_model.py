"""Steps 3 and 4: what the encoder and the head compute, and that no weights are ever loaded into the wrong network."""

import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import timm
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from stepclr import ProjectionHead, StepclrError, build_encoder, load_encoder, open_images
from stepclr.config import Stem
from stepclr.device import torch_threads
from stepclr.model.build import STEMS
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import Encoder
from stepclr.model.features import represent
from stepclr.model.files import load_classifier, save_classifier, save_encoder

SMALL = "test_resnet"  # timm's smallest ResNet


def trained(name: str = SMALL, stem: str = "auto", size: int = 32) -> Encoder:
    """An encoder in which nothing is as it was initialized: weights, BatchNorm's buffers, mean, std and classes."""
    torch.manual_seed(3)
    encoder = build_encoder(name, stem, size=size)
    encoder.classes = ["airplane", "Käse, alt", 'a "b"']
    encoder.mean.copy_(torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))
    encoder.std.copy_(torch.tensor([0.7, 0.8, 0.9]).view(3, 1, 1))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for _ in range(2):
            encoder(torch.rand(8, 3, size, size))
    return encoder.eval()


def features(encoder: nn.Module, size: int = 32) -> Tensor:
    x = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        h: Tensor = encoder.eval()(x)
    return h


def one_line(error: pytest.ExceptionInfo[StepclrError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# The encoder.


@pytest.mark.parametrize(
    ("name", "width"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048), ("resnet200", 2048)]
)
def test_representations_have_the_papers_sizes(name: str, width: int) -> None:
    assert build_encoder(name).num_features == width


@pytest.mark.parametrize(
    ("name", "features", "millions"),
    [
        ("resnet50x2", 4096, 94),
        ("resnet18x0.5", 256, 2.8),
        ("resnet10", 512, 4.9),
        ("resnet10x0.5", 256, 1.23),
        ("resnet50x0.25", 512, 1.49),
    ],
)  # the first is SimCLR's table 6
def test_a_resnet_may_be_wider_narrower_or_shorter(name: str, features: int, millions: float) -> None:
    encoder = build_encoder(name, size=64)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert encoder.num_features == features
    assert count / 1e6 == pytest.approx(millions, rel=0.01)
    with torch.no_grad():
        assert encoder.eval()(torch.rand(1, 3, 64, 64)).shape == (1, features)
    with pytest.raises(StepclrError, match=f"timm has no weights for {name}"):
        build_encoder(name, weights="timm")


@pytest.mark.parametrize("name", ["resnet9", "resnet18x0", "resnet18x0.0", "resnet18x10", "vit_tiny_patch16_224x2"])
def test_other_widths_and_other_networks_widths_are_unknown(name: str) -> None:
    with pytest.raises(StepclrError, match="unknown encoder"):
        build_encoder(name)


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("resnet50", 2048)])
def test_h_is_the_mean_over_places_of_the_last_feature_map(name: str, width: int) -> None:
    encoder = build_encoder(name, size=32)
    maps: list[Tensor] = []
    encoder.get_submodule("body.layer4").register_forward_hook(lambda *given: maps.append(given[2]))
    h = features(encoder)
    assert h.shape == (3, width)
    torch.testing.assert_close(h, maps[0].mean((2, 3)))
    assert not [name for name, _ in encoder.named_parameters() if "fc" in name]


@pytest.mark.parametrize(
    ("stem", "first", "last"), [("imagenet", 16, 2), ("small-stride2", 32, 4), ("small", 64, 8), ("auto", 64, 8)]
)
@pytest.mark.parametrize("name", ["resnet18", "resnet18d"])
def test_the_stem_sets_how_far_an_image_shrinks(name: str, stem: str, first: int, last: int) -> None:
    """Sides of the first and the last stage's feature maps for a 64-pixel view; also where timm's stem is another."""
    encoder = build_encoder(name, stem, size=64)
    sides: list[int] = []
    for stage in ("layer1", "layer4"):
        encoder.get_submodule(f"body.{stage}").register_forward_hook(lambda *given: sides.append(given[2].shape[-1]))
    features(encoder, 64)
    assert sides == [first, last]
    assert encoder.stem == ("small" if stem == "auto" else stem)
    kernel = encoder.get_parameter("body.conv1.weight").shape
    assert kernel[1:] == ((3, 7, 7) if stem == "imagenet" else (3, 3, 3))


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [
        ("resnet18", 28, "small"),
        ("resnet18", 64, "small"),
        ("resnet18", 65, "imagenet"),
        ("resnet18", 96, "imagenet"),
        ("resnet18", 224, "imagenet"),
        ("resnet18d", 224, "own"),
        ("test_vit", 32, "own"),
    ],
)
def test_the_stem_by_default_is_small_up_to_64_pixels(name: str, size: int, stem: str) -> None:
    encoder = build_encoder(name, size=size)
    assert encoder.stem == stem
    assert encoder.size == size


def test_a_stem_of_another_network_is_told_apart() -> None:
    with pytest.raises(StepclrError, match="test_vit keeps its own stem") as error:
        build_encoder("test_vit", "small", size=32)
    one_line(error)


# The last three have a layer between pooling and classifier, which timm keeps.
@pytest.mark.parametrize(
    "name", ["test_vit", "test_convnext", "test_efficientnet", "mobilenetv3_small_050", "test_mambaout", "ghostnet_050"]
)
def test_networks_that_are_no_resnets_give_representations_too(name: str) -> None:
    encoder = build_encoder(name, size=64)
    assert features(encoder, 64).shape == (3, encoder.num_features)


def test_each_block_starts_as_the_identity() -> None:
    """The authors' code starts the last BatchNorm of a block at gamma 0."""
    encoder = build_encoder("resnet18")
    for stage in range(1, 5):
        for block in range(2):
            assert not encoder.get_parameter(f"body.layer{stage}.{block}.bn2.weight").any()
            assert (encoder.get_parameter(f"body.layer{stage}.{block}.bn1.weight") == 1).all()


def test_the_initialisation_follows_torchs_seed() -> None:
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(build_encoder(SMALL, size=32).get_parameter("body.conv1.weight"))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_mean_and_std_are_0_and_1_and_part_of_the_encoder() -> None:
    encoder = build_encoder(SMALL, size=32)
    assert encoder.mean.flatten().tolist() == [0, 0, 0]
    assert encoder.std.flatten().tolist() == [1, 1, 1]
    other = trained()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(other(x), other.body((x - other.mean) / other.std))
    assert not torch.allclose(other(x), other.body(x))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("resnt50",), "Did you mean 'resnet50'"),
        (("resnet19",), "Did you mean 'resnet1"),
        (("vit_tiny_patch16_225",), "Did you mean 'vit_tiny_patch16_224'"),
        (("",), "unknown encoder"),
        (("resnet18", "smal"), "Did you mean 'small'"),
        (("resnet18", "auto", "no/such/file.pt"), "no weights at no/such/file.pt"),
    ],
)
def test_a_misspelt_encoder_or_stem_is_answered_with_the_nearest(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(StepclrError, match=words) as error:
        build_encoder(*arguments)  # type: ignore[arg-type]
    one_line(error)


def test_an_encoder_with_small_conv_has_timms_features_in_float32() -> None:
    """To the last bit; in bfloat16, where small maps go by patches, as close as timm's own in bfloat16."""
    encoder = trained("resnet18")
    body = timm.create_model("resnet18", num_classes=0)
    body.set_submodule("conv1", nn.Conv2d(3, 64, 3, 1, 1, bias=False))
    body.set_submodule("maxpool", nn.Identity())
    body.load_state_dict(encoder.get_submodule("body").state_dict())
    x = torch.rand(8, 3, 32, 32)
    normed = (x - encoder.mean) / encoder.std
    exact = body.eval()(normed)
    assert torch.equal(encoder(x), exact)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            error, usual = (encoder(x) - exact).norm(), (body(normed) - exact).norm()
        assert 0 < error < 1.1 * usual < 0.02 * exact.norm()
        assert 0 < (encoder(x) - exact).norm() < 1.1 * usual


# Preprocessing.


def photo(height: int, width: int) -> NDArray[np.uint8]:
    """An image of smooth patches, uint8 [H, W, 3]."""
    generator = torch.Generator().manual_seed(height)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    fine = nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    image: NDArray[np.uint8] = (255 * fine).to(torch.uint8).permute(1, 2, 0).numpy()
    return image


@pytest.mark.parametrize(
    ("size", "height_width", "resized"),
    [
        (96, (50, 100), (110, 220)),
        (96, (300, 150), (220, 110)),
        (224, (128, 256), (256, 512)),
        (64, (40, 80), (64, 128)),
        (32, (96, 96), (32, 32)),
        (28, (28, 28), (28, 28)),
    ],
)
def test_preprocessing_resizes_the_short_side_and_crops_the_center(
    size: int, height_width: tuple[int, int], resized: tuple[int, int]
) -> None:
    """0.875 of the resized image above 64 pixels; all of a square image up to there."""
    image = photo(*height_width)
    x = build_encoder(SMALL, size=size).preprocess(Image.fromarray(image))
    whole = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    expected = tv.resize(whole, list(resized), tv.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, expected[None, :, top : top + size, left : left + size], rtol=0, atol=1e-5)


def test_an_image_of_the_views_size_is_taken_whole_when_small_and_loses_its_border_when_not() -> None:
    for size, seen in ((32, True), (64, True), (96, False)):
        image = np.full((size, size, 3), 40, np.uint8)
        image[0] = 255
        assert (build_encoder(SMALL, size=size).preprocess(image).max() > 0.5) == seen


def test_the_settings_have_the_stems_that_can_be_built() -> None:
    assert get_args(Stem) == ("auto", *STEMS, "own")


def test_images_may_come_in_any_form_and_company() -> None:
    encoder = build_encoder(SMALL, size=32)
    array = photo(40, 50)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    x = encoder.preprocess(array)
    assert x.shape == (1, 3, 32, 32)
    other = photo(70, 30)
    for form in (Image.fromarray(array), tensor, tensor[None], [array], (tensor,)):
        assert torch.equal(encoder.preprocess(form), x)
    mixed = encoder.preprocess([Image.fromarray(other), tensor, array])
    assert torch.equal(mixed[1:], x.repeat(2, 1, 1, 1))
    assert torch.equal(mixed[:1], encoder.preprocess(other))
    gray = array[..., 0]
    expected = encoder.preprocess(Image.fromarray(gray))
    for one_channel in (gray, gray[..., None], torch.from_numpy(gray), torch.from_numpy(gray)[None]):
        assert torch.equal(encoder.preprocess(one_channel), expected)
    batch = torch.stack([tensor, tensor.flip(2)])
    assert torch.equal(encoder.preprocess(batch), encoder.preprocess(list(batch)))


def test_grey_palette_and_transparent_images_become_rgb() -> None:
    encoder = build_encoder(SMALL, size=32)
    color = Image.fromarray(photo(32, 32))
    grey = encoder.preprocess(color.convert("L"))
    assert torch.equal(grey, grey[:, :1].expand(-1, 3, -1, -1))
    assert torch.equal(encoder.preprocess(color.convert("RGBA")), encoder.preprocess(color))
    palette = color.quantize(16)
    assert torch.equal(encoder.preprocess(palette), encoder.preprocess(palette.convert("RGB")))
    assert encoder.preprocess(Image.new("RGBA", (32, 32), (0, 0, 0, 0))).min() == 1  # transparent: white
    turned = color.copy()
    turned.getexif()[274] = 3  # upside down
    torch.testing.assert_close(encoder.preprocess(turned), encoder.preprocess(color).flip(2, 3))


def test_preprocessing_stays_in_0_to_1_where_bicubic_overshoots() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[::2, 10:20] = 255
    x = build_encoder(SMALL, size=64).preprocess(image)
    assert x.min() == 0
    assert x.max() == 1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "wrong",
    [
        torch.rand(3, 40, 40),
        torch.zeros(2, 40, 40, 3, dtype=torch.uint8),
        np.zeros((40, 40, 3)),
        np.zeros((40, 40, 4), np.uint8),
        [],
    ],
    ids=["floats", "channels last", "float array", "four channels", "none"],
)
def test_preprocessing_answers_what_is_no_image_in_one_line(wrong: Any) -> None:
    with pytest.raises(StepclrError) as error:
        build_encoder(SMALL, size=32).preprocess(wrong)
    one_line(error)


# Encoder files.


@pytest.mark.parametrize(
    ("name", "stem", "size"),
    [
        (SMALL, "auto", 32),
        (SMALL, "small-stride2", 28),
        (SMALL, "imagenet", 96),
        ("resnet18d", "auto", 96),
        ("test_vit", "auto", 32),
        ("test_efficientnet", "auto", 40),
    ],
)
def test_an_encoder_read_back_gives_the_same_h(name: str, stem: str, size: int, tmp_path: Path) -> None:
    encoder = trained(name, stem, size).to(memory_format=torch.channels_last)
    save_encoder(encoder, tmp_path / "run" / "encoder.safetensors")
    h = features(encoder.to(memory_format=torch.contiguous_format), size)
    for source in (tmp_path / "run", str(tmp_path / "run"), tmp_path / "run" / "encoder.safetensors"):
        loaded = load_encoder(source)
        assert not loaded.training
        for field in ("name", "stem", "size", "num_features", "classes"):
            assert getattr(loaded, field) == getattr(encoder, field)
        assert torch.equal(features(loaded, size), h)
        image = photo(70, 50)
        assert torch.equal(loaded.preprocess(image), encoder.preprocess(image))
    assert os.listdir(tmp_path / "run") == ["encoder.safetensors"]  # no temporary file stays


def test_an_encoder_file_carries_what_is_needed_to_use_it(tmp_path: Path) -> None:
    encoder = trained(size=28, stem="small-stride2")
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    with safe_open(tmp_path / "encoder.safetensors", framework="pt") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    assert metadata["mean"] == pytest.approx([0.1, 0.2, 0.3])
    assert metadata["std"] == pytest.approx([0.7, 0.8, 0.9])
    del metadata["mean"], metadata["std"]
    assert metadata == {
        "name": SMALL,
        "stem": "small-stride2",
        "size": 28,
        "test_size": 28,
        "num_features": encoder.num_features,
        "classes": encoder.classes,
        "normalize_h": False,
        "value_range": None,
        "side": 28,
        "interpolation": "bicubic",
        "squash": False,
        "weights": "",
        "channels": 3,
    }


def rewritten(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> Path:
    """The encoder file with its tensors and metadata changed."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, _: t.pop("body.bn1.running_var"), "1 missing .such as body.bn1.running_var"),
        (lambda t, _: t.pop("mean"), "1 missing .such as mean"),
        (lambda t, _: t.pop("std"), "1 missing .such as std"),
        (lambda t, _: t.update({"body.conv9.weight": torch.ones(2)}), "1 unknown .such as body.conv9.weight"),
        (lambda t, _: t.update({"body.bn1.bias": torch.ones(3)}), "1 of another shape .such as body.bn1.bias"),
        (lambda _, m: m.update(stem='"imagenet"'), "imagenet"),
        (lambda _, m: m.update(name='"resnet18"'), "resnet18"),
        (lambda _, m: m.update(name='"resnet81"'), "Did you mean 'resnet"),
        (lambda _, m: m.pop("stem"), "'stem'"),
        (lambda _, m: m.clear(), "was not written by stepclr"),
        (lambda _, m: (m.clear(), m.update(format="pt")), "was not written by stepclr"),  # as of Hugging Face
        (lambda _, m: m.update(size="32 px"), "cannot be read"),
    ],
)
def test_an_encoder_file_that_does_not_fit_is_refused_in_one_line(
    change: Callable[[dict[str, Tensor], dict[str, str]], None], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(trained(), path)
    with pytest.raises(StepclrError, match=words) as error:
        load_encoder(rewritten(path, change))
    assert str(path) in one_line(error) or "resnet81" in one_line(error)


@pytest.mark.parametrize("kept", [0, 5, 200, 10_000])
def test_half_an_encoder_file_is_refused_in_one_line(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(trained(), path)
    path.write_bytes(path.read_bytes()[:kept])
    for load in (load_encoder, lambda source: build_encoder(SMALL, weights=source, size=32)):
        with pytest.raises(StepclrError, match=str(path)) as error:
            load(path)
        one_line(error)


def test_a_folder_without_an_encoder_is_refused_in_one_line(tmp_path: Path) -> None:
    for load in (load_encoder, lambda source: build_encoder(SMALL, weights=source)):
        with pytest.raises(StepclrError, match=r"encoder\.safetensors") as error:
            load(tmp_path)
        one_line(error)


# Weights from elsewhere.


@pytest.mark.parametrize("file", ["run", "run/encoder.safetensors"])
def test_weights_of_a_run_start_another_with_its_preprocessing(file: str, tmp_path: Path) -> None:
    encoder = trained()
    save_encoder(encoder, tmp_path / "run" / "encoder.safetensors")
    started = build_encoder(SMALL, weights=tmp_path / file, size=32)
    assert torch.equal(features(started), features(encoder))
    assert torch.equal(started.mean, encoder.mean)


@pytest.mark.parametrize("stem", ["imagenet", "small-stride2"])
def test_weights_of_a_run_with_another_stem_are_refused(stem: str, tmp_path: Path) -> None:
    """Also where every shape fits: a small stem's weights mean something else at stride 2."""
    save_encoder(trained(stem="small"), tmp_path / "encoder.safetensors")
    with pytest.raises(StepclrError, match="small") as error:
        build_encoder(SMALL, stem, weights=tmp_path, size=32)
    assert stem in one_line(error)


@pytest.mark.parametrize(
    ("file", "prefix", "key"),
    [
        ("weights.pt", "", None),
        ("weights.pth", "", "state_dict"),
        ("weights.tar", "module.", "state_dict"),
        ("weights.pt", "encoder.", "model"),
        ("weights.pt", "backbone.", None),
        ("weights.pt", "module.encoder.", "state_dict"),
        ("weights.safetensors", "", None),
    ],
)
def test_torchvisions_resnet18_gives_its_own_features(file: str, prefix: str, key: str | None, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = torchvision.models.resnet18()
    network(torch.rand(4, 3, 64, 64))  # moves BatchNorm's buffers
    tensors = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    if file.endswith(".safetensors"):
        save_file(tensors, tmp_path / file)
    else:
        torch.save({key: tensors, "epoch": 3} if key else tensors, tmp_path / file)
    encoder = build_encoder("resnet18", "imagenet", weights=tmp_path / file, size=64, mean_std="none")
    network.fc = nn.Identity()
    torch.testing.assert_close(features(encoder, 64), features(network, 64))
    assert features(network, 64).std() > 0.01


def test_foreign_weights_load_strictly_but_for_the_classifier(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    tensors = torchvision.models.resnet18().state_dict()
    changes: list[tuple[dict[str, Tensor], str, str, str]] = [
        (tensors, "resnet18", "small", "conv1.weight"),
        (tensors, "resnet34", "imagenet", "missing"),
        ({**tensors, "layer5.weight": torch.ones(2, 2)}, "resnet18", "imagenet", "layer5.weight"),
        ({key: tensors[key] for key in tensors if key != "bn1.running_mean"}, "resnet18", "imagenet", "running_mean"),
    ]
    for given, name, stem, words in changes:
        torch.save(given, path)
        with pytest.raises(StepclrError, match=words) as error:
            build_encoder(name, stem, weights=path)
        assert str(path) in one_line(error)


class Poison:
    """Unpickling it makes a folder: what any code in a foreign checkpoint could do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pt", "pth", "pkl", "safetensors", "bin"])
@pytest.mark.parametrize("way", ["torch.save", "pickle", "old torch.save"])
def test_code_in_a_checkpoint_does_not_run(way: str, suffix: str, tmp_path: Path) -> None:
    path, harm = tmp_path / f"weights.{suffix}", tmp_path / "harm"
    poisoned = {"state_dict": {"conv1.weight": Poison(harm)}}
    if way == "pickle":
        path.write_bytes(pickle.dumps(poisoned))
    else:
        torch.save(poisoned, path, _use_new_zipfile_serialization=way == "torch.save")
    with pytest.raises(StepclrError, match=str(path)) as error:
        build_encoder(SMALL, weights=path, size=32)
    one_line(error)
    assert not harm.exists()
    pickle.loads(pickle.dumps(poisoned))  # the poison is real
    assert harm.exists()


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"epoch": 3}}, {"a": torch.ones(2), "epoch": 3}, 7, {}])
def test_a_checkpoint_of_something_else_is_refused_in_one_line(content: object, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(StepclrError, match=str(path)) as error:
        build_encoder(SMALL, weights=path, size=32)
    one_line(error)


@pytest.mark.parametrize("content", [b"", b"hello, world", b"PK\x03\x04 half a zip", b"\x80\x04."])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(StepclrError, match=str(path)) as error:
        build_encoder(SMALL, weights=path, size=32)
    one_line(error)


# The projection head.


def norm(x: Tensor) -> Tensor:
    """BatchNorm of a batch at its initialization, by its formula."""
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()


@pytest.mark.parametrize("layers", [2, 3])
def test_the_head_is_linear_norm_relu_and_ends_in_a_norm(layers: int) -> None:
    torch.manual_seed(0)
    head = ProjectionHead(12, hidden=20, out=7, layers=layers)
    weights = [parameter for parameter in head.parameters() if parameter.ndim == 2]
    assert [tuple(weight.shape) for weight in weights] == [(20, 12), *[(20, 20)] * (layers - 2), (7, 20)]
    h = torch.randn(9, 12)
    x = h
    for weight in weights[:-1]:
        x = norm(x @ weight.T).relu()
    torch.testing.assert_close(head(h), norm(x @ weights[-1].T), rtol=1e-4, atol=1e-5)
    assert not [
        name for name, module in head.named_modules() if isinstance(module, nn.Linear) and module.bias is not None
    ]


@pytest.mark.parametrize("layers", [2, 3])
def test_the_reference_head_is_that_of_the_authors_code(layers: int) -> None:
    """google-research/simclr: no shift after the last layer, weights that begin as N(0, 0.01^2)."""
    torch.manual_seed(0)
    head = ProjectionHead(300, hidden=400, out=50, layers=layers, form="reference")
    for weight in (parameter for parameter in head.parameters() if parameter.ndim == 2):
        assert weight.mean().abs() < 0.001
        assert weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert weight.abs().max() > 0.03  # a uniform distribution of that width ends at 0.017
    optimizer = torch.optim.SGD(head.parameters(), lr=0.001)
    for _ in range(2):
        z = head(torch.randn(64, 300))
        assert z.mean(0).abs().max() < 1e-5
        optimizer.zero_grad()
        (z - torch.randn(50)).square().sum().backward()  # pulls the mean to somewhere else
        optimizer.step()
    usual = ProjectionHead(300, hidden=400, out=50, layers=layers)
    assert head.state_dict().keys() == usual.state_dict().keys()
    assert all(parameter.requires_grad for parameter in usual.parameters())


def test_the_head_has_2048_hidden_and_128_outputs_by_default() -> None:
    head = ProjectionHead(512)
    assert [tuple(p.shape) for p in head.parameters() if p.ndim == 2] == [(2048, 512), (128, 2048)]
    assert head(torch.randn(4, 512)).shape == (4, 128)


@pytest.mark.parametrize("layers", [0, 4])
def test_a_head_of_another_depth_is_refused_in_one_line(layers: int) -> None:
    with pytest.raises(StepclrError, match="1, 2 or 3 layers") as error:
        ProjectionHead(8, layers=layers)
    one_line(error)


@pytest.mark.parametrize("form", ["batchnorm", "reference", "plain"])
def test_a_head_of_one_layer_is_a_matrix(form: str) -> None:
    head = ProjectionHead.of_text(12, f"7:{form}")
    ((name, weight),) = head.named_parameters()
    h = torch.randn(9, 12)
    torch.testing.assert_close(head(h), h @ weight.T)
    assert (name, weight.shape) == ("0.weight", (7, 12))


def test_a_plain_head_has_biases_and_no_norm() -> None:
    head = ProjectionHead.of_text(12, "20-7:plain")
    first, shift, last, end = head.parameters()
    h = torch.randn(9, 12)
    torch.testing.assert_close(head(h), (h @ first.T + shift).relu() @ last.T + end)
    torch.testing.assert_close(head.first_layers(1)(h), (h @ first.T + shift).relu())


@pytest.mark.parametrize(("text", "kept"), [("20-7:plain", 1), ("20-20-7:plain", 2), ("7", 1), ("20-7:reference", 2)])
def test_a_classifier_keeps_the_first_layers_of_any_head(text: str, kept: int, tmp_path: Path) -> None:
    encoder = build_encoder("test_resnet", "small-stride2", size=28)
    head = ProjectionHead.of_text(encoder.num_features, text).eval()
    classifier = Classifier(encoder, ["a", "b"], text, kept).eval()
    classifier.neck.load_state_dict(head.first_layers(kept).state_dict())
    save_classifier(classifier, tmp_path / "classifier.safetensors")
    x = torch.rand(2, 3, 28, 28)
    expected = classifier.linear(head.first_layers(kept)(encoder.eval()(x)))
    torch.testing.assert_close(load_classifier(tmp_path / "classifier.safetensors")(x), expected)


@pytest.mark.parametrize("text", ["", "12x4", "0-4", "8-9-4", "8-8-8-4", "²-4", "9" * 5000, "8-4:", "8-4:plane"])
def test_a_text_that_is_no_head_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(StepclrError, match=r"head must be widths|unknown form of head") as error:
        ProjectionHead.of_text(12, text)
    one_line(error)


# The frozen encoder over a set of images.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_size", [4, 256])
def test_representations_of_a_set_come_from_the_frozen_encoder(batch_size: int, training: bool) -> None:
    encoder = trained()
    pixels = np.stack([photo(32, 32 + k)[:, k:] for k in range(11)])
    images = open_images((pixels, np.arange(11) % 3))
    with torch.no_grad():
        expected = torch.cat([encoder(encoder.preprocess(image)) for image in pixels])
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    calls: list[tuple[int, int]] = []
    h, kept = represent(
        encoder.train(training), images, batch_size=batch_size, progress=lambda done, n: calls.append((done, n))
    )
    assert encoder.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert h.dtype == torch.float32
    assert kept.tolist() == list(range(11))
    torch.testing.assert_close(h, expected, rtol=1e-4, atol=1e-5)
    assert calls[-1] == (11, 11)
    assert len(calls) == math.ceil(11 / batch_size)


def test_h_of_large_images_is_the_same_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepclr.model.features.CHUNK", 4)
    encoder = trained(size=72)
    images = open_images((np.stack([photo(72, 72 + k)[:, k:] for k in range(9)]), np.zeros(9, int)))
    each = []
    for threads in (1, 2):
        with torch_threads(threads):
            each.append(represent(encoder, images)[0])
    assert torch.equal(*each)


def test_large_images_are_put_through_the_encoder_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepclr.model.features.CHUNK", 4)
    encoder = trained(size=72)
    pixels = np.stack([photo(72, 72 + k)[:, k:] for k in range(9)])
    with torch.no_grad():
        expected = encoder(torch.cat([encoder.preprocess(image) for image in pixels]))
    sizes: list[int] = []
    encoder.body.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    h, _ = represent(encoder, open_images((pixels, np.zeros(9, int))))
    assert sorted(sizes) == [1, 4, 4]
    torch.testing.assert_close(h, expected, rtol=1e-4, atol=1e-5)


# Parts in a loop of one's own


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    ],
    ids=["plain", "Lightning's", "DistributedDataParallel's"],
)
def test_the_encoder_of_a_larger_module_keeps_its_mean_and_std(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    encoder = build_encoder(SMALL, size=28, mean_std="imagenet")
    model = torch.nn.Sequential(encoder, ProjectionHead(encoder.num_features, 32, 8))
    torch.save(wrap(model.state_dict()), tmp_path / "model.pt")
    loaded = build_encoder(SMALL, size=28, weights=tmp_path / "model.pt")
    assert "with mean and std" in loaded.origin
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_file_with_two_encoders_is_refused(tmp_path: Path) -> None:
    two = torch.nn.ModuleDict({"online": build_encoder(SMALL, size=28), "target": build_encoder(SMALL, size=28)})
    torch.save(two.state_dict(), tmp_path / "two.pt")
    with pytest.raises(StepclrError, match=r"two.pt has several encoders: online, target; write the one to use"):
        build_encoder(SMALL, size=28, weights=tmp_path / "two.pt")


def test_a_saved_encoder_is_loaded_and_other_files_say_what_they_are(tmp_path: Path) -> None:
    encoder = trained(stem="small-stride2", size=28)
    save_encoder(encoder, tmp_path / "e.safetensors")
    loaded = load_encoder(tmp_path / "e.safetensors")
    assert (loaded.stem, loaded.size) == ("small-stride2", 28)
    with pytest.raises(StepclrError, match=r"out must end in .safetensors, not '.*e.pt'"):
        save_encoder(encoder, tmp_path / "e.pt")
    torch.save(encoder.state_dict(), tmp_path / "e.pt")
    with pytest.raises(StepclrError, match=r"e.pt is not a file that save_encoder writes; build_encoder\("):
        load_encoder(tmp_path / "e.pt")


@pytest.mark.usefixtures("unchecked")
def test_an_encoder_refuses_what_it_was_not_made_for() -> None:
    encoder = build_encoder(SMALL, size=28).eval()
    for x, words in (
        (
            torch.zeros(2, 3, 28, 28, dtype=torch.uint8),
            r"numbers in \[0, 1\], not torch.uint8; `preprocess`",
        ),
        (torch.rand(2, 1, 28, 28), r"must be \[n, 3, S, S\], not \[2, 1, 28, 28\]"),
        (torch.rand(3, 28, 28), r"must be \[n, 3, S, S\], not \[3, 28, 28\]"),
    ):
        with pytest.raises(StepclrError, match=words):
            encoder(x)


@pytest.mark.usefixtures("unchecked")
def test_settings_of_a_wrong_kind_are_named() -> None:
    for make, words in (
        (lambda: build_encoder(SMALL, size=0), "size must be at least 1, not 0"),
        (lambda: build_encoder(SMALL, channels=0), "channels must be at least 1, not 0"),
        (lambda: build_encoder(torch.nn.Flatten), "network must be a name or an nn.Module, not <class"),  # type: ignore[arg-type]
        (lambda: build_encoder(SMALL, mean_std=((0.5,) * 3, (0.2,) * 3)), "mean_std must be imagenet"),  # type: ignore[arg-type]
        (lambda: build_encoder(torch.nn.Linear(8, 8).double(), size=8), "numbers in torch.float64; give it in"),
        (lambda: ProjectionHead(0), "features must be at least 1, not 0"),
        (lambda: ProjectionHead(16, hidden=0), "hidden must be at least 1, not 0"),
        (lambda: ProjectionHead(16, out=8.0), "out must be a whole number, not 8.0"),  # type: ignore[arg-type]
    ):
        with pytest.raises(StepclrError, match=words):
            make()


def test_a_head_can_be_sliced() -> None:
    head, h = ProjectionHead(16, 32, 8, 3).eval(), torch.rand(4, 16)
    assert type(head[:-1]) is torch.nn.Sequential
    assert torch.equal(head[3:](head[:3](h)), head(h))
    assert head[0] is next(iter(head))


def test_a_module_without_weights_is_loaded_again(tmp_path: Path) -> None:
    encoder = build_encoder(torch.nn.Flatten(), size=8, mean_std="imagenet")
    save_encoder(encoder, tmp_path / "flat.safetensors")
    loaded, x = load_encoder(tmp_path / "flat.safetensors", module=torch.nn.Flatten()), torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded(x), encoder(x))
