"""`stepclr doctor`: planted problems are found, a sound set has no findings, and nothing is changed."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import call
from test_duplicates import compressed, scene
from torch import nn
from touches import Forks

import stepclr
from stepclr.config import PretrainConfig
from stepclr.data.reading import Reading
from stepclr.pretraining.resolve import resolve
from stepclr.tools.doctor import estimate
from stepclr.tools.doctor.advice import Advice, Facts, advice
from stepclr.tools.doctor.findings import finding
from stepclr.tools.doctor.memory import fitting, kept_bytes
from stepclr.tools.doctor.screen import screen
from stepclr.tools.doctor.trial import Trial

FAST = ["--encoder", "test_resnet", "--stem", "small-stride2", "--batch-size", "16", "--epochs", "3", "--size", "32"]
CONFIG = PretrainConfig("test_resnet", stem="small-stride2", batch_size=16, epochs=3, size=32)
KEYS = {"source", "test", "images", "classes", "unlabeled", "findings", "throughput", "estimate", "advice"}
KEYS |= {"settings", "machine", "seconds"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 different images of two classes."""
    root = tmp_path_factory.mktemp("sound")
    for seed in range(48):
        path = root / ("left" if seed % 2 else "right") / f"{seed:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        scene(seed).save(path, quality=92)
    return root


