"""A setting that is no usable number is refused in one line that names it, before anything is written."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stepclr
from stepclr.cli import main
from stepclr.errors import check_whole

OUTSIDE: dict[str, list[Any]] = {
    "lr": [-1.0, 0.0, math.nan, math.inf],
    "weight_decay": [-1.0, math.nan, math.inf],
    "warmup": [-1.0, math.nan, math.inf],
    "temperature": [-1.0, 0.0, math.nan, math.inf],
    "strength": [-1.0, math.nan, math.inf, (0.5, math.nan)],
    "blur": [-1.0, 2.0, math.nan],
    "min_area": [-1.0, 2.0, math.nan],
    "cache_gib": [-1.0, 0.0, math.nan, math.inf],
    "epochs": [-1, 0],
    "limit": [-1, 0],
    "batch_size": [-1, 0, 1],
    "micro_batch": [-1, 0],
    "size": [-1, 0, 2],
    "views": [-1, 0, 1],
    "linear_epochs": [-1],
    "keep_every": [-1, 0],
    "seed": [2**63, -(2**63) - 1],
}


def refused(error: pytest.ExceptionInfo[stepclr.StepclrError], name: str) -> bool:
    return name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", OUTSIDE)
def test_pretrain_refuses_it(name: str, tmp_path: Path) -> None:
    images = stepclr.open_images("sample:train", limit=16)
    for value in OUTSIDE[name]:
        options = {"encoder": "test_resnet", "epochs": 1, "progress": False, name: value}
        with pytest.raises(stepclr.StepclrError) as error:
            stepclr.pretrain(images, tmp_path / "run", **options)
        assert refused(error, name), (value, error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_count_is_a_whole_number() -> None:
    """A type that is wrong is refused while the tests run; what a user sees is this."""
    check_whole("limit", 16, 1)
    for value in (16.0, 2.5, math.nan):
        with pytest.raises(stepclr.StepclrError, match=f"^limit must be a whole number, not {value}$"):
            check_whole("limit", value, 1)


def test_numbers_of_numpy_and_lists_are_what_config_json_gives_back(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"seed": np.int64(1), "strength": [0.5, np.float32(1)], "batch_size": np.int32(8)}
    for resume in (False, True):  # the same call resumes it
        options = settings | {"encoder": "test_resnet", "epochs": 1, "progress": False, "resume": resume}
        run = stepclr.pretrain("sample:train", tmp_path / "run", limit=16, **options)
    assert (run.config.seed, run.config.strength, run.config.batch_size) == (1, (0.5, 1.0), 8)


def test_views_of_a_loss_that_needs_one_are_at_least_one(tmp_path: Path) -> None:
    with pytest.raises(stepclr.StepclrError, match=r"^views must be at least 1, not 0$"):
        stepclr.pretrain("sample:train", tmp_path / "run", loss="cross-entropy", views=0, progress=False)


@pytest.mark.parametrize(("option", "value"), [("lr", "inf"), ("lr", "nan"), ("epochs", "0"), ("batch-size", "1")])
def test_finetune_refuses_it(option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", str(tmp_path), "--train", "sample:train", f"--{option}", value]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("stepclr: ")] == said[-1:]
    assert option in said[-1]
