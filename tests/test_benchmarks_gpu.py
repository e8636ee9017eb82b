"""The two scripts for a GPU, as far as a CPU can try them: their tables, pieces, and what they say without one."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from touches import Forks

import stepclr
from stepclr.config import PretrainConfig
from stepclr.pretraining import loop, pace

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
N = 40


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(FOLDER)  # as when a script in it is run
    import cifar10_record

    return cifar10_record


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import gpu

    return gpu


def pixels(n: int = N) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The sample's images and labels, at CIFAR's size, RGB."""
    images = stepclr.open_images("sample:train", limit=n)
    each = [Image.fromarray(image[0].numpy()).resize((32, 32)).convert("RGB") for image in images.read(range(n))]
    return np.stack([np.asarray(image) for image in each]), images.labels


@pytest.fixture
def jpegs(tmp_path: Path) -> Path:
    """An .npz of JPEGs."""
    arrays, labels = pixels()
    files = []
    for array in arrays:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=95)
        files.append(file.getvalue())
    path = tmp_path / "images.npz"
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(path, jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, labels=labels)
    return path


def rows(output: str) -> list[list[str]]:
    """The cells of the table's lines."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")][
        2:
    ]


def run(python: str, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [python, str(FOLDER / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_npz_of_jpegs_is_read_in_order_with_its_labels(record: types.ModuleType, jpegs: Path) -> None:
    images = record.open_images(jpegs)
    arrays, labels = pixels()
    assert images.labels.tolist() == labels.tolist()
    read = images.read(range(N)).numpy().transpose(0, 2, 3, 1).astype(int)
    assert np.abs(read - arrays).mean() < 4  # and other images are far
    assert np.abs(read[::-1] - arrays).mean() > 20


# benchmarks/cifar10_record.py


def arguments(jpegs: Path, out: Path, **options: object) -> list[str]:
    given = {"encoder": "test_resnet", "stem": "small-stride2", "epochs": 4, "batch-size": 8, "head": "32-16"} | options
    return [str(jpegs), str(jpegs), "--out", str(out), *(f"--{name}={value}" for name, value in given.items())]


def test_a_record_goes_on_where_it_was_stopped_and_counts_all_its_seconds(
    record: types.ModuleType,
    jpegs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step, taken = loop.train_step, 0

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 7:  # of 20
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **options)

    monkeypatch.setattr(loop, "train_step", interrupted)
    asked = arguments(jpegs, tmp_path / "run")
    assert record.main(asked) == record.UNFINISHED
    assert re.search(r"not finished .*stopped by SIGTERM after step 7 of 20", capsys.readouterr().out)
    assert not (tmp_path / "run" / "record.json").exists()
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    assert record.main(asked) == 0
    assert taken == 20
    printed = capsys.readouterr().out
    stored = json.loads((tmp_path / "run" / "record.json").read_text())
    assert stored["seconds"] > first > 0
    assert f"kNN (k = 10) {stored['knn']:.4f} on the test images after the last epoch, 4:" in printed
    assert [row[0] for row in rows(printed)] == ["1", "2", "3", "4"]  # kNN over time
    before = signal.getsignal(signal.SIGTERM)
    assert record.main(asked) == 0  # a third time: the verdict again, and no step
    assert taken == 20
    assert printed.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]
    assert signal.getsignal(signal.SIGTERM) == before == signal.SIG_DFL


def test_each_try_changes_the_published_settings_and_an_option_changes_those(
    record: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: dict[str, PretrainConfig] = {}
    monkeypatch.setattr(record, "measure", lambda given: tried.update({given.tried: record.settings(given)}))
    for name in record.TRIES:
        assert record.main([str(tmp_path), str(tmp_path), "--try", name]) == 0
    published = tried["published"]
    assert (published.lr, published.temperature, published.loss, published.views) == (0.03, 0.5, "nt-xent", 2)
    for name, changes in record.TRIES.items():
        assert tried[name] == replace(published, **changes)
    assert record.main([str(tmp_path), str(tmp_path), "--try", "dcl", "--lr", "0.02"]) == 0
    assert (tried["dcl"].loss, tried["dcl"].lr) == ("dcl", 0.02)


def test_a_record_has_the_epochs_that_fit_into_its_budget(
    record: types.ModuleType, jpegs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "measured", lambda *_: pace.Pace(step=100.0, checkpoint=0.0, watch=0.0))
    asked = arguments(jpegs, tmp_path / "run", budget=750 / 60)  # seven steps, five of which are an epoch
    assert record.main(asked) == 0
    run = stepclr.Run(tmp_path / "run")
    assert (run.config.epochs, run.metrics[-1]["step"]) == (1.4, 7)
    assert record.main(asked) == 0  # and the same command again finds it done


def test_the_score_is_knn_by_hand(record: types.ModuleType, jpegs: Path, tmp_path: Path) -> None:
    assert record.main(arguments(jpegs, tmp_path / "run", epochs=1)) == 0
    stored = json.loads((tmp_path / "run" / "record.json").read_text())
    images = record.open_images(jpegs)
    h = torch.from_numpy(stepclr.embed(tmp_path / "run", images)).double()
    h = h / h.norm(dim=1, keepdim=True)

    def knn(k: int) -> float:
        right = 0
        for row, label in zip(h, images.labels, strict=True):
            cosine, votes = h @ row, np.zeros(10)
            for near in cosine.argsort(descending=True)[:k]:
                votes[images.labels[near]] += np.exp(float(cosine[near]) / 0.1)
            right += int(votes.argmax() == label)
        return right / N

    assert stored["knn"] == knn(10)
    assert stored["knn"] != knn(3)


def test_the_verdict_is_by_the_bar(record: types.ModuleType, tmp_path: Path) -> None:
    done = stepclr.Run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 9, "epoch": 600, "seconds": 1200.0}) + "\n")
    assert "reached 90%, in 1200 s (20.0 min)" in record.verdict(0.9, done)
    assert "did NOT reach 90%" in record.verdict(0.8999, done)


def test_a_record_stops_itself_when_its_minutes_are_over(forked: Forks, jpegs: Path, tmp_path: Path) -> None:
    words = arguments(jpegs, tmp_path / "run", epochs=100_000)
    ended = run(forked.python, "cifar10_record.py", *words, "--minutes=0.03")
    assert ended.returncode == 3, ended.stderr
    assert "not finished" in ended.stdout
    assert "the same command resumes" in ended.stdout


def test_other_settings_on_a_run_that_began_are_refused_in_a_line(
    record: types.ModuleType, jpegs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert record.main(arguments(jpegs, tmp_path / "run", epochs=1)) == 0
    (tmp_path / "run" / "record.json").unlink()
    assert record.main(arguments(jpegs, tmp_path / "run", epochs=1, temperature=0.2)) == 2
    assert "temperature 0.5, not 0.2" in capsys.readouterr().out.splitlines()[-1]


# benchmarks/gpu.py


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_every_row_says_so_and_nothing_is_estimated(forked: Forks) -> None:
    ended = run(forked.python, "gpu.py")
    assert ended.returncode == 0, ended.stderr
    table = rows(ended.stdout)
    assert len(table) == 12
    for row in table:
        assert re.fullmatch(r"not measured: torch \S+ finds no CUDA device", row[1])
        assert row[2:] == ["", ""]


def test_the_full_sizes_are_for_a_gpu(forked: Forks) -> None:
    ended = run(forked.python, "gpu.py", "--device", "cpu")
    assert ended.returncode == 2
    assert "--quick" in ended.stderr


@pytest.mark.slow
def test_all_rows_in_tiny_sizes(jpegs: Path) -> None:
    pytest.importorskip("lightly", reason="two rows are lightly's")
    sizes = ["--device=cpu", "--quick", f"--cifar={jpegs}", f"--imagenette={jpegs}", "--seconds=0.5"]
    ended = run(sys.executable, "gpu.py", *sizes)
    assert ended.returncode == 0, ended.stderr
    table = rows(ended.stdout)
    assert len(table) == 12
    for row in table:
        assert re.match(r"[\d,.]+ (TFLOP/s|images/s|views/s|ms)", row[1]), row


def bench(gpu: types.ModuleType, **options: Any) -> Any:
    return gpu.Bench(**{"device": torch.device("cpu"), "seconds": 0.1, "quick": True, "cifar": None, "imagenette": None,
                        "limit": None} | options)  # fmt: skip


def test_rows_that_a_file_has_are_not_measured_again(
    gpu: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = {"good": 0, "bad": 0, "roof": 0}

    def measure(name: str) -> Any:
        calls[name] += 1
        if name == "bad":
            raise RuntimeError("no memory")
        return gpu.Row(f"{calls[name]} calls")

    made = [gpu.Plan("roof", "roof", lambda _: measure("roof"))]
    made += [gpu.Plan("train", name, lambda _, name=name: measure(name)) for name in ("bad", "good")]
    monkeypatch.setattr(gpu, "plans", lambda _: made)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for _ in range(2):
        gpu.main(["--device", "cpu", "--quick", "--out", str(tmp_path / "rows.jsonl")])
    assert calls == {"good": 1, "bad": 2, "roof": 2}
    assert [row[1] for row in rows(capsys.readouterr().out) if row[0] == "good"] == ["1 calls"] * 2


def test_a_row_that_fails_says_why_in_a_line(gpu: types.ModuleType) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    row = gpu.measured(gpu.Plan("x", "x", fails), bench(gpu), time.monotonic() + 100)
    assert row.result == "not measured: RuntimeError: first line"
    row = gpu.measured(gpu.Plan("x", "x", lambda b: gpu.cifar(b)), bench(gpu), time.monotonic() + 100)
    assert row.result == "not measured: it needs --cifar"


def test_time_that_is_over_ends_a_row_in_the_middle_and_all_that_follow(gpu: types.ModuleType) -> None:
    begun = time.monotonic()
    plan = gpu.Plan("x", "x", lambda _: time.sleep(20))
    assert gpu.measured(plan, bench(gpu), begun + 0.2).result == "not measured: out of time"
    assert gpu.measured(plan, bench(gpu), begun + 0.2).result == "not measured: out of time"
    assert time.monotonic() - begun < 10


def test_the_median_is_of_calls_after_the_warm_up(gpu: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: clock[0])
    took = iter([50.0, 50.0, 2.0, 1.0, 3.0, 2.0, 9.0, 2.0])

    def call() -> None:
        clock[0] += next(took)

    assert gpu.median_seconds(call, torch.device("cpu"), 8.0, warm_up=2) == 2.0


def test_a_resnet_18s_flops_are_those_that_are_published(gpu: types.ModuleType) -> None:
    """1.81 G multiply-adds forward at 224 px; forward and backward are three times that less the first layer's part."""
    counted = gpu.flops(gpu.config_of("resnet18", "imagenet", 224, 1))
    assert counted == pytest.approx(2 * 2 * 3 * 1.814e9, rel=0.05)
    assert counted < 2 * 2 * 3 * 1.82e9


