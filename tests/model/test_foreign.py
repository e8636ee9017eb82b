"""Checkpoints as other programs write them: the backbone is found, heads left out, mean and std are the sender's."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import stepclr
from stepclr.errors import StepclrError
from stepclr.model.build import build_encoder
from stepclr.model.foreign import parse_mean_std

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
NONE = ([0.0] * 3, [1.0] * 3)
State = dict[str, Tensor]


def under(prefix: str, state: State, change: float = 0.0) -> State:
    return {prefix + name: tensor + change if change else tensor for name, tensor in state.items()}


def head(prefix: str) -> State:
    return {f"{prefix}.0.weight": torch.ones(4, 4), f"{prefix}.0.bias": torch.ones(4)}


def moco(state: State) -> Any:
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    both = under("module.encoder_q.", body | head("fc")) | under("module.encoder_k.", body | head("fc"), change=1.0)
    tensors = both | {"module.queue": torch.ones(4, 4), "module.queue_ptr": torch.zeros(1)}
    return {"epoch": 200, "arch": "resnet18", "state_dict": tensors, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}


def moco_v3(state: State) -> Any:
    both = under("module.base_encoder.", state) | under("module.momentum_encoder.", state, change=1.0)
    return {"epoch": 300, "state_dict": both | head("module.predictor")}


def supcontrast(state: State) -> Any:
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    encoder = {f"encoder.module.{name}".replace("downsample", "shortcut"): tensor for name, tensor in body.items()}
    opt = argparse.Namespace(dataset="cifar100", model="resnet18", temp=0.1)
    return {"opt": opt, "model": encoder | head("head"), "optimizer": {}, "epoch": 1000}


class Settings:
    """Of a package that is not installed here: its class is known by name alone."""


def solo_learn(state: State) -> Any:
    tensors = under("backbone.", state) | under("momentum_backbone.", state, change=1.0)
    tensors |= head("projector") | {"classifier.weight": torch.ones(4, 4)}
    settings = {"data": {"dataset": "imagenet100"}, "method": Settings()}
    return {"state_dict": tensors, "pytorch-lightning_version": "2.1", "hyper_parameters": settings, "callbacks": {}}


def dino(state: State) -> Any:
    student = under("module.backbone.", state, change=1.0) | head("module.head.mlp")
    teacher = under("backbone.", state) | head("head.mlp")
    return {"student": student, "teacher": teacher, "epoch": 100, "args": argparse.Namespace(arch="vit_small")}


def lightly(state: State) -> Any:
    network = torchvision.models.resnet18()
    network.load_state_dict(state)
    backbone = nn.Sequential(*list(network.children())[:-1])
    tensors = under("backbone.", backbone.state_dict()) | head("projection_head.layers")
    return {"state_dict": tensors, "pytorch-lightning_version": "2.1"}


WRITERS: dict[str, tuple[Callable[[State], Any], tuple[list[float], list[float]], str]] = {
    "torchvision": (lambda state: state, IMAGENET, "left out 2 of fc; torchvision or timm's"),
    "moco": (moco, IMAGENET, "under encoder_q; left out 2 of fc, 122 of encoder_k, 1 of queue, 1 of queue_ptr; MoCo's"),
    "moco v3": (moco_v3, IMAGENET, "under base_encoder; left out 2 of fc, 122 of momentum_encoder, 2 of predictor"),
    "supcontrast": (
        supcontrast,
        ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]),
        "under encoder; left out 2 of head; SupContrast's",
    ),
    "solo-learn": (solo_learn, IMAGENET, "under backbone; left out 2 of fc, 122 of momentum_backbone, 2 of projector"),
    "dino": (dino, IMAGENET, "under teacher.backbone; left out 124 of student, 2 of fc, 2 of teacher; DINO's"),
    "lightly": (lightly, IMAGENET, "under backbone; left out 2 of projection_head; lightly's"),
    "lightning": (lambda state: {"state_dict": under("model.net.", state)}, NONE, "under model.net; left out 2 of fc"),
    "compiled": (lambda state: under("_orig_mod.module.", state), IMAGENET, "left out 2 of fc"),
    "compiled, wrapped": (lambda state: {"model": under("module._orig_mod.", state)}, IMAGENET, "left out 2 of fc"),
}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """torchvision's ResNet-18 with a small stem, whose BatchNorm has seen images."""
    torch.manual_seed(1)
    network: nn.Module = torchvision.models.resnet18()
    network(torch.rand(4, 3, 64, 64))
    return network


