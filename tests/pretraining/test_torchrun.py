"""The same command on many ranks, as a user starts it: torchrun and the command line, on real images (gloo, CPU)."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from touches import Forks

import stepclr
from stepclr.pretraining.checkpoint import checkpoints

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and signals as Linux has them")
PYTHON: list[str] = []  # forks that stand for new processes: test_readme.py starts torchrun itself
TORCHRUN = ["-m", "torch.distributed.run"]
SMALL = ["--encoder", "test_resnet", "--stem", "small-stride2", "--head", "32-16", "--precision", "fp32"]
PRETRAIN = ["-m", "stepclr", "pretrain", "sample:train", *SMALL, "--batch-size", "18", "--limit", "60"]
PRETRAIN += ["--temperature", "0.5"]
Say = subprocess.CompletedProcess[str]


def run(words: list[str], folder: Path | None = None) -> Say:
    return subprocess.run([*PYTHON, *words], cwd=folder, capture_output=True, text=True, timeout=280, check=False)


def world(count: int, *words: str, restarts: int = 0) -> Say:
    start = [*TORCHRUN, "--standalone", "--nproc-per-node", str(count), "--max-restarts", str(restarts)]
    return run([*start, *words])


def last(out: Path) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return line


@pytest.fixture(scope="module", autouse=True)
def python(forked: Forks) -> None:
    PYTHON[:] = [forked.python]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("one") / "run"
    done = run([*PRETRAIN, "--epochs", "4", "--out", str(out)])
    assert not done.returncode, done.stderr
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run of two ranks."""
    out = tmp_path_factory.mktemp("two") / "run"
    done = world(2, *PRETRAIN, "--epochs", "4", "--out", str(out))
    assert not done.returncode, done.stderr
    assert done.stdout.count("the run is in") == 1
    assert done.stderr.count("4 epochs, 12 steps of 18 images") == 1
    return out


def test_two_ranks_make_the_run_of_one_process(one: Path, two: Path) -> None:
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert (stepclr.Run(one).config.ranks, stepclr.Run(two).config.ranks) == (1, 2)
    first, other = stepclr.Run(one).metrics, stepclr.Run(two).metrics
    assert [line["step"] for line in first] == [line["step"] for line in other]
    for name in ("loss", "alignment", "uniformity"):
        assert other[0][name] == pytest.approx(first[0][name], rel=1e-3), name
        # Float32's last digit grows by a factor of about 6 a step here; in float64 they stay equal (test_ranks.py).
        assert other[-1][name] == pytest.approx(first[-1][name], rel=0.1), name
    assert [line["lr"] for line in first] == [line["lr"] for line in other]
    assert {line["negatives"] for line in first + other} == {34.0}  # of 18 images' 36 projections all but two
    assert 0 <= other[-1]["knn"] <= 1
    assert load_file(two / "encoder.safetensors").keys() == load_file(one / "encoder.safetensors").keys()


