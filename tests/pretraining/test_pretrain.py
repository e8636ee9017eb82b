"""Step 6 as a user meets it: a run folder, exact resume, interruption, refusals. All on real images (the sample)."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import photos_in, put_where_timm_looks
from torch import nn
from touches import Forks

import stepclr
from stepclr.config import ADAPTING_EPOCHS, ADAPTING_RATE, OPTIMIZERS, PretrainConfig
from stepclr.data.shards.packing import pack
from stepclr.errors import StepclrError
from stepclr.pretraining import loop
from stepclr.pretraining.batches import batches, steps_per_epoch
from stepclr.pretraining.checkpoint import checkpoints
from stepclr.pretraining.logging import Printer
from stepclr.pretraining.loop import Diverged
from stepclr.pretraining.resolve import changed, resolve
from stepclr.recipes import recipe_config
from stepclr.views.keys import view_keys
from stepclr.views.ops import Blur, ColorJitter, Posterize
from stepclr.views.policies import read_policy
from stepclr.views.views import Views

SMALL: dict[str, Any] = {
    "encoder": "test_resnet",
    "stem": "small-stride2",
    "epochs": 3,
    "batch_size": 16,
    "head": "32-16",
    "progress": False,
}
IMAGES = 70  # with batch 16: 4 steps an epoch, 6 images left over


def small_run(out: Path, source: Any = "sample:unlabeled", **options: Any) -> stepclr.Run:
    return stepclr.pretrain(source, out, **{"limit": IMAGES, **SMALL, **options})


def weights(run: stepclr.Run) -> dict[str, torch.Tensor]:
    """Encoder and, from the last checkpoint, head and optimizer."""
    checkpoint = load_file(checkpoints(run.folder / "checkpoint")[-1])
    return {**load_file(run.folder / "encoder.safetensors"), **checkpoint}


def same(a: stepclr.Run, b: stepclr.Run) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def untimed(run: stepclr.Run) -> list[dict[str, Any]]:
    timing = ("images_per_second", "waiting", "seconds")
    return [{name: value for name, value in line.items() if name not in timing} for line in run.metrics]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> stepclr.Run:
    """A run that nothing interrupted."""
    return small_run(tmp_path_factory.mktemp("runs") / "unbroken")


def test_a_run_is_a_folder_that_explains_itself(unbroken: stepclr.Run) -> None:
    config = unbroken.config
    assert json.loads((unbroken.folder / "config.json").read_text()) == asdict(config)
    assert (config.images, config.size, config.strength, config.blur) == (IMAGES, 28, 0.5, 0.0)
    assert None not in (config.lr, config.warmup, config.weight_decay, config.head)
    assert config.precision in ("bf16", "fp32")
    lines = unbroken.metrics
    wanted = {"step", "epoch", "loss", "lr", "images_per_second", "waiting", "contrastive_top1"}
    assert all(wanted <= line.keys() for line in lines)
    assert [line["step"] for line in lines] == [4, 8, 10, 12]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 3]
    assert not (unbroken.folder / "skipped.csv").exists()
    assert len(checkpoints(unbroken.folder / "checkpoint")) == 2


def test_a_run_of_large_steps_is_not_silent_until_the_tenth(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 256 photos takes 20 seconds on two cores; the first also compiles, and says nothing of the others."""
    seconds = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: seconds)
    printer = Printer(enabled=True)
    for step in (1, 2, 3, 4):
        seconds = 100 + 20.0 * step
        printer.stepped(step, 10)
    assert capsys.readouterr().err == "1/10\n3/10, 2:20 left\n"


