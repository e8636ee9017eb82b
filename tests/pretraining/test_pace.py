"""`minutes`: the pace of the first steps decides the epochs, and the run ends on time and resumes as one of those."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small import call, run_config, same
from torch import nn

import stepclr
from stepclr.config import CONFIG_FILE, PretrainConfig, ResolvedConfig
from stepclr.distributed import ALONE
from stepclr.pretraining import loop, pace
from stepclr.pretraining.loop import Schedule
from stepclr.pretraining.model import SimCLR
from stepclr.pretraining.monitor import batch_metrics
from stepclr.pretraining.pace import Pace
from stepclr.pretraining.resolve import resolve, views_of

IMAGES = 32  # two steps an epoch
FIVE_STEPS = 550 / 60  # minutes, at 100 s a step, of which the test itself may take 50


class Clock:
    """A clock that only a network's training steps move on."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def __deepcopy__(self, _: object) -> "Clock":
        return self  # the trial's copy of the network moves it too


class Net(nn.Module):
    """A small network whose training steps take a while by a clock, and which can fail at one."""

    def __init__(self, fails_at: int | None = None, clock: Clock | None = None, seconds: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8)
        self.fails_at, self.clock, self.seconds, self.steps = fails_at, clock or Clock(), seconds, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            if self.steps == self.fails_at:
                raise RuntimeError("killed")
            self.steps += 1
            self.clock.now += self.seconds
        h: torch.Tensor = self.norm(self.conv(x)).relu().mean((2, 3))
        return h


def small_run(out: Path, **options: Any) -> stepclr.Run:
    settings: dict[str, Any] = {"encoder": Net(), "batch_size": 16, "head": "8-8", "limit": IMAGES, "progress": False}
    return stepclr.pretrain("sample:unlabeled", out, **(settings | options))


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.fixture
def five_steps(monkeypatch: pytest.MonkeyPatch) -> float:
    """Minutes in which five steps fit, by the pace that is then measured, however long the test itself takes."""
    monkeypatch.setattr(pace, "measured", lambda *_: Pace(step=100.0, checkpoint=0.0, watch=0.0))
    return FIVE_STEPS


def test_a_run_ends_on_time_and_equals_one_of_the_epochs_that_it_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    timed, counted = Net(clock=clock, seconds=0.04), Net()
    run = small_run(tmp_path / "timed", encoder=timed, minutes=4 / 60, lr=2.0, since=0.0)
    assert 4 - 0.08 < clock.now <= 4.01
    assert run.config.minutes == 4 / 60
    assert run.metrics[-1]["step"] == run.config.steps > 10
    assert run.metrics[-1]["lr"] < run.metrics[-2]["lr"]  # the cosine has ended
    small_run(tmp_path / "counted", encoder=counted, epochs=run.config.epochs, lr=2.0)
    assert equal(timed, counted)


def test_the_trial_takes_steps_of_each_size_of_views_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    train_step, measured = loop.train_step, pace.measured

    def seen(model: nn.Module, optimizer: Any, algorithm: Any, inputs: Any, *rest: Any) -> Any:
        sizes.append(inputs[0].size)
        return train_step(model, optimizer, algorithm, inputs, *rest)

    def of_a_short_trial(config: ResolvedConfig, _: float, *rest: Any) -> Pace:
        measured(config, 1.0, *rest)
        return Pace(step=100.0, checkpoint=0.0, watch=0.0)

    monkeypatch.setattr(loop, "train_step", seen)
    monkeypatch.setattr(pace, "measured", of_a_short_trial)
    options: dict[str, Any] = {"encoder": "test_resnet", "progressive": True}
    timed = small_run(tmp_path / "timed", minutes=FIVE_STEPS, **options)
    assert set(sizes[:-5]) == set(sizes[-5:]) == {14, 21, 28}
    assert same(timed, small_run(tmp_path / "counted", epochs=2.5, **options))


