"""Encoders off the shelf: "timm:NAME" has timm's features, and what is missing is one line, without a network."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import save_file
from small import put_where_timm_looks
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import nn

import stepclr
from stepclr.errors import StepclrError
from stepclr.model import timm_weights
from stepclr.model.build import build_encoder
from stepclr.model.files import load_encoder, save_encoder

NAMES = ("test_resnet.r160_in1k", "test_vit.r160_in1k", "test_convnext.r160_in1k", "test_efficientnet.r160_in1k")


def photos(count: int = 4) -> list[Image.Image]:
    """Real images, enlarged, so that all shapes are there: wide, tall and square."""
    pixels = stepclr.open_images("sample:test", limit=count).read(range(count))
    shapes = ((300, 200), (180, 260), (160, 160), (96, 120))
    images = []
    for image, shape in zip(pixels, shapes, strict=True):
        images.append(Image.fromarray(image.permute(1, 2, 0).numpy()).resize(shape, Image.Resampling.BICUBIC))
    return images


def timms_features(network: nn.Module, images: list[Image.Image]) -> torch.Tensor:
    """As timm's documentation computes them."""
    transform = create_transform(**resolve_data_config(model=network))  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        return torch.cat([network(transform(image)[None]) for image in images])


def assert_same_features(encoder: stepclr.Encoder, network: nn.Module, name: str) -> None:
    images = photos()
    with torch.inference_mode():
        h = encoder(encoder.preprocess(images))
    expected = timms_features(network, images)
    assert h.shape == expected.shape, name
    # timm resizes in 8 bits, and cuts the longer side's fraction of a pixel off.
    error = (h - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 0.02, (name, error)


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_of_timm_has_timms_features_on_timms_own_transform(name: str) -> None:
    network = put_where_timm_looks(name)
    encoder = load_encoder(f"timm:{name}")
    assert (encoder.name, encoder.size, encoder.weights) == (name.split(".")[0], 160, f"timm:{name}")
    assert not encoder.training
    assert_same_features(encoder, network, name)


def test_crop_and_interpolation_are_part_of_its_file(off_the_shelf: str, tmp_path: Path) -> None:
    encoder = load_encoder(off_the_shelf)
    assert (encoder.side, encoder.interpolation) == (168, "bilinear")  # 160 / 0.95, rounded down
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    again = load_encoder(tmp_path / "encoder.safetensors")
    assert again.weights == off_the_shelf
    for image in photos():
        assert torch.equal(again(again.preprocess(image)), encoder(encoder.preprocess(image)))


def test_the_name_without_a_tag_is_the_one_that_timm_prefers(off_the_shelf: str) -> None:
    assert load_encoder("timm:test_resnet").weights == off_the_shelf


def test_an_encoder_that_squashes_shows_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "test_vit2.r160_in1k"
    network = put_where_timm_looks(name)
    squashing = timm.models.get_pretrained_cfg(name)
    assert squashing is not None
    squashing.crop_mode, squashing.crop_pct = "squash", 1.0
    monkeypatch.setattr(timm_weights, "get_pretrained_cfg", lambda _: squashing)
    encoder = load_encoder(f"timm:{name}")
    assert encoder.squash
    network.pretrained_cfg |= {"crop_mode": "squash", "crop_pct": 1.0}  # type: ignore[operator]
    assert_same_features(encoder, network, name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnt50", "unknown weights of timm 'resnt50'. Did you mean 'resnet50'?"),
        ("resnet50.a1_in1", "unknown weights of timm's resnet50 'resnet50.a1_in1'. Did you mean 'resnet50.a1_in1k'?"),
        ("resnt50.a1_in1k", "Did you mean 'resnet50.a1_in1k'?"),
        ("botnet50ts_256", "timm has the network botnet50ts_256, but no weights for it. Did you mean"),
        ("", "unknown weights of timm ''"),
        ("vit_huge_patch16_sapiens2.fb", "takes 1024 x 768 px; only square images"),
    ],
)
def test_a_name_without_weights_is_answered_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(StepclrError) as error:
        load_encoder(f"timm:{name}")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_of_timm_without_its_prefix_is_recognized() -> None:
    with pytest.raises(StepclrError, match=r"there is no run resnet18\. Did you mean 'timm:resnet18'"):
        load_encoder("resnet18")