# benchmarks/gpu_correct.py


@pytest.fixture
def correct(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import gpu_correct

    return gpu_correct


def test_what_is_right_is_ok_and_not_tried_again_and_what_is_wrong_fails(
    correct: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--device", "cpu", "--quick", "--rows", "loss,views,waits", "--out", str(tmp_path / "rows.jsonl")]
    right = correct.contrastive

    def detached(z: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        half = z.detach().clone()
        half[: len(z) // 2] = z[: len(z) // 2]
        wrong: torch.Tensor = right(half, *rest, **options)
        return wrong

    monkeypatch.setattr(correct, "contrastive", detached)  # the value is right, the gradient is not
    assert correct.main(asked) == 1
    table = rows(capsys.readouterr().out)
    assert {row[3] for row in table if row[0].startswith("its gradient")} == {"WRONG"}
    assert {row[3] for row in table if not row[0].startswith("its gradient")} == {"ok"}
    monkeypatch.setattr(correct, "contrastive", right)
    assert correct.main(asked) == 0
    table = rows(capsys.readouterr().out)
    assert ["views", "ok before", "", ""] in table
    assert [row[3] for row in table if row[0].startswith("its gradient")] == ["ok"] * 3


# benchmarks/GPU-RUNBOOK.md


def test_the_runbook_names_scripts_and_options_that_exist() -> None:
    text = (FOLDER / "GPU-RUNBOOK.md").read_text().replace("\\\n", "")
    commands = re.findall(r"python3 benchmarks/(\w+\.py)([^;\n]*)", text)
    assert [script for script, _ in commands] == ["gpu_correct.py", "gpu.py", "cifar10_record.py"]
    for script, words in commands:
        source = (FOLDER / script).read_text()
        for option in re.findall(r" (--[a-z-]+)", words):
            assert f'"{option}"' in source, (script, option)