def test_what_is_loaded_for_the_first_metrics_does_not_count_as_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU their first call compiles."""
    clock, metrics, calls = Clock(), batch_metrics, 0

    def slow_at_first(*batch: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        clock.now += 9.0 if calls == 1 else 0.0
        return metrics(*batch)

    monkeypatch.setattr(pace, "time", clock)
    monkeypatch.setattr(pace, "batch_metrics", slow_at_first)
    images = stepclr.open_images("sample:unlabeled", limit=IMAGES)
    config = resolve(PretrainConfig("test_resnet", batch_size=16, head="8-8", size=28, precision="fp32"), images)
    trial = SimCLR(stepclr.build_encoder(Net(clock=clock, seconds=0.04), size=28), stepclr.ProjectionHead(8, 8, 8))
    measured = pace.measured(config, 60.0, images, images, views_of(config), trial, None, ALONE)
    assert calls > 2
    assert measured.step == pytest.approx(0.04)


def test_a_run_that_was_killed_resumes_with_its_schedule(tmp_path: Path, five_steps: float) -> None:
    whole, resumed = Net(), Net()
    run = small_run(tmp_path / "whole", encoder=whole, minutes=five_steps)
    assert run.config.epochs == 2.5
    with pytest.raises(RuntimeError, match="killed"):
        small_run(tmp_path / "killed", encoder=Net(fails_at=3), minutes=five_steps)
    for again in ({"minutes": five_steps}, {}):  # the same command twice more; the second finds nothing left to do
        run = small_run(tmp_path / "killed", encoder=resumed, resume=True, **again)
        assert (run.config.epochs, run.config.minutes) == (2.5, five_steps)
    assert equal(whole, resumed)


def test_a_run_that_was_killed_before_its_pace_was_known_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        small_run(tmp_path / "run", encoder=Net(fails_at=1), minutes=1)
    assert not (tmp_path / "run").exists()
    small_run(tmp_path / "run", epochs=1, resume=True)


def test_a_run_is_extended_by_epochs_and_then_has_no_minutes(tmp_path: Path, five_steps: float) -> None:
    small_run(tmp_path / "run", minutes=five_steps)
    run = small_run(tmp_path / "run", epochs=4, resume=True)
    assert (run.config.epochs, run.config.minutes, run.metrics[-1]["step"]) == (4, None, 8)
    with pytest.raises(stepclr.StepclrError, match="was started with minutes None, not 3"):
        small_run(tmp_path / "run", minutes=3, resume=True)


def test_minutes_take_the_place_of_a_recipes_epochs_alone(tmp_path: Path, five_steps: float) -> None:
    run = small_run(tmp_path / "run", recipe="sample", stem="auto", minutes=five_steps)
    assert run.config.epochs == 2.5
    assert run.config.warmup == 0.25
    with pytest.raises(stepclr.StepclrError, match="minutes and epochs both say how long the run is"):
        small_run(tmp_path / "both", minutes=five_steps, epochs=3)


def test_the_command_line_understands_minutes_as_the_library_does(
    tmp_path: Path, five_steps: float, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "sample:unlabeled", "--limit", IMAGES, "--recipe", "sample", "--batch-size", 16]
    words += ["--head", "8-8", "--out", tmp_path / "run", "--minutes", five_steps]
    assert call(*words) == 0
    assert "minutes: 2.5 epochs" in capsys.readouterr().err
    assert call(*words, "--resume") == 0
    for epochs in (3, 20):  # 20 are the recipe's own
        assert call(*words, "--epochs", epochs, "--out", tmp_path / "both") == 2
        assert "minutes and epochs both" in capsys.readouterr().err
    assert call(*words[:-2], "--resume", "--epochs", 3) == 0
    stored = json.loads((tmp_path / "run" / CONFIG_FILE).read_text())
    assert (stored["epochs"], stored["minutes"]) == (3, None)


def test_too_short_a_time_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(stepclr.StepclrError, match=r"^minutes=0.001 is too short: \S+ s were over before the first"):
        small_run(tmp_path / "run", minutes=0.001)
    assert not (tmp_path / "run").exists()


def test_a_second_stage_is_not_timed(tmp_path: Path) -> None:
    with pytest.raises(stepclr.StepclrError, match="minutes does not time the second stage"):
        small_run(tmp_path / "run", recipe="sample-supcon", minutes=1)


def decided(**changes: Any) -> ResolvedConfig:
    return run_config(batch_size=10, **changes)


def test_checkpoints_and_knn_are_part_of_the_minutes() -> None:
    assert Pace(2.0, 0.0, 0.0).steps_in(61.0, decided(), n=100) == 30
    assert Pace(2.0, 10.0, 0.0).steps_in(50.0 + 2 * 10, decided(), n=100) == 16  # 3 s a step, with its tenth
    assert Pace(2.0, 0.0, 4.0).steps_in(64.0, decided(), n=100) == 24  # less 4 scores in 32 steps
    assert Pace(2.0, 0.0, 100.0).steps_in(64.0, decided(), n=100) < 1
    assert Pace(2.0, 0.0, 40.0).steps_in(-100.0, decided(), n=100) < 1  # over already
    assert Pace(2.0, 0.0, 0.0).steps_in(2e12, decided(), n=100) == 10**12  # counted without going through them


# Epochs that end early.


def test_part_of_an_epoch_ends_a_run_and_a_resumed_one_ends_the_same(tmp_path: Path) -> None:
    whole, resumed = Net(), Net()
    run = small_run(tmp_path / "whole", encoder=whole, epochs=2.5, keep_every=1)
    assert [line["step"] for line in run.metrics] == [2, 4, 5]
    with pytest.raises(RuntimeError, match="killed"):
        small_run(tmp_path / "killed", encoder=Net(fails_at=4), epochs=2.5)
    small_run(tmp_path / "killed", encoder=resumed, resume=True)
    assert equal(whole, resumed)


@pytest.mark.parametrize("epochs", [0.01, 0.4, 1, 7, 25, 25.7, 100])
def test_knn_is_scored_about_ten_times_and_at_the_end(epochs: Any) -> None:
    schedule = Schedule.of(decided(epochs=epochs), n=100)
    watched = [step for step in range(1, schedule.steps + 1) if schedule.watched(step)]
    assert schedule.watches() == len(watched) <= 14
    assert watched[-1] == schedule.steps == max(1, round(10 * epochs))