def test_offline_a_missing_file_is_one_line_that_says_what_to_put_where() -> None:
    began = time.monotonic()
    with pytest.raises(StepclrError) as error:
        load_encoder("timm:test_nfnet")
    assert time.monotonic() - began < 5  # one request, no retries
    said = str(error.value)
    assert "the weights of timm:test_nfnet are not on this machine and cannot be downloaded" in said
    assert "/timm/test_nfnet.r160_in1k/resolve/main/model.safetensors on another machine" in said
    assert "\n" not in said
    # Put there, it is found.
    where = Path(said.split("save it as ")[1])
    assert where.is_relative_to(os.environ["HF_HUB_CACHE"])
    put_where_timm_looks("test_nfnet.r160_in1k")
    assert where.is_file()
    load_encoder("timm:test_nfnet")


def test_offline_a_missing_file_of_a_url_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(StepclrError, match=r"get https://.*/seresnet18-4bb0ce65\.pth on") as error:
        build_encoder("legacy_seresnet18", weights="timm")
    where = Path(str(error.value).split("save it as ")[1])
    where.parent.mkdir(parents=True, exist_ok=True)
    torch.save(timm.create_model("legacy_seresnet18").state_dict(), where)
    assert build_encoder("legacy_seresnet18", weights="timm").weights == "timm:legacy_seresnet18.in1k"


def test_an_older_repository_has_its_weights_in_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for once the server has said that there is no model.safetensors."""

    def only_a_pickle(url: str, **_: object) -> None:
        assert url.endswith("/timm/test_vit3.r160_in1k/resolve/main/model.safetensors")
        raise LocalEntryNotFoundError("not there")

    network = timm.create_model("test_vit3", num_classes=0).eval()
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", only_a_pickle)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda _, file: str(tmp_path / file))
    encoder = load_encoder("timm:test_vit3")
    assert torch.equal(encoder.body.state_dict()["norm.weight"], network.state_dict()["norm.weight"])


def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_weights, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: time.sleep(3))
    with pytest.raises(StepclrError, match=r"no answer within 0\.2 seconds"):
        load_encoder("timm:test_efficientnet_gn")


def test_a_file_that_holds_other_weights_is_refused(off_the_shelf: str) -> None:
    """timm would go on with random weights."""
    name = "test_byobnet.r160_in1k"
    put_where_timm_looks(name)
    (path,) = Path(os.environ["HF_HUB_CACHE"]).glob(f"models--timm--{name}/snapshots/*/model.safetensors")
    save_file(load_encoder(off_the_shelf).state_dict(), path)
    with pytest.raises(StepclrError, match=r"does not hold the weights of timm:.*: it lacks \d+ of the network"):
        load_encoder(f"timm:{name}")
    path.write_bytes(b"cut off")
    with pytest.raises(StepclrError, match="does not hold the weights of timm:") as error:
        load_encoder(f"timm:{name}")
    assert "\n" not in str(error.value)


def test_initial_weights_bring_their_network_stem_mean_and_std(off_the_shelf: str) -> None:
    encoder = build_encoder("test_resnet", weights=off_the_shelf, size=32)
    assert (encoder.size, encoder.side, encoder.stem) == (32, 32, "own")
    assert encoder.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    loaded = load_encoder(off_the_shelf).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(StepclrError, match="are of the network test_resnet, not of resnet18; leave out encoder"):
        build_encoder("resnet18", weights=off_the_shelf)
    put_where_timm_looks("resnet18.a1_in1k")
    small = build_encoder("resnet18", weights="timm", size=32)
    assert (small.stem, small.weights) == ("imagenet", "timm:resnet18.a1_in1k")  # not a new first convolution
    assert small(torch.rand(2, 3, 32, 32)).shape == (2, 512)
    with pytest.raises(StepclrError, match="have the stem imagenet, not small; leave out stem"):
        build_encoder("resnet18", stem="small", weights="timm")


def test_a_blurred_stem_is_not_taken_for_the_usual_one(tmp_path: Path) -> None:
    """resnetblur18's pooling is another: written and read, it computes the same."""
    encoder = build_encoder("resnetblur18", size=96).eval()
    assert encoder.stem == "own"
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    x = torch.rand(2, 3, 96, 96)
    assert torch.equal(load_encoder(tmp_path / "encoder.safetensors")(x), encoder(x))
    assert np.isfinite(encoder(x).detach().numpy()).all()