def write(writer: str, network: nn.Module, path: Path, lacking: str = "") -> Path:
    state = {name: tensor for name, tensor in network.state_dict().items() if name != lacking}
    torch.save(WRITERS[writer][0](state), path)
    return path


@pytest.mark.parametrize("writer", WRITERS)
def test_the_backbone_is_found_and_its_features_are_the_senders(
    writer: str, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(writer, network, tmp_path / "weights.pth")
    monkeypatch.delattr(f"{__name__}.Settings")
    encoder = build_encoder("resnet18", "imagenet", path, size=64).eval()
    _, (mean, std), words = WRITERS[writer]
    assert words in encoder.origin
    assert encoder.origin.startswith(f"120 tensors of {path}")
    assert encoder.mean.flatten().tolist() == pytest.approx(mean)
    assert encoder.std.flatten().tolist() == pytest.approx(std)
    x = torch.rand(2, 3, 64, 64)
    normalized = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.inference_mode():
        maps = nn.Sequential(*list(network.eval().children())[:-1])
        torch.testing.assert_close(encoder(x), maps(normalized).flatten(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("writer", [writer for writer in WRITERS if writer != "lightly"])
def test_a_missing_tensor_of_the_backbone_is_refused(writer: str, network: nn.Module, tmp_path: Path) -> None:
    """Also where the second network in the file has it."""
    path = tmp_path / "weights.pth"
    stored = WRITERS[writer][0](dict(network.state_dict()))
    write(writer, network, path, lacking="layer2.0.conv1.weight")
    with pytest.raises(StepclrError, match="1 missing") as error:
        build_encoder("resnet18", "imagenet", path, size=64)
    assert "layer2.0.conv1.weight" in str(error.value)
    assert "\n" not in str(error.value)
    assert stored


def test_a_missing_count_of_batches_is_not_a_missing_weight(network: nn.Module, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    build_encoder("resnet18", "imagenet", tmp_path / "weights.pth", size=64)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("imagenet", IMAGENET),
        ("none", NONE),
        ("0.5,0.4,0.3,0.2,0.2,0.1", ([0.5, 0.4, 0.3], [0.2, 0.2, 0.1])),
    ],
)
def test_mean_and_std_may_be_given(
    given: str, expected: tuple[list[float], list[float]], network: nn.Module, tmp_path: Path
) -> None:
    path = write("lightning", network, tmp_path / "weights.pth")
    encoder = build_encoder("resnet18", "imagenet", path, size=64, mean_std=given)
    assert encoder.mean.flatten().tolist() == pytest.approx(expected[0])
    assert encoder.std.flatten().tolist() == pytest.approx(expected[1])


@pytest.mark.parametrize(
    "given", ["imagnet", "", "1,2,3", "0,0,0,1,1,0", "0,0,0,1,1,-1", "nan,0,0,1,1,1", "a,b,c,d,e,f"]
)
def test_another_mean_and_std_is_refused_in_one_line(given: str) -> None:
    with pytest.raises(StepclrError, match="mean_std") as error:
        parse_mean_std(given)
    assert "\n" not in str(error.value)


def test_a_run_says_what_it_starts_from_and_keeps_it(
    network: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("moco", network, tmp_path / "weights.pth")
    options: dict[str, Any] = {"encoder": "resnet18", "stem": "imagenet", "size": 32, "epochs": 1, "batch_size": 4}
    run = stepclr.pretrain("sample:unlabeled", tmp_path / "run", weights=str(path), limit=4, **options)
    assert f"weights: 120 tensors of {path} under encoder_q; left out" in capsys.readouterr().err
    assert run.encoder().mean.flatten().tolist() == pytest.approx(IMAGENET[0])
    checkpoint = next((run.folder / "checkpoint").iterdir())
    with pytest.raises(StepclrError, match="is a checkpoint of a run"):
        build_encoder("resnet18", "imagenet", checkpoint, size=32)
