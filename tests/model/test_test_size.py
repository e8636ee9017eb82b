"""Whole images larger than the views: every use of a trained encoder brings images to the same size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import call, succeed
from torch import nn

import stepclr
from stepclr.errors import StepclrError
from stepclr.evaluation.baselines import pixels, random_encoder
from stepclr.model.features import represent
from stepclr.model.files import load_classifier, load_encoder, save_encoder
from stepclr.recipes import recipe_config
from stepclr.tools.search.index import encoder_checksum

OPTIONS: dict[str, Any] = {"encoder": "test_resnet", "stem": "small-stride2", "epochs": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> stepclr.Run:
    """A run on views of 16 px, whose encoder represents images of 24 px."""
    out = tmp_path_factory.mktemp("runs") / "larger"
    return stepclr.pretrain(
        "sample:train", out, **OPTIONS, size=16, test_scale=1.5, limit=48, progress=False, monitor="sample:test"
    )


def test_whole_images_are_larger_than_views(run: stepclr.Run) -> None:
    encoder = run.encoder()
    assert (encoder.size, encoder.test_size, encoder.side, run.config.test_size) == (16, 24, 24, 24)
    x = encoder.preprocess(Image.new("RGB", (60, 40), "teal"))
    assert x.shape == (1, 3, 24, 24)
    # Training and its views stay as they are without it.
    plain = stepclr.pretrain("sample:train", run.folder.parent / "plain", **OPTIONS, size=16, limit=48, progress=False)
    weights, others = encoder.state_dict(), plain.encoder().state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_share_that_is_cropped_stays() -> None:
    encoder = stepclr.build_encoder("test_resnet", size=96)
    assert (encoder.test_size, encoder.side) == (96, 110)
    encoder.represent_at(144)
    assert (encoder.size, encoder.test_size, encoder.side) == (96, 144, 165)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (220, 165, 3), np.uint8))
    middle = photo.crop((10, 38, 154, 182))  # at 165 px of width nothing is resized
    expected = torch.from_numpy(np.array(middle)).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(encoder.preprocess(photo), expected, rtol=0, atol=1e-6)
    assert encoder.training


def test_every_use_brings_images_to_that_size(run: stepclr.Run, tmp_path: Path) -> None:
    encoder = run.encoder()
    few = stepclr.open_images("sample:test", limit=30)
    h, _ = represent(encoder, few)
    expected = encoder(torch.cat([encoder.preprocess(few[i][0]) for i in range(3)])).detach()
    torch.testing.assert_close(h[:3], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(h, represent(encoder.represent_at(16), few)[0], atol=1e-3)  # the mutant

    np.testing.assert_allclose(stepclr.embed(run, few), h.numpy(), rtol=1e-4, atol=1e-5)
    exported = stepclr.export(run, tmp_path / "exported", "torch-export", "sample:train")
    card = exported.card.read_text()
    assert "[n, 3, 24, 24]" in card
    assert "central crop of 24 x 24 px" in card
    assert "Made for 24 px, from views of 16 px;" in card

    path = tmp_path / "c.safetensors"
    stepclr.finetune(run, stepclr.open_images("sample:train", limit=40), few, epochs=1, out=path)
    assert load_classifier(path).encoder.test_size == 24
    # A student represents whole images as its teacher does, unless it is told otherwise.
    options: dict[str, Any] = {"epochs": 1, "batch_size": 16, "limit": 32, "progress": False}
    student = stepclr.distill(path, "sample:train", tmp_path / "student", student="test_resnet", **options)
    assert (student.config.test_scale, student.encoder().test_size) == (1.5, 24)
    student = stepclr.distill(path, few, tmp_path / "other", student="test_resnet", test_scale=1.0, **options)
    assert student.encoder().test_size == 16


def test_scores_say_it_and_baselines_share_it(run: stepclr.Run) -> None:
    train, few = stepclr.open_images("sample:train", limit=60), stepclr.open_images("sample:test", limit=30)
    scores = stepclr.evaluate(run, train, few, labels_per_class=1, draws=1, baselines=("pixels", "random"))
    assert "central crop of 24 x 24 px" in scores.protocol["representation"]
    encoder = run.encoder()
    assert random_encoder(encoder, 0).test_size == 24
    # Pixels say no more when they are enlarged: the baseline has as many as a view.
    of_views = stepclr.build_encoder("test_resnet", "small-stride2", size=16)
    assert pixels(encoder).num_features == 3 * 16 * 16
    assert torch.equal(represent(pixels(encoder), few)[0], represent(pixels(of_views), few)[0])


def test_a_card_has_no_scores_of_another_size(run: stepclr.Run, tmp_path: Path) -> None:
    train, few = stepclr.open_images("sample:train", limit=60), stepclr.open_images("sample:test", limit=30)
    stepclr.evaluate(run, train, few, labels_per_class=1, draws=1, baselines=())
    assert "the scores in" not in stepclr.export(run, tmp_path / "same", "torch-export").card.read_text()
    other = run.folder / "other.safetensors"
    save_encoder(run.encoder().represent_at(16), other)
    card = stepclr.export(other, tmp_path / "other", "torch-export").card.read_text()
    assert "None: the scores in evaluation.json belong to images of another size." in card
    assert "[n, 3, 16, 16]" in card


def test_it_is_another_encoder_to_an_index(run: stepclr.Run) -> None:
    encoder = run.encoder()
    before = encoder_checksum(encoder)
    assert encoder_checksum(encoder.represent_at(16)) != before


def test_files_of_earlier_versions_have_the_size_of_the_views(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(stepclr.build_encoder("test_resnet", size=16).represent_at(24), path)
    assert load_encoder(path).test_size == 24
    path.write_bytes(path.read_bytes().replace(b'"test_size":"24"', b'"tset_size":"24"'))
    assert load_encoder(path).test_size == 16


@pytest.mark.parametrize("name", ["size", "test_size", "side"])
@pytest.mark.parametrize("pixels", ["-1", "00", "99999"])
def test_a_size_that_no_image_has(name: str, pixels: str, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    encoder = stepclr.build_encoder("test_resnet", size=16)
    encoder.size = encoder.test_size = encoder.side = 10 ** (len(pixels) - 1)  # as many digits
    save_encoder(encoder, path)
    written = f'"{name}":"{10 ** (len(pixels) - 1)}"'.encode()
    assert written in path.read_bytes()
    value = pixels.replace("00", " 0")
    path.write_bytes(path.read_bytes().replace(written, f'"{name}":"{value}"'.encode()))
    with pytest.raises(StepclrError, match=f"is corrupt: {name} is {int(pixels)}"):
        load_encoder(path)


def test_runs_of_earlier_versions_are_read(run: stepclr.Run) -> None:
    path = run.folder.parent / "plain" / "config.json"
    stored = json.loads(path.read_text())
    del stored["test_scale"]
    path.write_text(json.dumps(stored))
    config = stepclr.Run(path.parent).config
    assert (config.test_scale, config.test_size) == (1, 16)


def test_a_recipe_follows_the_size_that_is_asked_for(tmp_path: Path) -> None:
    config = recipe_config("cifar10")
    assert config.test_scale == 1.5
    given: dict[str, Any] = {"encoder": "test_resnet", "epochs": 1, "limit": 32}
    run = stepclr.pretrain("sample:train", tmp_path, config=config, size=20, progress=False, **given)
    assert run.encoder().test_size == 30


class Flat(nn.Module):
    """A network for images of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(x.flatten(1))
        return out


