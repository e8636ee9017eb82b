"""--profile: each part of a step is charged with its own time, and watching changes nothing."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import SETTINGS

import stepclr
from stepclr.loss import objectives, tiles
from stepclr.pretraining import loop
from stepclr.pretraining.profile import PARTS, WARM_UP

STEPS = 3 * 48 // 16
DELAY = 0.2  # seconds, many times what any part of so small a step takes


def profiled(out: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, float]:
    """Milliseconds a step of each part, as the run prints them."""
    stepclr.pretrain("sample:unlabeled", out, profile=True, **{**SETTINGS, **options})
    printed = capsys.readouterr().err
    assert f"{STEPS - WARM_UP} steps" in printed
    rows = re.findall(r"^  (\w+) +([\d.,]+) ms per step +([\d.]+) %$", printed, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(PARTS)
    assert sum(float(share) for _, _, share in rows) == pytest.approx(100, abs=0.5)
    return {name: float(spent.replace(",", "")) for name, spent, _ in rows}


def slow(function: Callable[..., Any]) -> Callable[..., Any]:
    def slowly(*arguments: Any, **named: Any) -> Any:
        time.sleep(DELAY)
        return function(*arguments, **named)

    return slowly


@pytest.mark.parametrize(
    ("part", "owner", "name"),
    [
        ("data", stepclr.ImageSet, "read_readable"),
        ("views", stepclr.Views, "sample_params"),
        ("forward", stepclr.Encoder, "forward"),
        ("loss", objectives, "nt_xent"),
        ("loss", tiles, "_weights"),
        ("optimizer", torch.optim.SGD, "step"),
        ("other", loop, "set_lr"),
    ],
)
def test_a_delay_is_charged_to_its_part(
    part: str,
    owner: Any,
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if part == "optimizer":  # inside torch's hooks, which wrap `step` itself
        module = sys.modules["torch.optim.sgd"]
        monkeypatch.setattr(module, "sgd", slow(module.sgd))
    else:
        monkeypatch.setattr(owner, name, slow(getattr(owner, name)))
    spent = profiled(tmp_path / "run", capsys)
    wanted = 1000 * DELAY * (0.5 if part == "data" else 1)  # reading continues alongside the work
    assert spent[part] > 0.9 * wanted
    charged = {part}
    if part in ("data", "forward"):  # the check at the end of an epoch reads and represents a few images too
        charged.add("other")
    assert all(milliseconds < wanted / 2 for other, milliseconds in spent.items() if other not in charged)


def test_the_backward_pass_is_charged_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = stepclr.Encoder.forward

    def with_slow_way_back(self: stepclr.Encoder, x: torch.Tensor) -> torch.Tensor:
        h = forward(self, x)
        if h.requires_grad:
            h.register_hook(slow(lambda gradient: gradient))
        return h

    monkeypatch.setattr(stepclr.Encoder, "forward", with_slow_way_back)
    spent = profiled(tmp_path / "run", capsys)
    assert spent["backward"] > 900 * DELAY
    assert all(part == "backward" or milliseconds < 500 * DELAY for part, milliseconds in spent.items())


def test_watching_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = stepclr.pretrain("sample:unlabeled", tmp_path / "plain", progress=False, **SETTINGS)
    profiled(tmp_path / "profiled", capsys)
    watched = stepclr.Run(tmp_path / "profiled")
    for name, weight in plain.encoder().state_dict().items():
        assert torch.equal(weight, watched.encoder().state_dict()[name]), name


def test_parts_of_micro_batches_are_charged_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spent = profiled(tmp_path / "run", capsys, micro_batch=4)
    assert min(spent[part] for part in ("views", "forward", "loss", "backward", "optimizer")) > 0
