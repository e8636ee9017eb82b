"""A run that diverges ends in one line and leaves no encoder; commands refuse one that there is all the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import SETTINGS, call

import stepclr
from stepclr.model.files import load_encoder, save_encoder
from stepclr.pretraining.checkpoint import checkpoints
from stepclr.pretraining.loop import Diverged

# With this rate the weights stay finite for the two steps of an epoch, and h does not: the statistics of BatchNorm,
# which are means over many steps, are behind.
HIGH: dict[str, Any] = SETTINGS | {"epochs": 1, "batch_size": 32, "limit": 64, "lr": 1e8, "precision": "fp32"}


@pytest.mark.parametrize("source", ["sample:train", "sample:unlabeled"], ids=["with kNN", "without"])
def test_it_is_one_line_at_an_epochs_end_and_again_when_resumed(source: str, tmp_path: Path) -> None:
    for resume in (False, True):
        with pytest.raises(Diverged, match=r"^the representation h is not finite at step 2 \(learning rate .*lower lr"):
            stepclr.pretrain(source, tmp_path / "run", resume=resume, progress=False, **HIGH)
        assert not (tmp_path / "run" / "encoder.safetensors").exists()
        assert not checkpoints(tmp_path / "run" / "checkpoint")


def test_the_command_line_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in HIGH.items()]
    assert call("pretrain", "sample:train", "--out", tmp_path / "run", *words) == 1
    assert "h is not finite" in capsys.readouterr().err.splitlines()[-1]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "No encoder" in page
    assert "rate too high" in page
    assert "Train again" in page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run whose encoder has a statistic that is not a number, and one whose h overflows although all are."""
    made = {}
    for name in ("weights", "h"):
        folder = tmp_path_factory.mktemp(name) / "run"
        stepclr.pretrain("sample:train", folder, progress=False, **(HIGH | {"lr": 0.1}))
        encoder = load_encoder(folder)
        norms = [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        with torch.no_grad():
            if name == "weights":
                norms[-1].running_mean.fill_(float("nan"))  # type: ignore[union-attr]
            else:
                for norm in norms:
                    norm.weight.fill_(1e30)
        save_encoder(encoder, folder / "encoder.safetensors")
        made[name] = folder
    return made


COMMANDS: dict[str, list[str]] = {
    "embed": ["RUN", "sample:test", "--limit", "8", "--out", "OUT.npz"],
    "evaluate": ["RUN", "--train", "sample:train", "--test", "sample:test"],
    "finetune": ["RUN", "--train", "sample:train", "--epochs", "1"],
    "export": ["RUN", "--out", "OUT.safetensors", "--format", "safetensors"],
    "report": ["RUN"],
}


@pytest.mark.parametrize("name", ["weights", "h"])
@pytest.mark.parametrize("what", COMMANDS)
def test_every_command_refuses_such_an_encoder(
    what: str, name: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("RUN", str(runs[name])).replace("OUT", str(tmp_path / "out")) for word in COMMANDS[what]]
    assert call(what, *words) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("stepclr: ")] == said[-1:]
    assert "its training diverged" in said[-1]
    assert not list(tmp_path.iterdir())


def test_python_and_scikit_learn_refuse_it_too(runs: dict[str, Path]) -> None:
    images = np.zeros((4, 28, 28), np.uint8)
    for run in runs.values():
        with pytest.raises(stepclr.StepclrError, match="its training diverged"):
            stepclr.embed(run, images)
        with pytest.raises(stepclr.StepclrError, match="its training diverged"):
            stepclr.SimCLRTransformer(run).fit_transform(images)
    with pytest.raises(stepclr.StepclrError, match="not finite"):
        stepclr.build_encoder("test_resnet", "small-stride2", runs["weights"], size=28)


def test_identical_runs_write_identical_encoders(tmp_path: Path) -> None:
    encoder = stepclr.build_encoder("test_resnet", "small-stride2", size=28)
    written = []
    for number in range(8):  # safetensors keeps metadata in a map whose order is drawn anew for each
        path = tmp_path / f"{number}.safetensors"
        save_encoder(encoder, path)
        written.append(path.read_bytes())
    assert len(set(written)) == 1
    assert all(torch.equal(load_file(path)[name], value) for name, value in encoder.state_dict().items())
    assert load_encoder(path).name == "test_resnet"