def test_a_network_that_takes_one_size_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("pretrain", "sample:train", "--limit", 32, "--batch-size", 16, "--epochs", 1, "--out", tmp_path / "run")
    assert call(*words, "--size", 32, "--encoder", "vit_tiny_patch16_224", "--test-scale", 1.5) == 2
    said = capsys.readouterr().err
    assert "vit_tiny_patch16_224 takes images of 32 px, but not of 48 px, which --test-scale 1 avoids" in said
    assert not (tmp_path / "run" / "config.json").exists()

    module = Flat()
    module.train()
    module.linear.eval()
    encoder = stepclr.build_encoder(module, size=16)
    with pytest.raises(StepclrError, match="takes images of 16 px, but not of 24 px"):
        encoder.represent_at(24)
    assert (encoder.test_size, encoder.side) == (16, 16)
    assert module.training
    assert not module.linear.training  # as it was


@pytest.mark.parametrize("scale", ["0.9", "2.1", "nan"])
def test_beyond_what_is_decoded(scale: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("pretrain", "sample:train", "--limit", 32, "--test-scale", scale, "--out", tmp_path / "run") == 2
    assert f"--test-scale must lie between 1 and 2, not {scale}" in capsys.readouterr().err


def test_the_first_lines_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--limit", 32, "--batch-size", 16, "--epochs", 1, "--encoder", "test_resnet", "--size", 16)
    succeed("pretrain", "sample:unlabeled", *words, "--test-scale", 1.5, "--out", tmp_path / "run")
    assert "whole images are represented at 24 px" in " ".join(capsys.readouterr().err.split())
