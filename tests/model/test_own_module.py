"""An encoder whose network is the user's own module: built, saved and loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

import stepclr
from stepclr.errors import StepclrError
from stepclr.evaluation.baselines import random_encoder
from stepclr.model.files import save_encoder


class Net(nn.Module):
    """Five features, with BatchNorm and one layer that is frozen in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.frozen = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.BatchNorm2d(5).eval()

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n 5"]:
        h: Tensor = self.frozen(self.norm(self.conv(x))).mean((2, 3))
        return h


def test_the_module_itself_is_the_encoder_and_its_width_is_measured() -> None:
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    encoder = stepclr.build_encoder(net, size=20)
    assert encoder.body is net
    assert (encoder.name, encoder.stem, encoder.size, encoder.num_features) == ("module:Net", "own", 20, 5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert (net.training, net.norm.training, net.frozen.training) == (True, True, False)
    assert stepclr.build_encoder(net, num_features=7).num_features == 7  # taken as given
    x = torch.rand(4, 3, 20, 20)
    assert torch.equal(encoder.eval()(x), net(x))


def test_it_is_saved_and_loaded_into_another_such_module(tmp_path: Path) -> None:
    encoder = stepclr.build_encoder(Net(), size=20, normalize_h=True)
    encoder.classes = ["a", "b"]
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    net = Net()
    loaded = stepclr.load_encoder(tmp_path, module=net)
    assert loaded.body is net
    assert not loaded.training
    assert (loaded.size, loaded.num_features, loaded.normalize_h, loaded.classes) == (20, 5, True, ["a", "b"])
    x = torch.rand(4, 3, 20, 20)
    assert torch.equal(loaded(x), encoder.eval()(x))
    again = stepclr.build_encoder(Net(), weights=tmp_path, size=20, normalize_h=True)
    assert torch.equal(again.eval()(x), loaded(x))


def test_a_module_is_asked_for_where_it_is_needed_and_nowhere_else(tmp_path: Path) -> None:
    save_encoder(stepclr.build_encoder(Net(), size=20), tmp_path / "encoder.safetensors")
    with pytest.raises(StepclrError, match=r"your own module: in Python, pass module=Net\(\.\.\.\)"):
        stepclr.load_encoder(tmp_path)
    with pytest.raises(StepclrError, match="does not fit module:Conv2d"):
        stepclr.load_encoder(tmp_path, module=nn.Conv2d(3, 5, 3))
    save_encoder(stepclr.build_encoder("test_resnet", size=32), tmp_path / "encoder.safetensors")
    with pytest.raises(StepclrError, match="do not pass module"):
        stepclr.load_encoder(tmp_path, module=Net())


def test_a_run_of_ones_own_module_is_used_as_any_other(tmp_path: Path) -> None:
    encoder = stepclr.build_encoder(Net(), size=20)
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    train = stepclr.open_images("sample:train", classes=["Bag", "Trouser"], limit=40)
    h = stepclr.embed(tmp_path, train, module=Net())
    assert h.shape == (40, 5)
    settings: dict[str, Any] = {"baselines": ("random", "scratch"), "scratch_steps": 1, "draws": 1}
    test = stepclr.open_images("sample:test", classes=["Bag", "Trouser"], limit=20)
    scores = stepclr.evaluate(tmp_path, train, test, 5, module=Net(), **settings)
    assert [row.method for row in scores.rows] == ["random", "scratch", "simclr", "knn", "knn"]
    assert (tmp_path / "evaluation.json").exists()
    stepclr.finetune(tmp_path, train, labels_per_class=5, epochs=1, module=Net())
    assert stepclr.predict(tmp_path, train, module=Net()).probabilities.shape == (40, 2)
    for use in (
        lambda: stepclr.embed(tmp_path, train),
        lambda: stepclr.evaluate(tmp_path, train, train),
        lambda: stepclr.finetune(tmp_path, train),
        lambda: stepclr.predict(tmp_path, train),
    ):
        with pytest.raises(StepclrError, match=r"in Python, pass module=Net\(\.\.\.\)"):
            use()


class Tied(nn.Module):
    """Two layers with one weight, and a mask of attention among its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out, self.again = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 8)
        self.again.weight = self.out.weight
        self.mask: Tensor
        self.register_buffer("mask", torch.tensor([0.0] * 7 + [-torch.inf]))

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n 8"]:
        h: Tensor = self.again(self.out(self.into(x).mean((2, 3))))
        return h + self.mask.clamp(min=-1)


def test_a_module_with_tied_weights_and_a_mask_is_trained_saved_and_resumed(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 16, "micro_batch": 8, "limit": 32, "progress": False}
    net = Tied()
    run = stepclr.pretrain("sample:unlabeled", tmp_path / "run", encoder=net, epochs=1, **options)
    loaded = stepclr.load_encoder(run.folder, module=Tied())
    assert all(torch.equal(value, loaded.body.state_dict()[name]) for name, value in net.cpu().state_dict().items())
    stepclr.pretrain("sample:unlabeled", run.folder, encoder=Tied(), epochs=2, resume=True, **options)
    whole = stepclr.pretrain("sample:unlabeled", tmp_path / "whole", encoder=Tied(), epochs=2, **options)
    assert len(run.metrics) == len(whole.metrics) == 2


class Long(Net):
    """As a container of layers may be, it is as long as it has parts: here none."""

    def __len__(self) -> int:
        return 0


def test_a_module_whose_truth_is_false_is_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 16, "limit": 32, "progress": False, "epochs": 1}
    run = stepclr.pretrain("sample:unlabeled", tmp_path / "run", encoder=Long(), **options)
    assert run.config.encoder == "module:Long"


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_encoder_is_saved_under_the_names_of_the_plain_one(tmp_path: Path) -> None:
    encoder = stepclr.build_encoder("test_resnet", size=28)
    images = stepclr.open_images("sample:train", limit=4)
    path, whole = tmp_path / "e.safetensors", torch.compile(encoder, backend="eager")
    h = stepclr.embed(_saved(encoder, path), images)
    np.testing.assert_array_equal(stepclr.embed(_saved(whole, path), images), h)  # type: ignore[arg-type]
    encoder.body = torch.compile(encoder.body, backend="eager")  # type: ignore[assignment]
    np.testing.assert_array_equal(stepclr.embed(_saved(encoder, path), images), h)

    own = stepclr.build_encoder(Net(), size=20)
    _saved(own, path)
    loaded = stepclr.load_encoder(path, module=torch.compile(Net(), backend="eager"))  # type: ignore[arg-type]
    assert torch.equal(loaded.body.state_dict()["_orig_mod.conv.weight"], own.body.state_dict()["conv.weight"])
    for other in (nn.DataParallel(encoder), nn.Sequential(encoder, nn.Linear(96, 2)), Net()):
        with pytest.raises(StepclrError, match=f"save_encoder takes an Encoder, not {type(other).__name__}"):
            save_encoder(other, path)


def _saved(encoder: stepclr.Encoder, path: Path) -> Path:
    save_encoder(encoder, path)
    return path


def test_random_is_a_new_initialization_of_ones_own_module() -> None:
    encoder = stepclr.build_encoder(Net(), size=20)
    first, again, other = (random_encoder(encoder, seed).state_dict() for seed in (1, 1, 2))
    weight = "body.conv.weight"
    assert torch.equal(first[weight], again[weight])
    assert not torch.equal(first[weight], other[weight])
    assert not torch.equal(first[weight], encoder.state_dict()[weight])
    encoder.body.register_parameter("token", nn.Parameter(torch.ones(3)))
    with pytest.raises(StepclrError, match=r"the module \(Net\) of your own module has none"):
        random_encoder(encoder, 1)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kept", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_random_keeps_no_weight_that_a_layer_does_not_reset(kept: Any) -> None:
    """A hook computes the weight that `reset_parameters` sets from others, which stay as they were trained."""
    net = Net()
    kept(net.conv)
    encoder = stepclr.build_encoder(net, size=20)  # which computes weights without a gradient
    message = r"conv \(Conv2d\) of your own module has one that leaves some of its parameters as they are; leave"
    with pytest.raises(StepclrError, match=message):
        random_encoder(encoder, 1)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(3, 5, 3), r"Conv2d must map images \[2, 3, 20, 20\] -> \[2, features\], but it returns"),
        (nn.Linear(7, 5), "Linear must map .* but it fails: "),
    ],
)
def test_a_module_that_is_not_an_encoder_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(StepclrError, match=message) as error:
        stepclr.build_encoder(module, size=20)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"stem": "small"}, {"weights": "timm"}])
def test_what_is_for_timm_s_networks_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(StepclrError, match="Net"):
        stepclr.build_encoder(Net(), size=20, **options)  # type: ignore[arg-type]
