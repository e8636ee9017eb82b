"""Progressive resolution: smaller views first, a function of the step alone."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

import stepclr
from stepclr.model.build import is_resnet
from stepclr.pretraining.checkpoint import checkpoints

SETTINGS: dict[str, Any] = {
    "encoder": "test_resnet",
    "stem": "small-stride2",
    "batch_size": 16,
    "head": "32-16",
    "limit": 80,  # 5 steps an epoch
    "epochs": 4,
    "progressive": True,
    "progress": False,
}


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Side of the views of each step."""
    seen: list[int] = []
    forward = stepclr.Encoder.forward

    def watched(self: stepclr.Encoder, x: Tensor) -> Tensor:
        if self.training:
            seen.append(x.shape[-1])
        return forward(self, x)

    monkeypatch.setattr(stepclr.Encoder, "forward", watched)
    return seen


def test_views_grow_with_the_share_of_the_steps(sizes: list[int], tmp_path: Path) -> None:
    run = stepclr.pretrain("sample:unlabeled", tmp_path / "run", **SETTINGS)
    assert sizes == [14] * 8 + [21] * 7 + [28] * 5  # of 20 steps: up to 0.4, up to 0.75
    assert (run.config.progressive, run.config.size, run.encoder().size) == (True, 28, 28)


def test_without_the_option_they_are_of_one_size(sizes: list[int], tmp_path: Path) -> None:
    stepclr.pretrain("sample:unlabeled", tmp_path / "run", **{**SETTINGS, "progressive": False})
    assert sizes == [28] * 20


def test_a_progressive_run_resumes_bit_for_bit(sizes: list[int], tmp_path: Path) -> None:
    whole = stepclr.pretrain("sample:unlabeled", tmp_path / "whole", **SETTINGS)
    shutil.copytree(whole.folder, tmp_path / "run")
    for file in checkpoints(tmp_path / "run" / "checkpoint")[1:]:
        file.unlink()  # the one before the last epoch's stays
    sizes.clear()
    again = stepclr.pretrain("sample:unlabeled", tmp_path / "run", resume=True, progress=False)
    assert sizes == [28] * 5
    for name, tensor in whole.encoder().state_dict().items():
        assert torch.equal(tensor, again.encoder().state_dict()[name]), name


def test_small_views_are_views_of_that_size(tmp_path: Path) -> None:
    """The first batch of a progressive run is what `Views` of half the size makes of it."""
    met: list[Tensor] = []
    forward = stepclr.Encoder.forward

    def first(self: stepclr.Encoder, x: Tensor) -> Tensor:
        met.append(x.clone())
        return forward(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepclr.Encoder, "forward", first)
        stepclr.pretrain("sample:unlabeled", tmp_path / "run", **{**SETTINGS, "epochs": 1})
    from stepclr.data.order import epoch_order

    images = stepclr.open_images("sample:unlabeled", limit=80)
    rows = epoch_order(0, 0, 80)[:16]
    views = stepclr.Views("simclr", 14, strength=0.5, blur=0.0, min_area=0.2)
    assert torch.equal(met[0], views(images.read(rows), stepclr.view_keys(0, 0, rows)).flatten(0, 1))


def test_it_is_for_resnets_alone(tmp_path: Path) -> None:
    options = {**SETTINGS, "encoder": "test_vit", "stem": "auto", "size": 160}
    with pytest.raises(stepclr.StepclrError, match=r"progressive is for ResNets.*set progressive=False"):
        stepclr.pretrain("sample:unlabeled", tmp_path / "run", **options)


@pytest.mark.parametrize(
    "name", ["resnet50x2", "resnet18.a1_in1k", "seresnet50", "skresnet18", "resnest14d", "test_vit"]
)
def test_a_resnet_is_known_by_its_name(name: str) -> None:
    with torch.device("meta"):
        body = stepclr.build_encoder(name, size=160).body
    assert is_resnet(name) == isinstance(body, ResNet)


def test_a_recipe_keeps_its_stem_and_growing_views_for_resnets(sizes: list[int], tmp_path: Path) -> None:
    own: dict[str, Any] = {"recipe": "cifar10", "epochs": 1, "limit": 32, "batch_size": 16, "progress": False}
    for name in ("resnet10x0.5", "test_resnet"):
        run = stepclr.pretrain("sample:unlabeled", tmp_path / name, encoder=name, **own)
        assert (run.config.stem, run.config.progressive) == ("small", True)
    sizes.clear()
    run = stepclr.pretrain("sample:unlabeled", tmp_path / "run", encoder="test_efficientnet", **own)
    assert (run.config.stem, run.config.progressive, sizes) == ("own", False, [28] * 2)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 8))
    run = stepclr.pretrain("sample:unlabeled", tmp_path / "module", encoder=flat, test_scale=1.0, **own)
    assert (run.config.stem, run.config.progressive) == ("own", False)
    refused: tuple[dict[str, Any], ...] = ({"stem": "small"}, {"progressive": True})
    for asked in refused:
        with pytest.raises(stepclr.StepclrError, match="is for ResNets"):
            stepclr.pretrain("sample:unlabeled", tmp_path / "other", encoder="test_efficientnet", **asked, **own)


def test_a_teacher_takes_views_of_one_size(sizes: list[int], tmp_path: Path) -> None:
    """Growing views that a recipe brings are left out, and those that are asked for refused."""
    own = {**SETTINGS, "epochs": 1, "limit": 32, "progressive": False}
    teacher = stepclr.pretrain("sample:train", tmp_path / "teacher", loss="cross-entropy", **own)
    sizes.clear()
    student = {**own, "recipe": "cifar10", "loss": "distill", "teacher": str(teacher.folder)}
    del student["progressive"]
    run = stepclr.pretrain("sample:unlabeled", tmp_path / "student", **student)
    assert (run.config.progressive, sizes) == (False, [28] * 2)
    with pytest.raises(stepclr.StepclrError, match="the teacher takes views of one size"):
        stepclr.pretrain("sample:unlabeled", tmp_path / "other", **student, progressive=True)