def test_the_time_left_knows_that_the_views_of_a_progressive_run_grow(
    unbroken: stepclr.Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100 steps, 40 have a quarter of the pixels and 35 nine sixteenths: 4 s, 9 s and 16 s a step."""
    seconds = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: seconds)
    printer = Printer(enabled=True)
    printer.start(replace(unbroken.config, progressive=True), unbroken, Views(size=28), 0, 100, 32, False)
    capsys.readouterr()
    whole = 40 * 4 + 35 * 9 + 25 * 16
    for step, done in ((1, 4), (21, 84), (50, 160 + 90), (90, 160 + 315 + 240), (100, whole)):
        seconds = done
        printer.stepped(step, 100)
        left = re.search(r"(\d+):(\d+) left", capsys.readouterr().err)
        assert step == 1 or (left and 60 * int(left[1]) + int(left[2]) == pytest.approx(whole - done, abs=1))


def test_the_encoder_of_a_run_is_the_one_that_was_trained(unbroken: stepclr.Run) -> None:
    encoder = unbroken.encoder()
    trained = load_file(checkpoints(unbroken.folder / "checkpoint")[-1])
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, trained[f"model.encoder.{name}"]), name
    assert not encoder.training


def test_the_same_settings_give_the_same_run_bit_for_bit(unbroken: stepclr.Run, tmp_path: Path) -> None:
    again = small_run(tmp_path / "again")
    assert same(unbroken, again)
    assert untimed(unbroken) == untimed(again)
    other = small_run(tmp_path / "other", seed=1)
    assert not same(unbroken, other)


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_the_loss_scale_acts_on_the_gradient_alone(
    micro_batch: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without decay, SGD on twice the loss at half the rate takes the same steps; what is logged is the mean."""
    options = {"limit": 32, "epochs": 1, "weight_decay": 0.0, "precision": "fp32", "micro_batch": micro_batch}
    plain = small_run(tmp_path / "plain", **options, lr=0.5)
    twice = small_run(tmp_path / "twice", **options, lr=0.25, loss_scale=2.0, progress=True)
    for one, other in zip(plain.encoder().state_dict().values(), twice.encoder().state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert [line["loss"] for line in plain.metrics] == [line["loss"] for line in twice.metrics]
    assert (plain.config.loss_scale, twice.config.loss_scale) == (1, 2)
    assert "loss nt-xent (times 2 in the gradient), temperature" in capsys.readouterr().err


def test_two_threads_repeat_and_resume_bit_for_bit_too(unbroken: stepclr.Run, tmp_path: Path) -> None:
    assert unbroken.config.threads == 1
    torch.set_num_threads(2)
    try:
        whole = small_run(tmp_path / "whole")
        assert whole.config.threads == 2
        small_run(tmp_path / "run")
    finally:
        torch.set_num_threads(1)
    checkpoints(tmp_path / "run" / "checkpoint")[-1].unlink()
    assert same(whole, small_run(tmp_path / "run", resume=True))  # with the threads it began with


def test_the_rate_warms_up_and_falls_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = loop.train_step

    def watched(model: Any, optimizer: Any, *rest: Any) -> Any:
        rates.append(optimizer.param_groups[0]["lr"])
        return step(model, optimizer, *rest)

    monkeypatch.setattr(loop, "train_step", watched)
    small_run(tmp_path / "run", epochs=5, warmup=1.0, lr=0.32)
    peak = 0.32 * 16 / 256
    assert rates[:4] == pytest.approx([peak / 4, peak / 2, peak * 3 / 4, peak])
    assert all(b < a for a, b in pairwise(rates[4:]))
    assert rates[-1] < 0.01 * peak


def test_given_weights_are_adapted_gently_unless_the_settings_say_otherwise(tmp_path: Path) -> None:
    """Fewer epochs and a lower rate, in config.json too; a rate for new weights would undo what they know."""
    images = stepclr.open_images("sample:train", limit=16)
    new, weights = resolve(PretrainConfig("test_resnet"), images), str(tmp_path / "weights.pt")
    adapted = resolve(PretrainConfig("test_resnet", weights=weights), images)
    assert (new.epochs, new.warmup) == (100, 10)
    assert adapted.epochs == ADAPTING_EPOCHS < new.epochs
    assert adapted.warmup == ADAPTING_EPOCHS / 10
    assert adapted.lr == pytest.approx(ADAPTING_RATE * new.lr)
    assert (new.batchnorm, adapted.batchnorm) == ("batch", "frozen")
    asked: dict[str, Any] = {"epochs": 7, "lr": 0.3, "warmup": 0.0, "batchnorm": "batch"}
    given = resolve(PretrainConfig("test_resnet", weights=weights, **asked), images)
    assert {name: getattr(given, name) for name in asked} == asked
    supervised = resolve(PretrainConfig("test_resnet", weights=weights, loss="cross-entropy"), images)
    assert (supervised.epochs, supervised.lr, supervised.batchnorm) == (new.epochs, new.lr, "batch")


def test_weights_take_the_place_of_the_network_that_a_recipe_names(unbroken: stepclr.Run, tmp_path: Path) -> None:
    """With the rate and the epochs that are for weights; what is asked for stays, or is refused."""
    recipe, weights = recipe_config("cifar10"), str(unbroken.folder)
    named = ("encoder", "stem", "lr", "epochs", "progressive", "temperature")
    for options, expected in (
        ({"weights": weights}, (None, "auto", None, None, True, 0.1)),
        ({"weights": weights, "lr": 0.3, "epochs": 7}, (None, "auto", 0.3, 7, True, 0.1)),
        ({"weights": weights, "encoder": "test_resnet"}, ("test_resnet", "auto", None, None, True, 0.1)),
        ({"weights": "timm:resnet18.tv_in1k"}, (None, "auto", None, None, True, 0.1)),
        ({"weights": "timm", "encoder": "resnet18"}, ("resnet18", "auto", None, None, True, 0.1)),
        ({"weights": "timm"}, ("resnet10x0.5", "auto", 0.5, 20, True, 0.1)),  # timm has none, which is refused
        ({"weights": "timm:tf_efficientnet_lite0.in1k"}, (None, "auto", None, None, False, 0.1)),
        ({"weights": str(tmp_path / "foreign.pt")}, ("resnet10x0.5", "small", 0.5, 20, True, 0.1)),
    ):
        config, _ = changed(recipe, options)
        assert tuple(getattr(config, name) for name in named) == expected, options
    _, lines = changed(recipe, {"weights": weights})
    assert lines[0].startswith(
        "the weights are of test_resnet: the encoder resnet10x0.5 is not used, nor are the learni"
    )
    assert changed(PretrainConfig(), {"weights": weights})[1] == []
    assert changed(recipe_config("imagenet"), {"weights": "timm"})[0].encoder == "resnet50"
    narrow = replace(recipe, encoder="test_resnet", stem="small-stride2")
    assert changed(narrow, {"weights": weights})[0].lr == recipe.lr  # chosen for this very network

    small: dict[str, Any] = {"recipe": "imagenette", "weights": weights, "limit": 32, "progress": False}
    run = stepclr.pretrain("sample:unlabeled", tmp_path / "run", epochs=1, batch_size=16, **small)
    assert (run.config.encoder, run.config.stem, run.config.batchnorm) == ("test_resnet", "small-stride2", "frozen")
    assert run.config.lr == pytest.approx(ADAPTING_RATE * OPTIMIZERS["sgd"][0])
    with pytest.raises(stepclr.StepclrError, match=r"stem"):
        stepclr.pretrain("sample:unlabeled", tmp_path / "other", stem="small", **small)


def test_adapting_trains_the_weights_and_keeps_the_statistics_of_batchnorm(
    unbroken: stepclr.Run, tmp_path: Path
) -> None:
    """Also after the kNN score of each epoch, for which the encoder is in eval mode. The head's BatchNorm is new."""
    adapted = small_run(tmp_path / "run", "sample:train", weights=str(unbroken.folder), epochs=2)
    assert adapted.config.batchnorm == "frozen"
    assert "knn" in adapted.metrics[-1]
    before, after = (
        load_file(unbroken.folder / "encoder.safetensors"),
        load_file(adapted.folder / "encoder.safetensors"),
    )
    for name, value in before.items():
        if not name.startswith(("mean", "std")):
            assert torch.equal(value, after[name]) == ("running" in name or "tracked" in name), name
    head = load_file(checkpoints(adapted.folder / "checkpoint")[-1])
    assert any("model.head" in name and "running_mean" in name and value.any() for name, value in head.items())


def test_resuming_without_epochs_ends_where_the_run_was_to_end(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", epochs=1)
    small_run(run.folder, epochs=None, resume=True)
    assert run.config.epochs == 1


def test_the_first_loss_is_algorithm_1_by_hand(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", epochs=1, precision="fp32", limit=16)
    torch.manual_seed(0)
    encoder = stepclr.build_encoder("test_resnet", "small-stride2", size=28).train()
    head = stepclr.ProjectionHead(encoder.num_features, 32, 16).train()
    images = stepclr.open_images("sample:unlabeled", limit=16)
    keys = view_keys(0, 0, range(16))
    view_i, view_j = Views("simclr", 28)(images.read(range(16)), keys)
    z = torch.nn.functional.normalize(head(encoder(torch.cat([view_i, view_j]))).double())
    loss, tau = 0.0, run.config.temperature
    for i in range(32):
        others = torch.stack([torch.exp(z[i] @ z[k] / tau) for k in range(32) if k != i])
        loss -= float(torch.log(torch.exp(z[i] @ z[(i + 16) % 32] / tau) / others.sum()).detach())
    assert run.metrics[0]["loss"] == pytest.approx(loss / 32, rel=1e-4)


def test_both_views_go_through_the_encoder_in_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stepclr.model.encoder import Encoder

    seen: list[int] = []
    forward = Encoder.forward

    def watched(self: Encoder, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            seen.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(Encoder, "forward", watched)
    small_run(tmp_path / "run", epochs=1)
    assert seen == [32] * 4


def test_an_epoch_is_full_batches_and_meets_nobody_twice() -> None:
    images = stepclr.open_images("sample:unlabeled", limit=IMAGES)
    lots = [batch.samples for batch in batches(images, 0, 0, 16, 0)]
    assert [len(lot) for lot in lots] == [16] * 4
    assert len(np.unique(np.concatenate(lots))) == 64
    later = [batch.samples for batch in batches(images, 0, 0, 16, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(lots[2:], later, strict=True))
    assert not np.array_equal(lots[0], next(batches(images, 0, 1, 16, 0)).samples)
    assert steps_per_epoch(5, 16) == 1
    assert [len(batch.samples) for batch in batches(images.take(range(5)), 0, 0, 16, 0)] == [5]


TESTS = [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # for the imports of another process
KILLED = """
import os, signal, sys
sys.path[:0] = {tests!r}
import stepclr.model.files as files
from stepclr.pretraining import loop
from test_pretrain import small_run
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
def after(function, calls, before=False):
    count = 0
    def counted(*args, **options):
        nonlocal count
        count += 1
        if before and count == calls: die()
        result = function(*args, **options)
        if count == calls: die()
        return result
    return counted
{fault}
small_run({out!r})
"""
FAULTS = {
    "before the first checkpoint": "loop.train_step = after(loop.train_step, 2)",
    "in the middle of an epoch": "loop.train_step = after(loop.train_step, 7)",
    "after the last step": "loop.train_step = after(loop.train_step, 12)",
    "while a checkpoint is written": "os.fsync = after(os.fsync, 5, before=True)",
    "between the line in the log and its checkpoint": (
        "loop.save_checkpoint = after(loop.save_checkpoint, 2, before=True)"
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_killed_and_resumed_is_never_stopped(fault: str, forked: Forks, unbroken: stepclr.Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = KILLED.format(tests=TESTS, fault=FAULTS[fault], out=str(out))
    child = subprocess.run([forked.python, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not (out / "encoder.safetensors").exists()
    resumed = small_run(out, resume=True)
    assert same(unbroken, resumed)
    assert untimed(unbroken) == untimed(resumed)
    assert not list(out.rglob("*.tmp"))


def test_a_torn_checkpoint_is_passed_over(unbroken: stepclr.Run, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", epochs=2)
    last = checkpoints(run.folder / "checkpoint")[-1]
    last.write_bytes(last.read_bytes()[:1000])
    assert same(unbroken, small_run(tmp_path / "run", resume=True, epochs=3)) is False  # other schedule, yet it runs
    lines = [line["step"] for line in run.metrics]
    assert lines == sorted(set(lines))


def test_resume_with_more_epochs_follows_the_longer_schedule(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", epochs=1, warmup=0.0)
    assert run.metrics[-1]["lr"] < 0.2 * run.config.lr * 16 / 256
    longer = small_run(tmp_path / "run", epochs=4, warmup=0.0, resume=True)
    assert longer.metrics[-1]["step"] == 16
    middle = next(line["lr"] for line in longer.metrics if line["step"] == 8)
    assert middle == pytest.approx(0.12 * 16 / 256 * (1 + np.cos(np.pi * 7 / 16)) / 2)


def test_resume_keeps_the_runs_settings(unbroken: stepclr.Run) -> None:
    with pytest.raises(stepclr.StepclrError, match="was started with batch_size 16, not 32"):
        small_run(unbroken.folder, resume=True, batch_size=32)
    with pytest.raises(stepclr.StepclrError, match="other names"):
        small_run(unbroken.folder, "sample:test", resume=True)


def test_a_finished_run_resumed_stays_as_it_is(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", epochs=1)
    before, lines = weights(run), run.metrics
    again = small_run(tmp_path / "run", epochs=1, resume=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(again).items())
    assert again.metrics == lines


def test_out_of_another_run_is_refused(unbroken: stepclr.Run, tmp_path: Path) -> None:
    before = weights(unbroken)
    with pytest.raises(stepclr.StepclrError, match="resume=True"):
        small_run(unbroken.folder)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(unbroken).items())
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(stepclr.StepclrError, match="is not a run"):
        small_run(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(
    number: signal.Signals, forked: Forks, unbroken: stepclr.Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code = (
        f"import os, sys; sys.path[:0] = {TESTS!r}\n"
        "from stepclr.pretraining import loop\n"
        "from stepclr.pretraining.interrupt import Interrupted\n"
        "from test_pretrain import small_run\n"
        "step, calls = loop.train_step, []\n"
        "def signalled(*args):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == 6: os.kill(os.getpid(), {int(number)})\n"
        "    return step(*args)\n"
        "loop.train_step = signalled\n"
        f"try: small_run({str(out)!r})\n"
        "except Interrupted as stop: print(stop); sys.exit(128 + stop.signal)\n"
    )
    child = subprocess.run([forked.python, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 128 + number, child.stderr
    assert number.name in child.stdout
    assert "after step 6 of 12" in child.stdout
    assert "resume=True" in child.stdout
    assert checkpoints(out / "checkpoint")[-1].stem == "step-00000006"
    assert same(unbroken, small_run(out, resume=True))


@pytest.mark.parametrize(
    ("bad", "said"),
    [(4, r"the loss is not finite at step 6 \(learning rate .*lower lr"), (7, "a weight is not finite at step 8")],
)
def test_what_is_not_finite_stops_the_run_and_spares_the_checkpoint(
    bad: int, said: str, unbroken: stepclr.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stepclr.pretraining.optim import lr_multiplier

    with monkeypatch.context() as patch:
        patch.setattr(
            loop, "lr_multiplier", lambda step, *rest: float("nan") if step == bad else lr_multiplier(step, *rest)
        )
        with pytest.raises(Diverged, match=said):
            small_run(tmp_path / "run")
    kept = checkpoints(tmp_path / "run" / "checkpoint")
    assert [path.stem for path in kept] == ["step-00000004"]
    assert all(tensor.isfinite().all() for tensor in load_file(kept[0]).values())
    assert same(unbroken, small_run(tmp_path / "run", resume=True))


def test_keep_every_keeps_checkpoints(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", epochs=7, keep_every=2, limit=20)
    steps = [int(path.stem[5:]) for path in checkpoints(run.folder / "checkpoint")]
    assert steps == [2, 4, 6, 7]
    # What was kept stays, also where another interval is asked for later.
    small_run(run.folder, epochs=14, keep_every=5, limit=20, resume=True)
    steps = [int(path.stem[5:]) for path in checkpoints(run.folder / "checkpoint")]
    assert steps == [2, 4, 6, 10, 13, 14]


def test_images_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    from PIL import Image

    images = stepclr.open_images("sample:test", limit=20)
    for k in range(20):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(images.read([k])[0].permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{k:02}.png")
    (tmp_path / "photos" / "03.png").write_bytes(b"no image")
    truncated = tmp_path / "photos" / "11.png"
    truncated.write_bytes(truncated.read_bytes()[:200])
    run = small_run(tmp_path / "run", tmp_path / "photos", epochs=1, limit=None)
    rows = (run.folder / "skipped.csv").read_text().splitlines()
    assert rows[0] == "path,reason"
    assert sorted(row.split(",")[0] for row in rows[1:]) == ["03.png", "11.png"]
    assert run.config.images == 18


def test_a_classes_name_cannot_move_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos_in(tmp_path / "photos" / "a\x1b[2Jb", 20)
    small_run(tmp_path / "run", tmp_path / "photos", epochs=1, limit=None, progress=True)
    assert r"1 class: a\x1b[2Jb 20" in capsys.readouterr().err


def test_they_are_listed_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos_in(tmp_path / "photos", 20)
    (tmp_path / "photos" / "03.png").write_bytes(b"no image")

    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(loop, "train_step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        small_run(tmp_path / "run", tmp_path / "photos", limit=None)
    assert "03.png" in (tmp_path / "run" / "skipped.csv").read_text()


def test_labels_watch_and_never_touch(tmp_path: Path) -> None:
    labeled = small_run(tmp_path / "labeled", "sample:train", epochs=2)
    images = stepclr.open_images("sample:train", limit=IMAGES)
    bare = stepclr.open_images(np.asarray(images.read(range(IMAGES))))
    unlabeled = small_run(tmp_path / "unlabeled", bare, epochs=2, limit=None)
    assert same(labeled, unlabeled)
    assert 0 <= labeled.metrics[-1]["knn"] <= 1
    assert "knn" not in unlabeled.metrics[-1]
    watched = small_run(tmp_path / "watched", bare, epochs=2, limit=None, monitor="sample:train")
    assert watched.metrics[-1]["knn"] > 0.2  # ten classes; 70 images and 8 steps know a boot from a shirt
    assert same(watched, unlabeled)


def test_the_run_remembers_chosen_classes(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", "sample:train", classes=["Bag", "Sandal"], epochs=1)
    assert run.encoder().classes == ["Bag", "Sandal"]
    assert run.config.classes == ["Bag", "Sandal"]
    assert small_run(tmp_path / "all", "sample:train", epochs=1).encoder().classes == []


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_other_optimizers_resume_alike(optimizer: str, tmp_path: Path) -> None:
    whole = small_run(tmp_path / "whole", optimizer=optimizer, epochs=2)
    shutil.copytree(whole.folder, tmp_path / "run")
    last = checkpoints(tmp_path / "run" / "checkpoint")[-1]
    last.unlink()
    assert same(whole, small_run(tmp_path / "run", optimizer=optimizer, epochs=2, resume=True))


def test_supcon_uses_labels_and_asks_for_them(tmp_path: Path) -> None:
    with pytest.raises(stepclr.StepclrError, match="needs labels"):
        small_run(tmp_path / "none", loss="supcon")
    supervised = small_run(tmp_path / "supcon", "sample:train", loss="supcon", epochs=1)
    plain = small_run(tmp_path / "plain", "sample:train", epochs=1)
    assert not same(supervised, plain)


@pytest.mark.parametrize("kind", ["a run", "timm"])
def test_a_run_resumes_where_the_weights_that_it_began_with_are_gone(
    kind: str, unbroken: stepclr.Run, tmp_path: Path
) -> None:
    """On another machine, or without a network; what timm's weights are called stays with the encoder."""
    options: dict[str, Any] = {"weights": str(tmp_path / "start"), "epochs": 2}
    start, message = tmp_path / "start", "no weights at"
    if kind == "timm":
        options |= {"weights": "timm:test_resnet.r160_in1k", "stem": "auto"}
        put_where_timm_looks("test_resnet.r160_in1k")
        start = Path(os.environ["HF_HUB_CACHE"]) / "models--timm--test_resnet.r160_in1k"
        message = "weights of timm:test_resnet.r160_in1k"
    else:
        shutil.copytree(unbroken.folder, start)
    whole = small_run(tmp_path / "whole", **options)
    for name in ("killed", "of an earlier version", "killed at once"):
        shutil.copytree(whole.folder, tmp_path / name)
        checkpoints(tmp_path / name / "checkpoint")[-1].unlink()
    shutil.rmtree(tmp_path / "killed at once" / "checkpoint")
    config = tmp_path / "of an earlier version" / "config.json"
    config.write_text(re.sub(r'"began_as": .*', "", config.read_text()))

    start.rename(tmp_path / "elsewhere")
    try:
        resumed = small_run(tmp_path / "killed", **options, resume=True)
        assert same(whole, resumed)
        assert resumed.encoder().weights == (options["weights"] if kind == "timm" else "")
        for name in ("killed at once", "of an earlier version"):  # these need them
            with pytest.raises(stepclr.StepclrError, match=message):
                small_run(tmp_path / name, **options, resume=True)
    finally:
        (tmp_path / "elsewhere").rename(start)
    assert same(whole, small_run(tmp_path / "of an earlier version", **options, resume=True))


def test_a_run_can_start_from_another(unbroken: stepclr.Run, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", weights=str(unbroken.folder), epochs=1, lr=1e-12, weight_decay=0.0)
    start, end = unbroken.encoder().state_dict(), run.encoder().state_dict()
    assert all(torch.allclose(start[name], end[name], atol=1e-6) for name in start if name.endswith("weight"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, "Did you mean 'epochs'"),
        ({"encoder": "resnet19"}, "Did you mean 'resnet18'|Did you mean 'resnet10"),
        ({"recipe": "smaple"}, "Did you mean 'sample'"),
        ({"policy": "simcrl"}, "Did you mean 'simclr'"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"head": "12x4"}, "head must be widths"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"strength": -1.0}, "strength must lie between"),
        ({"limit": 1}, "at least 2"),
        ({"classes": ["Bag"]}, "has no labels"),
    ],
)
def test_bad_settings_get_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(stepclr.StepclrError, match=message) as caught:
        small_run(tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_of_an_earlier_version_opens(unbroken: stepclr.Run, tmp_path: Path) -> None:
    """Its config.json lacks what was added since, and says by this that it had none of it."""
    stored = json.loads((unbroken.folder / "config.json").read_bytes())
    for name in ("batchnorm", "labels", "split", "labels_checksum"):
        del stored[name]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert stepclr.Run(tmp_path).config == replace(unbroken.config, labels_checksum=None)


def test_config_json_alone_repeats_the_run(unbroken: stepclr.Run, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "config.json").write_bytes((unbroken.folder / "config.json").read_bytes())
    settings = stepclr.Run(tmp_path / "copy").config.settings()
    again = stepclr.pretrain("sample:unlabeled", tmp_path / "run", config=settings, limit=IMAGES, progress=False)
    assert same(unbroken, again)


def test_a_run_on_limited_images_knows_the_limit(tmp_path: Path) -> None:
    """Whoever opened them: `images` gives those that it learned from, and no others of the source."""
    small: dict[str, Any] = {"encoder": "test_resnet", "batch_size": 16, "epochs": 1, "progress": False}
    given = stepclr.open_images("sample:train", classes=["Bag", "Coat"], limit=40)
    run = stepclr.pretrain(given, tmp_path / "run", **small)
    assert run.config.limit == 40
    assert run.images().names == given.names
    for images in (given, "sample:train"):
        resumed = stepclr.pretrain(images, tmp_path / "run", resume=True, **(small | {"epochs": 2}))
        assert len(resumed.metrics) == 2
        small["epochs"] = 3
    assert stepclr.open_images(given.take([0, 1])).limit is None


@pytest.mark.usefixtures("unchecked")
def test_a_config_is_as_good_as_options(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"epochs": np.int64(1), "batch_size": np.int64(16), "lr": np.float32(0.5)}
    config = PretrainConfig("test_resnet", **numbers, strength=[1.0, 0.3])  # type: ignore[arg-type]
    ops: Any = [ColorJitter(strength=np.float64(0.5)), Posterize(bits=np.int64(4))]  # type: ignore[arg-type]
    for changes, policy in (
        ({}, "simclr"),
        ({"policy": ops, "strength": None}, "ColorJitter(strength=0.5, p=0.8)+Posterize(bits=4, p=0.2)"),
    ):
        out = tmp_path / policy
        settings: dict[str, Any] = {"config": replace(config, **changes), "limit": 32, "progress": False}
        run = stepclr.pretrain("sample:unlabeled", out, **settings)
        assert (run.config.policy, run.config.lr) == (policy, 0.5)
        stepclr.pretrain("sample:unlabeled", out, resume=True, **settings)
    assert read_policy(Blur(0.3)).name == "Blur(p=0.3)"


@pytest.mark.parametrize(
    ("recipe", "options", "left"),
    [
        ("sample-supcon", {"loss": "cross-entropy"}, {"linear_epochs": 0, "temperature": None}),
        ("cifar10-supcon", {"loss": "nt-xent"}, {"linear_epochs": 0}),
        ("sample", {"loss": "distill"}, {"temperature": None}),
        ("paper", {"loss": "distill"}, {"loss_scale": 1.0}),
        ("sample", {"optimizer": "adamw"}, {"lr": None}),
        ("paper", {"optimizer": "adamw"}, {"lr": None, "weight_decay": None}),
        ("paper", {"optimizer": "adamw", "lr": 0.5}, {"lr": 0.5, "weight_decay": None}),
        ("sample-supcon", {"loss": "supcon"}, {"linear_epochs": recipe_config("sample-supcon").linear_epochs}),
    ],
)
def test_a_recipes_settings_for_another_loss_or_optimizer_are_left_open(
    recipe: str, options: dict[str, Any], left: dict[str, Any]
) -> None:
    config, _ = changed(recipe_config(recipe), options)
    assert {name: getattr(config, name) for name in left} == left


def test_a_misspelt_loss_of_a_config_is_named_where_an_option_replaces_it_too() -> None:
    with pytest.raises(StepclrError, match="unknown loss 'nt-xnet'"):
        changed(PretrainConfig(loss="nt-xnet"), {"loss": "dcl"})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": None}, "batch_size must not be None: leave it out for 256"),
        ({"optimizer": None}, "optimizer must not be None: leave it out for 'sgd'"),
        ({"loss_scale": None}, "loss_scale must not be None: leave it out for 1.0"),
        ({"encoder": nn.Flatten}, "encoder must be a name or a path, not Flatten"),
        ({"weights": nn.Flatten()}, "weights must be a name or a path, not Flatten"),
        ({"monitor": nn.Flatten()}, "monitor must be a name or a path, not Flatten"),
        ({"progressive": True, "size": 6}, "progressive begins with views of half the size, and 6 px are too few"),
    ],
)
def test_what_no_setting_can_be_is_said_before_a_run_is_there(
    options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(StepclrError, match=f"^{says}"):
        stepclr.pretrain("sample:train", tmp_path / "run", progress=False, limit=32, **options)
    assert not (tmp_path / "run").exists()


class Zero(nn.Module):
    """An encoder that collapsed to 0."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 4)
        nn.init.constant_(self.out.bias, -1.0)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x.mean((2, 3))).relu()


def test_a_second_stage_on_an_encoder_of_zeros_is_one_line(tmp_path: Path) -> None:
    options: dict[str, Any] = {"loss": "supcon", "linear_epochs": 1, "epochs": 1, "batch_size": 16, "limit": 32}
    with pytest.raises(StepclrError, match="representation of every image is 0"):
        stepclr.pretrain("sample:train", tmp_path / "run", encoder=Zero(), progress=False, **options)


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """As loops over settings have them; what is no whole number is none either way."""
    small: dict[str, Any] = {"encoder": "test_resnet", "batch_size": np.int64(16), "progress": False}
    given: dict[str, Any] = {"seed": np.int64(1), "epochs": np.int64(1), "lr": np.float32(0.5), "limit": np.int64(32)}
    run = stepclr.pretrain("sample:unlabeled", tmp_path / "run", **small, **given)
    assert (run.config.seed, run.config.limit, run.config.epochs, run.config.lr) == (1, 32, 1, 0.5)
    of_numpy: Any = np.int64(20)
    some = stepclr.open_images("sample:unlabeled", limit=of_numpy)
    assert pack(some, tmp_path / "shards", per_shard=of_numpy, short_side=of_numpy).shards == 1
    assert len(stepclr.open_images(tmp_path / "shards")) == 20
    half: Any = 16.5
    with pytest.raises(StepclrError, match=r"per_shard must be a whole number, not 16.5"):
        pack(some, tmp_path / "other", per_shard=half)
    with pytest.raises(StepclrError, match=r"seed must be a whole number, not 16.5"):
        stepclr.pretrain("sample:unlabeled", tmp_path / "other", seed=half, **small)


class Tiny(nn.Module):
    """A network of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean((2, 3))


def test_ones_own_network_is_trained_resumed_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Tiny()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    begun = {name: tensor.clone() for name, tensor in before.items()}
    whole = small_run(tmp_path / "whole", encoder=network, stem="auto")
    assert (whole.config.encoder, whole.config.features) == ("module:Tiny", 12)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    loaded = whole.encoder(Tiny())
    x = loaded.preprocess(stepclr.open_images("sample:test", limit=4).read(range(4)))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network.eval()(x))
    with pytest.raises(stepclr.StepclrError, match="module=Tiny"):
        whole.encoder()

    again = Tiny()
    again.load_state_dict(begun)
    (whole.folder / "encoder.safetensors").rename(tmp_path / "expected.safetensors")
    checkpoints(whole.folder / "checkpoint")[-1].unlink()
    with pytest.raises(stepclr.StepclrError, match=r"was made with your own module Tiny.* pass encoder=Tiny\(\.\.\.\)"):
        stepclr.pretrain("sample:unlabeled", whole.folder, resume=True)
    small_run(whole.folder, encoder=again, stem="auto", resume=True)
    expected, found = (
        load_file(path) for path in (tmp_path / "expected.safetensors", whole.folder / "encoder.safetensors")
    )
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