def test_a_run_stops_at_four_ranks_and_goes_on_at_two(one: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = world(4, *PRETRAIN, "--epochs", "4", "--out", str(out))
    assert not done.returncode, done.stderr
    newest = checkpoints(out / "checkpoint")[-1]
    newest.unlink()  # as if it had been stopped before the last epoch's end
    (out / "encoder.safetensors").unlink()
    done = world(2, *PRETRAIN, "--epochs", "4", "--out", str(out), "--resume")
    assert not done.returncode, done.stderr
    assert "resuming after step 9" in done.stderr
    assert last(out)["loss"] == pytest.approx(last(one)["loss"], rel=0.1)
    assert last(out)["lr"] == last(one)["lr"]


SCRIPT = """
import os, signal, sys
from stepclr.cli import main
from stepclr.pretraining import loop

step, taken = loop.train_step, []
def fated(*arguments):
    taken.append(1)
    if os.environ["RANK"] == "1" and len(taken) == 8 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        {fate}
    return step(*arguments)
loop.train_step = fated
main(sys.argv[1:])
"""


def doomed(folder: Path, fate: str) -> str:
    path = folder / "doomed.py"
    path.write_text(SCRIPT.format(fate=fate))
    return str(path)


def test_a_killed_rank_and_a_restart_end_as_if_nothing_had_happened(two: Path, tmp_path: Path) -> None:
    script = doomed(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    out = tmp_path / "run"
    done = world(2, script, *PRETRAIN[2:], "--epochs", "4", "--out", str(out), restarts=1)
    assert not done.returncode, done.stderr
    assert "resuming after step 6" in done.stderr  # it died in step 8, in the third of four epochs
    assert last(out)["loss"] == last(two)["loss"]
    trained, expected = load_file(out / "encoder.safetensors"), load_file(two / "encoder.safetensors")
    assert all(tensor.equal(expected[name]) for name, tensor in trained.items())


@pytest.mark.parametrize("count", [1, 2])
def test_a_restarted_job_refuses_a_run_that_was_there_before_it(count: int, one: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(one, tmp_path / "run"))
    before = (out / "encoder.safetensors").read_bytes()
    done = world(count, *PRETRAIN, "--epochs", "5", "--out", str(out), restarts=1)
    assert done.returncode
    assert done.stderr.count("already contains a run: --resume continues it, or choose another --out") >= 2
    assert (out / "encoder.safetensors").read_bytes() == before
    assert stepclr.Run(out).config.epochs == 4


PATIENT = """
import os, pathlib, sys, time
from datetime import timedelta
from stepclr import distributed

here = pathlib.Path(sys.argv[1])
(here / os.environ["RANK"]).touch()
while len(list(here.iterdir())) < 2:  # they start together
    time.sleep(0.01)
distributed.TIMEOUT = timedelta(seconds=5)
world = distributed.join()
if world.first:
    time.sleep(10)
world.wait()
os.write(1, f"together {world.numbers(world.rank)}\\n".encode())  # in one piece: both write
"""


def test_ranks_wait_for_what_one_of_them_does_alone(tmp_path: Path) -> None:
    """Such as a second stage, which takes longer than an exchange may."""
    script = tmp_path / "patient.py"
    script.write_text(PATIENT)
    (tmp_path / "ranks").mkdir()
    done = world(2, str(script), str(tmp_path / "ranks"))
    assert not done.returncode, done.stderr
    assert done.stdout.count("together [0.0, 1.0]") == 2


TIMED = """
import os, signal, sys
from stepclr.cli import main
from stepclr.pretraining import loop, pace

step, measured, taken, trial = loop.train_step, pace.measured, [], []
def tried(config, seconds, *rest):
    measured(config, 1.0, *rest)
    trial.append(len(taken))
    return pace.Pace(step=100.0 + 50 * int(os.environ["RANK"]), checkpoint=0.0, watch=0.0)
def fated(*arguments):
    taken.append(1)
    if trial and len(taken) == trial[0] + 5 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)
loop.train_step, pace.measured = fated, tried
main(sys.argv[1:])
"""
EIGHT_STEPS = 850 / 60  # minutes, by the pace of rank 0; rank 1 would take 5


def test_ranks_agree_on_the_epochs_that_fit_and_resume_a_progressive_run_exactly(tmp_path: Path) -> None:
    script = tmp_path / "timed.py"
    script.write_text(TIMED)
    counted, timed = tmp_path / "counted", tmp_path / "timed"
    words = [*PRETRAIN, "--progressive"]
    done = world(2, *words, "--epochs", "2.667", "--out", str(counted))
    assert not done.returncode, done.stderr
    done = world(2, str(script), *words[2:], "--minutes", str(EIGHT_STEPS), "--out", str(timed), restarts=1)
    assert not done.returncode, done.stderr
    assert done.stderr.count("minutes: 2.667 epochs") == 1  # the resumed run has them from config.json
    assert "resuming after step 3" in done.stderr  # rank 1 died in step 5, in the second epoch
    settings = [json.loads((out / "config.json").read_text()) for out in (counted, timed)]
    assert settings[1].pop("minutes") == EIGHT_STEPS
    assert settings[0].pop("minutes") is None
    assert settings[0] == settings[1]
    assert [line["step"] for line in stepclr.Run(timed).metrics] == [3, 6, 8]
    trained, expected = load_file(timed / "encoder.safetensors"), load_file(counted / "encoder.safetensors")
    assert all(tensor.equal(expected[name]) for name, tensor in trained.items())


@pytest.mark.parametrize(
    ("fate", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "Signal 9 (SIGKILL)"),
        ("raise OSError('the disk of this rank is gone')", "stepclr: rank 1: the disk of this rank is gone"),
    ],
)
def test_a_dead_rank_ends_the_job_within_a_minute_and_says_why(fate: str, words: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    done = world(2, doomed(tmp_path, fate), *PRETRAIN[2:], "--epochs", "400", "--out", str(tmp_path / "run"))
    assert done.returncode
    assert time.monotonic() - begun < 60
    assert words in done.stderr
    assert checkpoints(tmp_path / "run" / "checkpoint")[-1].name == "step-00000006.safetensors"


def test_bad_input_is_one_line_a_rank(tmp_path: Path) -> None:
    done = world(2, "-m", "stepclr", "pretrain", "sample:tran", "--out", str(tmp_path / "run"))
    assert done.returncode
    assert "stepclr: rank 0: unknown split of sample 'tran'. Did you mean 'train'?" in done.stderr
    assert not (tmp_path / "run").exists()
    done = world(4, *PRETRAIN, "--batch-size", "3", "--out", str(tmp_path / "run"))
    assert "4 ranks cannot share a batch of 3: use fewer, or a larger --batch-size" in done.stderr
    assert not (tmp_path / "run").exists()


def test_sigterm_stops_all_ranks_after_the_same_step(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [
        *PYTHON,
        *TORCHRUN,
        "--standalone",
        "--nproc-per-node",
        "2",
        *PRETRAIN,
        "--epochs",
        "4000",
        "--out",
        str(out),
    ]
    job = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        _wait(lambda: (out / "metrics.jsonl").exists() and bool((out / "metrics.jsonl").read_text()))
        job.send_signal(signal.SIGTERM)
        said = job.communicate(timeout=300)[1]
    finally:
        job.kill()
    assert said.count("stopped by SIGTERM after step") == 2
    step = int(said.split("stopped by SIGTERM after step ")[1].split()[0])
    assert checkpoints(out / "checkpoint")[-1].name == f"step-{step:08d}.safetensors"


def _wait(come: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not come():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_two_nodes_are_two_torchruns_that_find_each_other(two: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    meet = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint", place]
    words = [
        *PYTHON,
        *TORCHRUN,
        *meet,
        "--nproc-per-node",
        "1",
        *PRETRAIN,
        "--epochs",
        "4",
        "--out",
        str(tmp_path / "run"),
    ]
    nodes = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [node.communicate(timeout=120)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert last(tmp_path / "run")["loss"] == last(two)["loss"]


def test_evaluate_and_embed_write_the_files_of_one_process(one: Path, tmp_path: Path) -> None:
    """700 images are three batches, of which two ranks take two and one; one image of a folder is garbage."""
    words = "--train sample:train --test sample:test --labels-per-class 1,3 --draws 3 --baselines pixels,random,scratch"
    evaluate = ["-m", "stepclr", "evaluate", "run", *words.split(), "--scratch-steps", "3"]
    embed = ["-m", "stepclr", "embed", "run", "sample:test", "--limit", "700", "--out", "h.npz"]
    for count in (1, 2):
        home = tmp_path / str(count)
        home.mkdir()
        shutil.copytree(one, home / "run")
        start = [] if count == 1 else [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]
        for command in (evaluate, embed):
            done = run([*start, *command], home)
            assert not done.returncode, done.stderr
            assert done.stdout.count("700 embeddings" if command is embed else "protocol and every value") == 1
    alone, together = (tmp_path / str(count) for count in (1, 2))
    scores = (alone / "run/evaluation.json").read_text()
    assert (together / "run/evaluation.json").read_text() == scores.replace(str(alone), str(together))
    a, b = (np.load(tmp_path / f"{count}/h.npz") for count in (1, 2))
    assert a.files == b.files
    assert all(np.array_equal(a[name], b[name]) for name in a.files)


def test_images_that_only_one_rank_met_are_listed_for_all(tmp_path: Path) -> None:
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    for i, image in enumerate(stepclr.open_images("sample:train", limit=600).read(range(600))):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(photos / f"{i:03}.png")
    for i in (3, 300, 599):
        truncated = photos / f"{i:03}.png"
        truncated.write_bytes(truncated.read_bytes()[:-30])
    run_folder = tmp_path / "run"
    stepclr.pretrain("sample:train", run_folder, encoder="test_resnet", epochs=1, limit=32, progress=False)
    out = tmp_path / "h.npz"
    done = world(2, "-m", "stepclr", "embed", str(run_folder), str(photos), "--out", str(out))
    assert not done.returncode, done.stderr
    listed = out.with_suffix(".skipped.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in listed] == ["path", "003.png", "599.png", "300.png"]
    assert len(np.load(out)["embeddings"]) == 597