@pytest.fixture
def images(sound: Path, tmp_path: Path) -> Path:
    """A copy of them, to plant something in."""
    shutil.copytree(sound, tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def without_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings about images need no trials, which take seconds."""
    made = [Trial(8, 8, 8, 3, 0.1, 0.5, 5.0, 10**9), Trial(16, 16, 48, 9, 0.2, 0.5, 5.0, 2 * 10**9)]
    monkeypatch.setattr("stepclr.tools.doctor.examine.trials", lambda *_: made)


@pytest.fixture
def forked_trials(monkeypatch: pytest.MonkeyPatch, forked: Forks) -> None:
    """A trial is a fork; that it is a new process does not matter here."""
    monkeypatch.setattr(sys, "executable", forked.python)


def findings(source: Any, test: Any = None, config: PretrainConfig = CONFIG) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in stepclr.doctor(source, config, test).to_dict()["findings"]}


def counts(source: Any, test: Any = None, config: PretrainConfig = CONFIG) -> dict[str, int]:
    return {name: one["count"] for name, one in findings(source, test, config).items()}


def everything_under(*roots: Path) -> dict[str, tuple[int, int, bytes]]:
    found = [path for root in roots for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes()) for path in found}


@pytest.mark.usefixtures("forked_trials")
def test_the_whole_examination(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound set has no findings, the JSON is complete, the summary short; only the file asked for is written."""
    cache, here = tmp_path / "cache", tmp_path / "here"
    cache.mkdir()
    here.mkdir()
    monkeypatch.setenv("STEPCLR_CACHE", str(cache))
    monkeypatch.chdir(here)
    before = everything_under(sound, cache)
    assert call("doctor", sound, *FAST, "--out", "doctor.json") == 0
    assert everything_under(sound, cache) == before
    told, said = capsys.readouterr()
    assert said.splitlines() == [
        "reading 48 images",
        "comparing the images, to find duplicates",
        "timing the decoding of images and the making of views",
        "training briefly, 8 images at once, to measure time and memory",
        "training briefly, 16 images at once, to measure time and memory",
    ]
    assert len(told.splitlines()) <= 45
    assert "no problems found in the images" in told
    assert f"stepclr pretrain {sound} --recipe cifar10" in told
    found = json.loads((here / "doctor.json").read_text())
    assert set(everything_under(here)) == {str(here / "doctor.json")}
    assert set(found) == KEYS
    assert found["findings"] == []
    assert found["classes"] == {"left": 24, "right": 24}
    assert found["images"]["sizes"]["median"] == [96, 96]
    assert found["settings"]["size"] == 32
    run = found["estimate"]
    assert run["steps_per_epoch"] == 3
    assert 3 * run["step_seconds"] <= run["epoch_seconds"] < 3 * run["step_seconds"] + 10  # a checkpoint
    assert 0.001 < run["step_seconds"] < 60
    assert 3e8 < run["peak_bytes"] < 8e9
    assert run["images_bytes"] == 48 * 3 * 64 * 64
    assert run["available_bytes"] > 0
    assert [one["at_once"] for one in run["trials"]] == [8, 16]
    assert found["throughput"]["decoded_per_second"] > 1
    assert found["throughput"]["views_per_second"] > 1


@pytest.mark.usefixtures("without_trials")
def test_a_cache_that_is_there_stays_as_it_is(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPCLR_CACHE", str(tmp_path / "cache"))
    images = stepclr.open_images(sound)
    for path in sound.rglob("*.jpg"):
        os.utime(path, (10**9, 10**9))
    images.sizes()
    images.decoded(64)
    before = everything_under(tmp_path, sound)
    assert any(name.endswith(".pixels") for name in before)
    diagnosis = stepclr.doctor(sound, CONFIG)
    assert everything_under(tmp_path, sound) == before
    assert "decoding" in screen(diagnosis)


@pytest.mark.usefixtures("without_trials")
def test_findings_about_single_images(images: Path) -> None:
    left = images / "left"
    (left / "cut.jpg").write_bytes((left / "01.jpg").read_bytes()[:900])
    (left / "text.png").write_text("no image")
    (left / "empty.png").touch()
    Image.new("RGB", (40, 40), "red").save(left / "blank.png")
    scene(100).resize((20, 20)).save(left / "tiny.png")
    scene(101, 400).crop((0, 0, 400, 60)).save(left / "long.png")
    scene(102).convert("CMYK").save(left / "cmyk.jpg", quality=90)
    Image.fromarray(np.asarray(scene(103).convert("L")).astype(np.uint16) * 257).save(left / "deep.png")
    frames = [scene(seed).quantize() for seed in (104, 105)]
    frames[0].save(left / "moves.gif", save_all=True, append_images=frames[1:])
    turned = Image.Exif()
    turned[0x0112] = 6
    scene(106).crop((0, 0, 96, 60)).save(left / "turned.jpg", exif=turned, quality=90)
    found = findings(images)
    assert {name: one["count"] for name, one in found.items()} == {
        "unreadable": 2,
        "empty": 1,
        "blank": 1,
        "tiny": 1,
        "long": 1,
        "animated": 1,
        "deep": 1,
        "cmyk": 1,
    }
    assert [one["severity"] for one in found.values()] == ["error"] * 2 + ["warning"] * 3 + ["note"] * 3
    assert found["unreadable"]["examples"][1] == "left/text.png: not an image in a known format"
    assert found["empty"]["examples"] == ["left/empty.png: the file is empty"]
    assert found["tiny"]["examples"] == ["left/tiny.png: 20 x 20, RGB"]
    assert "--size 20" in found["tiny"]["do"]
    whole = stepclr.doctor(images, CONFIG).images
    assert (whole["count"], whole["readable"], whole["turned"]) == (58, 55, 1)
    assert sum(whole["modes"].values()) == 55
    assert whole["sizes"]["smallest"] == [20, 20]
    assert whole["sizes"]["largest"] == [60, 400]


@pytest.mark.usefixtures("without_trials")
def test_huge_images(images: Path) -> None:
    Image.new("L", (8000, 7000)).save(images / "left" / "huge.png")
    found = findings(images)
    assert found["huge"]["examples"] == ["left/huge.png: 8000 x 7000, L"]
    too_large = findings(images, config=replace(CONFIG, max_pixels=50_000_000))["unsupported"]
    assert "above the limit of 50,000,000 pixels; --max-pixels 56000000" in too_large["examples"][0]
    assert too_large["do"].startswith("keep them")


@pytest.mark.usefixtures("without_trials")
def test_duplicates_and_their_labels(images: Path) -> None:
    shutil.copy(images / "left" / "01.jpg", images / "left" / "again.jpg")
    shutil.copy(images / "left" / "01.jpg", images / "right" / "under-another-name.jpg")
    Image.open(images / "left" / "03.jpg").save(images / "left" / "other-format.png")
    compressed(scene(4), 50).save(images / "right" / "04 compressed.jpg")
    scene(5).crop((2, 2, 94, 94)).save(images / "right" / "05 cropped.png")
    scene(6).resize((58, 58)).save(images / "loose.png")
    found = findings(images)
    assert {name: one["count"] for name, one in found.items()} == {
        "conflicting-labels": 2,
        "exact-duplicates": 3,
        "near-duplicates": 3,
    }
    assert found["exact-duplicates"]["examples"] == [
        "left/01.jpg = left/again.jpg = right/under-another-name.jpg",
        "left/03.jpg = left/other-format.png",
    ]
    assert found["conflicting-labels"]["examples"] == [
        "left/01.jpg (left) = right/under-another-name.jpg (right)",
        "left/05.jpg (left) = right/05 cropped.png (right)",
    ]


@pytest.mark.usefixtures("without_trials")
def test_leakage(sound: Path, images: Path, tmp_path: Path) -> None:
    test = tmp_path / "test"
    for name in ("left", "right", "up"):
        (test / name).mkdir(parents=True)
    for seed in range(100, 110):
        scene(seed).save(test / "left" / f"{seed}.png")
    assert counts(sound, test) == {"test-lacks-classes": 1}
    shutil.copy(images / "left" / "01.jpg", test / "left")
    Image.open(images / "right" / "02.jpg").save(test / "right" / "02.png")
    compressed(scene(3), 40).save(test / "right" / "03.jpg")
    compressed(scene(4), 40).save(test / "up" / "04.jpg")
    (test / "up" / "empty.jpg").touch()
    found = findings(images, test)
    assert {name: one["count"] for name, one in found.items()} == {
        "test-empty": 1,
        "leakage-exact": 2,
        "leakage-near": 2,
        "leakage-conflicting": 2,
        "test-classes": 1,
    }
    assert found["leakage-exact"]["examples"] == ["left/01.jpg = left/01.jpg", "right/02.png = right/02.jpg"]
    assert found["leakage-conflicting"]["examples"][0] == "right/03.jpg (right) = left/03.jpg (left)"
    assert found["test-classes"]["examples"] == ["up"]


@pytest.mark.usefixtures("without_trials")
def test_the_test_set_itself(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert counts(sound, sound) == {"leakage-exact": 48}
    assert call("doctor", sound, "--test", sound, *FAST) == 0
    assert "error   48 test images are exact copies of training images" in capsys.readouterr().out


@pytest.mark.usefixtures("without_trials")
def test_classes(sound: Path, images: Path) -> None:
    (images / "nothing").mkdir()
    for path in sorted((images / "left").iterdir())[2:]:
        path.unlink()
    found = findings(images)
    assert {name: one["count"] for name, one in found.items()} == {"empty-class": 1, "imbalance": 1, "small-class": 1}
    assert found["empty-class"]["examples"] == ["nothing"]
    assert found["imbalance"]["examples"] == ["left: 2", "right: 24"]
    some = stepclr.open_images(sound)
    array = np.stack([image.numpy() for image in some.read(range(48))])
    assert counts((array, some.labels)) == {}
    unlabeled = stepclr.doctor(array, CONFIG)
    assert unlabeled.classes == {}
    assert unlabeled.unlabeled == 48
    assert "no image has a label" in screen(unlabeled)
    assert unlabeled.advice is not None
    assert unlabeled.advice.with_labels is None
    one_class = stepclr.doctor((array, np.zeros(48, np.int64)), CONFIG)  # there is nothing to tell apart
    assert one_class.advice is not None
    assert one_class.advice.with_labels is None


@pytest.mark.usefixtures("without_trials")
def test_a_zip(sound: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in sorted(sound.rglob("*.jpg")):
            archive.write(path, f"{path.parent.name}/{path.name}")
        archive.writestr("left/empty.jpg", b"")
        archive.write(sound / "left" / "01.jpg", "left/again.jpg")
    assert counts(tmp_path / "x.zip") == {"empty": 1, "exact-duplicates": 1}


def test_one_image_and_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    scene(0).save(tmp_path / "one" / "a.png")
    assert call("doctor", tmp_path / "one", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["findings"]] == ["too-few"]
    assert found["estimate"] is found["advice"] is None
    (tmp_path / "one" / "a.png").write_bytes(b"broken")
    assert call("doctor", tmp_path / "one") == 0
    assert "error   1 cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["sample:train", "--test", "sample:tset"], "unknown split of sample 'tset'. Did you mean 'test'?"),
        (["sample:train", "--out", "doctor.txt"], "must end in .json"),
        (["sample:unlabeled", "--limit", "20", "--loss", "supcon"], "needs labels"),
        (["sample:train", "--limit", "20", "--encoder", "resnet19"], "resnet19"),
        (["sample:train", "--recipe", "cifra10"], "Did you mean 'cifar10'?"),
    ],
)
@pytest.mark.usefixtures("forked_trials")
def test_errors_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor", *words) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("stepclr: ")
    assert message in said[-1]
    assert sum(line.startswith("stepclr: ") for line in said) == 1


@pytest.mark.usefixtures("without_trials")
def test_odd_names(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name may contain a newline, markup, an escape or undecodable bytes: screen and JSON stay valid."""
    for name in (b"a\nb.jpg", b"[red]c.jpg", b"d\x1b[31m.jpg", b"\xff.jpg"):
        Path(os.fsdecode(os.path.join(os.fsencode(images / "left"), name))).write_bytes(b"broken")
    assert call("doctor", images, *FAST) == 0
    told = capsys.readouterr().out
    assert "4 cannot be read" in told
    assert all(line.isprintable() for line in told.splitlines())
    found = stepclr.doctor(images, CONFIG).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert "[red]c.jpg: not an image" in found["findings"][0]["examples"][0]


@pytest.mark.usefixtures("forked_trials")
def test_a_run_in_micro_batches_is_tried_in_micro_batches(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor", sound, *FAST, "--batch-size", "32", "--micro-batch", "8", "--json") == 0
    run = json.loads(capsys.readouterr().out)["estimate"]
    assert run["at_once"] == 8
    assert [(one["at_once"], one["batch"]) for one in run["trials"]] == [(4, 8), (8, 16)]


def estimated(sound: Path, **options: Any) -> estimate.Estimate:
    found = stepclr.doctor(sound, PretrainConfig("test_resnet", size=32, **options)).estimate
    assert found is not None
    return found


@pytest.mark.usefixtures("without_trials")
def test_the_estimate(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: trials of 8 and 16 images took 1 and 2 GB, a step of 16 took 0.2 s, a checkpoint 0.5 s."""
    monkeypatch.setattr(estimate, "available", lambda: 5 * 10**9)
    run = estimated(sound, batch_size=32, epochs=10)
    each = 3 * 64 * 64
    assert run.step_seconds == pytest.approx(0.4)
    assert run.epoch_seconds == pytest.approx(0.9)
    assert run.steps_per_epoch == 1
    assert run.peak_bytes == 2 * 10**9 + 16 * 125_000_000
    assert run.largest_at_once == pytest.approx(16 + (4.5e9 - 2e9 + 48 * each) / 125e6, abs=1)
    assert run.run_seconds == pytest.approx(5 + 9 + run.decode_seconds)
    assert run.decode_seconds > 0
    again = estimated(sound, batch_size=32, epochs=10, cache_gib=1e-5)
    assert again.decoded_each_epoch
    assert again.decode_seconds == again.images_bytes == 0
    # Two fifths of the steps have views of a quarter of the area, and 35% of them views of 9/16 of it.
    growing = estimated(sound, batch_size=32, epochs=10, progressive=True)
    assert growing.step_seconds == pytest.approx(0.4 * (0.4 / 4 + 0.35 * 9 / 16 + 0.25))
    assert (growing.peak_bytes, growing.largest_at_once) == (run.peak_bytes, run.largest_at_once)


def test_a_progressive_run_is_tried_with_views_of_full_size(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []

    def run(words: list[str], **_: Any) -> Any:
        tried.append(json.loads((Path(words[-1]) / "settings.json").read_text())["progressive"])
        measured = {"steps": 3, "step_seconds": 0.1, "checkpoint_seconds": 0.5, "seconds": 0.5, "peak_bytes": 10**9}
        return subprocess.CompletedProcess(words, 0, json.dumps(measured), "")

    monkeypatch.setattr("stepclr.tools.doctor.trial.subprocess.run", run)
    estimated(sound, batch_size=32, epochs=10, progressive=True)
    assert tried == [False, False]


def test_the_free_memory_of_a_container(tmp_path: Path) -> None:
    assert estimate.free_in_cgroup(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 2000\ninactive_file 700\n")
    assert estimate.free_in_cgroup(tmp_path) is None
    (tmp_path / "memory.max").write_text("10000\n")
    assert estimate.free_in_cgroup(tmp_path) == 10000 - 3000 + 700
    version_1 = tmp_path / "version 1" / "memory"
    version_1.mkdir(parents=True)
    (version_1 / "memory.limit_in_bytes").write_text("10000\n")
    (version_1 / "memory.usage_in_bytes").write_text("4000\n")
    (version_1 / "memory.stat").write_text("total_inactive_file 1\n")
    assert estimate.free_in_cgroup(tmp_path / "version 1") == 6001


def advised(size: int = 32, images: int = 10_000, labeled: int = 0, **more: Any) -> Advice:
    findings, largest = more.pop("findings", []), more.pop("largest", 1000)
    return advice(Facts(["a b/"], size, images, labeled=labeled, fitting=lambda *_: largest, **more), findings)


@pytest.mark.usefixtures("without_trials")
def test_the_advice_is_on_as_many_images_as_are_to_be_used(sound: Path) -> None:
    found = stepclr.doctor(sound, PretrainConfig("test_resnet", size=32), limit=6)
    assert found.advice is not None
    assert "--limit 6 " in found.advice.command
    assert "--limit 6 " in found.advice.start.compare[0]


@pytest.mark.usefixtures("without_trials")
def test_a_class_without_an_image_is_not_the_smallest(sound: Path) -> None:
    """There are labels to score with: none is asked for."""
    images = stepclr.open_images(sound)
    images = replace(images, labels=np.arange(len(images)) % 2, classes=["ant", "bee", "of the test split alone"])
    found = stepclr.doctor(images, PretrainConfig("test_resnet", size=32))
    assert found.advice is not None
    assert "labels.csv" not in " ".join([*found.advice.start.compare, *found.advice.start.notes])


def test_advice() -> None:
    assert advised(size=28).command == "stepclr pretrain 'a b/' --recipe sample --out runs/doctor"
    assert advised().command == "stepclr pretrain 'a b/' --recipe cifar10 --out runs/doctor"
    assert "--recipe imagenette --size 96" in advised(size=224).command
    assert "--recipe imagenet " in advised(size=224, gpu=True).command
    assert "--recipe cifar10 --encoder resnet18 " in advised(gpu=True).command
    few = advised(images=200)
    assert "--batch-size 32 --epochs 250" in few.command
    assert len(few.why) == 3
    assert "--micro-batch 64" in advised(largest=100).command
    read = advised(reading=Reading((0, 4095), 10**9))
    assert "--value-range 0,4095 --max-pixels 1000000000" in read.command  # as the doctor read them
    labeled = advised(labeled=9000, chosen=["cat", "dog"])
    assert "--classes cat,dog --recipe cifar10-supcon" in str(labeled.with_labels)
    conflicts = advised(labeled=9000, findings=[finding("conflicting-labels", "error", 1, "", "")])
    assert "once the conflicting labels are resolved" in conflicts.why[-1]


def test_the_commands_have_views_of_the_size_that_was_asked_for() -> None:
    """Where `pretrain` would choose another by itself: 224 px for photos, the images' own if all are small squares."""
    for size, own_size, asked, adapted in (
        (32, 224, "--size 32", "--size 96"),
        (96, 224, "--size 96", "--size 96"),
        (128, 224, "--size 128", "--size 128"),
        (48, 96, "--size 48", None),
        (64, 64, None, "--size 96"),
        (224, 224, "--size 96", "--size 96"),
        (224, 96, None, None),
    ):
        found = advised(size=size, own_size=own_size, labeled=10_000, smallest_class=100)
        for command, words in (
            (found.command, asked),
            (str(found.with_labels), asked),
            (found.start.compare[0], adapted),
        ):
            assert words in command if words else "--size" not in command, (size, own_size, command)


@pytest.mark.usefixtures("without_trials")
def test_the_size_of_the_examined_run_is_that_of_the_suggested_one(sound: Path) -> None:
    found = stepclr.doctor(sound, PretrainConfig("test_resnet", size=48))
    assert found.advice is not None
    assert " --size 48 " in found.advice.command
    own = stepclr.doctor(sound, PretrainConfig("test_resnet", size=96))
    assert own.advice is not None
    assert "--size" not in own.advice.command


def test_how_many_images_fit_depends_on_the_network(sound: Path) -> None:
    """Measured in one network, and told for another by what it keeps of an image."""
    images = stepclr.open_images(sound)
    measured = resolve(PretrainConfig("resnet18", size=64), images)
    fits = partial(fitting, 100, measured)
    assert fits("resnet18", "small", 64) == fits("resnet18", "auto", 64) == 100
    assert fits("resnet18", "auto", 32) == pytest.approx(400, abs=4)
    assert fits("resnet50", "small", 64) < 50  # type: ignore[operator]
    assert fits("resnet10x0.5", "small", 64) > 200  # type: ignore[operator]
    assert fitting(100, replace(measured, views=4), "resnet18", "small", 64) == 200  # of two views
    for unknown in (replace(measured, encoder="module:Net"), replace(measured, checkpoint_activations=True)):
        assert fitting(100, unknown, "resnet18", "small", 64) is None
    assert fitting(None, measured, "resnet18", "small", 64) is None


def test_a_network_that_looks_at_values_is_not_counted(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Looks(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.sum().item()

    def build(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(body=Looks(1, 1))

    measured = resolve(PretrainConfig("resnet18", size=64), stepclr.open_images(sound))
    monkeypatch.setattr("stepclr.tools.doctor.memory.build_encoder", build)
    assert fitting(100, measured, "resnet18", "small", 64) is None


@pytest.mark.parametrize(("encoder", "size"), [("resnet18", 32), ("resnet50", 64), ("vit_tiny_patch16_224", 32)])
def test_what_a_network_keeps_of_an_image(encoder: str, size: int) -> None:
    """As many bytes as autograd keeps of real images."""
    network = stepclr.build_encoder(encoder, size=size).train()
    own = {tensor.data_ptr() for tensor in network.state_dict().values()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.body(torch.rand(4, 3, size, size))
    counted = sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in own) / 4
    assert kept_bytes(encoder, "auto", size, 3) == pytest.approx(counted, rel=0.02)


def test_where_to_start_depends_on_how_many_images_there_are() -> None:
    """The thresholds are those of docs/should-i-pretrain.md; nothing is said of what the images show."""
    starts = [advised(images=images).start for images in (1_000, 9_999, 10_000, 499_999, 500_000)]
    assert [start.first for start in starts] == ["off the shelf", "off the shelf", "adapt", "adapt", "from scratch"]
    assert starts[0].answer.startswith("1,000 images of 32 px are few to learn from")
    assert starts[2].answer.startswith("10,000 images of 32 px are enough to adapt weights")
    assert starts[4].answer.startswith("500,000 images of 32 px are enough for an encoder of their own")
    for start in starts:
        assert "only the comparison can say" in start.notes[0]


def test_the_starts_are_compared_with_the_labels_that_there_are() -> None:
    none = advised().start
    assert "--labels labels.csv --holdout 0.2 --labels-per-class all " in none.compare[1]
    assert "stepclr label timm:resnet18.tv_in1k 'a b/' --classes A,B -n 60" in none.notes[2]
    labeled = advised(labeled=10_000, smallest_class=39).start
    assert "--train 'a b/' --holdout 0.2 --labels-per-class 1,10,all " in labeled.compare[1]
    assert not any("labels.csv" in note for note in labeled.notes)
    tested = advised(labeled=10_000, smallest_class=100, test=["c/"]).start
    assert "--train 'a b/' --test c/ --labels-per-class 1,10,100,all " in tested.compare[1]
    several = advised(
        labeled=10_000, smallest_class=100, test=["c/", "d/"], test_reading=Reading(damaged_shards="skip")
    )
    assert "--train 'a b/' --test c/ d/ --labels-per-class" in several.start.compare[1]
    assert "--damaged-shards skip" in several.start.compare[1]
    assert "--damaged-shards" not in several.command + several.start.compare[0]  # the training images have no shards
    in_table = advised(labeled=10_000, smallest_class=100, test=["a b/"], tables=["t.csv"]).start
    assert "--train 'a b/' --labels t.csv --labels-per-class 1,10,100,all " in in_table.compare[1]
    one = advised(labeled=2, smallest_class=1).start
    assert "--labels-per-class all " in one.compare[1]
    assert any("--holdout needs two images of each class" in note for note in one.notes)
    assert not any("--holdout needs" in note for note in labeled.notes)


def test_the_comparing_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the work itself: the words are options of `pretrain` and `evaluate`, and name files that there are."""
    import shlex

    def asked(*_: Any, **__: Any) -> None:
        raise stepclr.StepclrError("so far")

    monkeypatch.chdir(tmp_path)
    for name in ("a b", "c"):
        (tmp_path / name).mkdir()
        scene(0).save(tmp_path / name / "0.png")
    (tmp_path / "labels.csv").write_text("path,label\n0.png,A\n")
    monkeypatch.setattr(stepclr, "pretrain", asked)
    monkeypatch.setattr(stepclr, "evaluate", asked)
    labeled: dict[str, Any] = {"labeled": 99, "smallest_class": 9}
    four = {"reading": Reading(channels=4)}
    for options in ({}, labeled, labeled | {"test": "c"}, labeled | four):
        for text in advised(**options).start.compare:
            assert call(*shlex.split(text)[1:]) == 2
            assert capsys.readouterr().err.endswith("stepclr: so far\n")


def test_weights_are_compared_with_images_that_they_take() -> None:
    """Gray becomes RGB for them; other channels only their fitted first layer takes, which is the row start."""
    gray = advised(reading=Reading((0, 4095), channels=1)).start
    assert gray.compare[1].endswith("--baselines pixels,timm:resnet18.tv_in1k --value-range 0,4095 --channels 1")
    assert "stepclr label timm:resnet18.tv_in1k 'a b/' --value-range 0,4095 --classes A,B" in gray.notes[2]
    four = advised(images=1_000, reading=Reading(channels=4)).start
    assert four.compare[1].endswith("--baselines pixels,start --channels 4")
    assert four.first == "adapt"
    assert "they are the row start" in four.notes[2]
    assert "stepclr label runs/adapted --classes A,B" in four.notes[3]


def test_small_images_are_enlarged_for_the_weights() -> None:
    for size in (28, 32, 95):
        start = advised(size=size).start
        assert " --size 96 " in start.compare[0]
        assert start.notes[1] == f"images of {size} px are enlarged for the weights, which learned from larger ones"
    larger = advised(size=96).start
    assert "--size" not in larger.compare[0]
    assert "enlarged" not in " ".join(larger.notes)


def test_adapting_reads_and_cuts_the_images_as_the_suggested_run_does() -> None:
    start = advised(size=224, chosen=["cat", "dog"], reading=Reading((0, 4095), 10**9), images=1_000).start
    read = "--value-range 0,4095 --max-pixels 1000000000"
    adapt = f"--weights timm:resnet18.tv_in1k --classes cat,dog --size 96 --batch-size 128 {read} --out runs/adapted"
    assert start.compare[0] == f"stepclr pretrain 'a b/' {adapt}"
    assert read in start.compare[1]
    assert "--micro-batch 64 " in advised(largest=100).start.compare[0]
    on_gpu = advised(size=224, gpu=True).start
    assert "--weights timm:resnet50.tv_in1k --batch-size" in on_gpu.compare[0]
    assert on_gpu.compare[1].endswith("--baselines pixels,timm:resnet50.tv_in1k")


@pytest.mark.parametrize("arguments", [{}, {"images": 100}, {"largest": 40}, {"labeled": 10_000}])
def test_the_advised_command_runs(arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `pretrain` reads it: the words are options that it has."""
    import shlex

    asked: list[Any] = []
    monkeypatch.setattr(stepclr, "pretrain", lambda *given, **options: asked.append((given, options)))
    monkeypatch.chdir(tmp_path)
    found = advised(**arguments)
    monkeypatch.setattr("stepclr.tools.scores.loading_snippet", lambda _: "")
    for text in (found.command, found.with_labels):
        assert text is None or call(*shlex.split(text)[1:]) == 0
    assert asked[0][0][0] == "a b/"
