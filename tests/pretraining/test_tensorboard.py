"""TensorBoard shows what metrics.jsonl contains, also after a run was stopped and resumed."""

import sys
from pathlib import Path
from typing import Any, cast

import pytest
from small import SETTINGS

import stepclr


def shown(run: stepclr.Run) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def logged(run: stepclr.Run) -> dict[str, list[tuple[int, float]]]:
    names = dict.fromkeys(name for line in run.metrics for name in line if name != "step")
    found: dict[str, Any] = {
        name: [(line["step"], line[name]) for line in run.metrics if name in line] for name in names
    }
    return {
        name: [(step, cast(Any, pytest.approx(value, rel=1e-6))) for step, value in values]
        for name, values in found.items()
    }


def test_it_shows_the_log_of_a_run_that_went_on(tmp_path: Path) -> None:
    settings = {**SETTINGS, "progress": False, "tensorboard": True}
    run = stepclr.pretrain("sample:unlabeled", tmp_path / "run", **settings)
    assert len(run.metrics) == 3
    assert shown(run) == logged(run)
    run = stepclr.pretrain("sample:unlabeled", tmp_path / "run", **{**settings, "epochs": 5, "resume": True})
    assert len(run.metrics) == 6  # and the tenth step
    assert shown(run) == logged(run)


def test_without_its_package_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(stepclr.StepclrError, match=r"stepclr\[tensorboard\]"):
        stepclr.pretrain("sample:unlabeled", tmp_path / "run", **SETTINGS, tensorboard=True)
    assert not (tmp_path / "run").exists()
