"""The command line end to end, as a user types it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.table import Table
from small import call
from touches import Forks

import stepclr
from stepclr.cli import COMMANDS, GROUPS, as_options
from stepclr.cli.printing import Counter, note, say
from stepclr.cli.training import PAGE_SECONDS
from stepclr.config import ADAPTING_RATE, OPTIMIZERS

pytestmark = pytest.mark.usefixtures("few_strengths", "small_sample")
TINY_OPTIONS = "--encoder test_resnet --stem small-stride2 --epochs 1 --batch-size 32 --limit 64 --head 32-16"
TINY = TINY_OPTIONS.split()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on the sample, made by the command line."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert call("pretrain", "sample:unlabeled", "--out", out, *TINY) == 0
    return out


def test_progress_says_what_is_next_and_how_long_it_all_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: seconds)
    counter = Counter()
    counter.announce("the images")  # at once
    counter.announce("more images")
    assert capsys.readouterr().err == "the images\n"
    counter = Counter()
    for done in range(1, 4):
        seconds += 20
        counter(done, 3)
        counter.announce("random, all labels")
    assert capsys.readouterr().err == "1 of 3, about 0:40 left\n2 of 3, about 0:20 left: random, all labels\n3 of 3\n"
    seconds += 20
    counter(1, 3)  # those of another run
    assert capsys.readouterr().err == "1 of 3, about 0:40 left: random, all labels\n"
    counter = Counter()
    counter.announce("the images")
    seconds += 100  # say nothing of how long the training takes
    counter.announce("fine-tuning")
    seconds += 20
    counter(1, 3)
    assert capsys.readouterr().err == "the images\nfine-tuning\n1 of 3, about 0:40 left: fine-tuning\n"


def test_a_known_time_left_takes_the_place_of_that_by_the_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: seconds)
    counter = Counter()
    counter.announce("the images")
    for seconds in (20.0, 40.0):
        counter.left(100 - seconds)
        counter(1, 3)
    seconds = 100.0
    counter(3, 3)
    assert capsys.readouterr().err == (
        "the images\nabout 1:20 left: the images\n1 of 3, about 1:00 left: the images\n3 of 3\n"
    )


def test_on_a_terminal_what_comes_after_a_count_has_its_own_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    counter = Counter()
    counter(1, 2)
    note("a remark")
    counter.announce("the rest")
    counter(2, 2)
    counter.left(0.0)  # nothing more is counted
    say("the result")
    lines = [line.split("\r")[-1].rstrip() for line in capsys.readouterr().err.split("\n")]
    assert lines == ["1 of 2, about 0:00 left", "a remark", "2 of 2", ""]


@pytest.mark.parametrize("command", ["pretrain", "distill"])
def test_minutes_count_from_the_start_of_a_command_that_trains(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it did before, and the page that it writes afterwards, are part of them."""
    asked: dict[str, Any] = {}

    def noted(*_: Any, **options: Any) -> None:
        asked.update(options)
        raise stepclr.StepclrError("enough")

    monkeypatch.setattr(stepclr, command, noted)
    teacher = ["teacher"] if command == "distill" else []
    assert call(command, *teacher, "sample:test", "--out", "run", "--minutes", "1") == 2
    assert time.monotonic() - asked["since"] >= PAGE_SECONDS


def test_what_takes_only_three_seconds_counts_nothing_aloud(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: seconds)
    counter = Counter()
    for seconds in (1.0, 3.0, 4.0, 5.0):
        counter(int(seconds), 5)
    assert capsys.readouterr().err == "4 of 5, about 0:01 left\n"


def test_help_is_instant_because_it_imports_no_torch() -> None:
    code = """
import sys
from stepclr.cli import COMMANDS, main
for command in ([], *([name] for name in COMMANDS)):
    try:
        main([*command, "--help"])
    except SystemExit as stop:
        assert not stop.code
    heavy = {"torch", "torchvision", "timm", "sklearn", "numpy", "lancedb", "pyarrow"} & set(sys.modules)
    assert not heavy, (command, heavy)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("usage: stepclr") == 1 + len(COMMANDS)
    assert shown.stdout.count("show this help message") >= len(COMMANDS)


def test_a_command_says_that_it_loads_torch_before_it_does() -> None:
    """The import takes seconds, or minutes on a slow disk."""
    code = """
import sys
from stepclr.cli import main

class Loads:
    def find_spec(self, name, *_):
        if name == "torch":
            sys.exit("now")

sys.meta_path.insert(0, Loads())
main(sys.argv[1:])
"""
    for words in (["pretrain", "sample:test", "--out", "run"], ["find", "outliers", "index"]):
        ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert ended.stderr == "loading PyTorch, which takes a few seconds\nnow\n"


@pytest.mark.parametrize(
    ("last", "code"), [("sys.exit()", 0), ("sys.exit(7)", 7), ("sys.exit('why')", 1), ("raise ValueError", 1)]
)
def test_the_program_ends_only_when_all_is_done(last: str, code: int) -> None:
    """It ends without taking its modules apart: not before threads have ended, handlers are called and all is said."""
    program = f"""
import atexit, sys, threading, time
import stepclr.cli, stepclr.__main__

class Kept:
    def __del__(self):
        print("taken apart")

def main():
    stepclr.cli.kept = Kept()
    atexit.register(print, "handler")
    threading.Thread(target=lambda: (time.sleep(0.2), print("x" * 100_000))).start()
    {last}

stepclr.cli.main = main
stepclr.__main__.program()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stdout == "x" * 100_000 + "\nhandler\n"
    assert ended.returncode == code
    assert ("why" in ended.stderr) == ("why" in last)
    assert ("Traceback" in ended.stderr) == ("ValueError" in last)


def test_help_names_every_command_source_and_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    shown = capsys.readouterr().out
    for word in ("sample", "cifar10", "stl10", "paper"):
        assert word in shown
    # Under the title of its group, each command with what it does, on a line of at most 120 characters.
    for title, commands in GROUPS.items():
        section = shown.split(f"\n{title}:\n")[1].split("\n\n")[0].splitlines()
        assert [line.split()[0] for line in section] == list(commands)
        assert all(len(line) <= 120 for line in section)
    assert len(COMMANDS) == 17
    assert call("--version") == 0
    assert capsys.readouterr().out == f"stepclr {stepclr.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    assert call(command, "--help") == 0
    shown = re.sub(r"[│╭╰─╮╯]|---+|\|", "", capsys.readouterr().out)
    entries = re.split(r"^ *(?:-\w, )?(?=--\w)", shown, flags=re.MULTILINE)[1:]
    assert entries
    for entry in entries:
        text = re.sub(r"\((default|required)[^)]*\)", "", entry)
        assert len(text.split()) > 3, f"{command} {entry}"


def test_an_option_that_equals_the_recipes_value_is_given_too(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused where it has no use, and kept where a recipe's own value would give way."""
    words = ["pretrain", "sample:unlabeled", "--limit", 32, "--batch-size", 16]
    assert call(*words, "--recipe", "sample", "--policy", "crop", "--blur", 0.5, "--out", tmp_path / "x") == 2
    assert "policy crop does not use blur" in capsys.readouterr().err
    words += ["--recipe", "cifar10", "--weights", run]
    for option, lr in (["--lr=0.5"], 0.5), ([], ADAPTING_RATE * OPTIMIZERS["sgd"][0]):
        out = tmp_path / f"at {lr}"
        assert call(*words, *option, "--no-progressive", "--epochs", 1, "--out", out) == 0
        assert stepclr.Run(out).config.lr == pytest.approx(lr)
    assert call(*words, "--stem", "small", "--out", tmp_path / "x") == 2  # the run's is another
    capsys.readouterr()


def test_help_shows_the_recipes_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("pretrain", "--recipe", "sample", "--help") == 0
    shown = capsys.readouterr().out.replace("│", " ")
    assert "(default: test_resnet)" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("pretrian x --out y", "Did you mean 'pretrain'"),
        ("pretrain sample:unlabeled --out y --epoch 3", "--epochs"),
        ("pretrain sample:unlabeled --out y --temprature 0.1", "--temperature"),
        ("pretrain sample:unlabeled --out y --loss nt_xemt", "nt-xent"),
        ("pretrain sample:unlabeled --out y --optimizer lasr", "lars"),
        ("pretrain sample:unlabeled --out y --epochs many", "--epochs"),
        ("pretrain sample:unlabelled --out y", "Did you mean 'unlabeled'"),
        ("pretrain smaple:train --out y", "Did you mean 'sample'"),
        ("pretrain sample:train --classes Bga --out y", "Did you mean 'Bag'"),
        ("pretrain sample:unlabeled --classes Bag --out y", "no labels"),
        ("pretrain no/such/folder --out y", "does not exist"),
        ("pretrain sample:unlabeled --recipe smaple --out y", "Did you mean 'sample'"),
        ("pretrain sample:unlabeled --encoder resnet51 --out y", "Did you mean 'resnet"),
        (
            "pretrain sample:unlabeled --batchnorm frozen --out y",
            "--batchnorm frozen keeps the mean and variance of given",
        ),
        ("pretrain sample:unlabeled --size 2 --out y", "size must lie between"),
        ("views sample:train --out y.pgn", "y.pgn"),
        ("views sample:train --rows 300 --pairs 1 --size 64 --out y.webp", "y.webp: WEBP cannot hold an image of"),
        ("views sample:train --size 0 --out y.png", "size must lie between 4 and 4096, not 0"),
        ("demo --epochs 0 --out y", "epochs must be above 0, not 0"),
        ("views sample:train --policy simcrl --out y.png", "Did you mean 'simclr'"),
        ("steps sample:train --only 9", "1 to 8"),
        ("views sample:train --value-range 5 --out y.png", "'5' is not two numbers with a comma"),
        ("views sample:train --strength 0.5,,1 --out y.png", "'0.5,,1' is not a number"),
        ("views sample:train --policy all --pairs 3 --out y.png", "pairs has no effect here"),
        ("views sample:train --policy all --views 3 --out y.png", "views has no effect here"),
        ("evaluate y --train sample:train --test sample:test --draws 3", "draws has no effect here"),
        ("find duplicates y --channels 4", "channels has no effect here"),
        ("evaluate y --train sample:train --test sample:test --knn-k 3 --probe linear", "--knn-k has no effect here"),
        ("label y --max-pixels 9", "--max-pixels has no effect here"),
        ("evaluate no/such/run --train sample:train --test sample:test", "no/such/run"),
        ("embed no/such/run sample:test --out y.npz", "no/such/run"),
    ],
)
def test_bad_input_gets_the_right_word_and_exit_code_2(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*words.split()) == 2
    shown = capsys.readouterr()
    assert said in shown.err + shown.out
    assert "Traceback" not in shown.err
    assert list(tmp_path.iterdir()) == []
    if shown.err.startswith("stepclr:"):
        assert shown.err.count("\n") == 1


def test_an_empty_word_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """Such as "$PHOTOS" where the variable is not set."""
    for words, before in ((["pretrain", "", "--out", "y"], "pretrain"), (["label", "x", "--out", ""], "--out")):
        assert call(*words) == 2
        assert f"the word after {before} is empty" in capsys.readouterr().err
    with pytest.raises(stepclr.StepclrError, match="a source is an empty text"):
        stepclr.open_images("")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("batch_size must be at least 2, not 1", "--batch-size must be at least 2, not 1"),
        ("use resume=True to continue it, or another out", "use --resume to continue it, or another --out"),
        ("takes one size: set progressive=False", "takes one size: set --no-progressive"),
        ("give stem=small", "give --stem small"),
        ("damaged_shards='skip' leaves such shards out", "--damaged-shards skip leaves such shards out"),
        ("size must lie between 4 and 8", "size must lie between 4 and 8"),
        ("no images in /data/batch_size.png", "no images in /data/batch_size.png"),
        ("unknown encoder 'batch_size'", "unknown encoder 'batch_size'"),
    ],
)
def test_an_argument_in_an_error_is_spelled_as_its_option(message: str, shown: str) -> None:
    assert as_options(message) == shown


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    ],
)
def test_too_little_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(stepclr, "pretrain", fails)
    assert call("pretrain", "sample:train", "--out", "y") == 1
    assert capsys.readouterr().err == f"stepclr: there is not enough memory: {error}\n"


def test_no_traceback_reaches_a_user(forked: Forks) -> None:
    command = [forked.python, "-m", "stepclr", "pretrain", "sample:unlabelled", "--out", "y"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("stepclr: unknown split")
    assert done.stderr.count("\n") == 1


def test_no_name_in_a_table_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("class\x1b[2J", title="of \x1b]0;photos\x07")
    table.add_row("[red]a :train:\r\x1b[31m")
    say(table)
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\r"} & set(shown)
    assert r"[red]a :train:\r\x1b[31m" in shown


def test_a_stream_without_letters_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert call("--help") == 0
    assert b"linear 76.8 \\xb1 1.4 %" in written.getvalue()


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_who_has_read_enough_gets_no_error(word: str, forked: Forks) -> None:
    """Such as `stepclr --help | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([forked.python, "-m", "stepclr", word], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_pretrain_says_what_it_does_and_how_to_load_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert call("pretrain", "sample:unlabeled", "--out", out, *TINY) == 0
    shown = capsys.readouterr()
    for word in (
        "strength 0.5",
        "blur 0",
        "min_area 0.2",
        "temperature 0.2",
        "precision",
        "images/s",
        "left",
        "waiting",
    ):
        assert word in shown.err
    snippet, after = shown.out[shown.out.index("import stepclr") :].split("\n\n", 1)
    assert len(snippet.splitlines()) == 3
    assert "    stepclr label " in after  # the next command
    scope: dict[str, Any] = {"image": Image.new("L", (40, 30))}
    exec(snippet, scope)
    assert scope["h"].shape == (1, 96)


def test_the_same_command_resumes_a_run_in_which_a_setting_is_on(tmp_path: Path) -> None:
    words = ["pretrain", "sample:unlabeled", "--out", tmp_path / "run", *TINY, "--normalize-h"]
    assert call(*words) == 0
    assert call(*words, "--resume") == 0
    assert stepclr.Run(tmp_path / "run").config.normalize_h
    assert call(*words, "--resume", "--no-normalize-h") == 2


def test_evaluate_prints_a_table_and_writes_the_same_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--train sample:train --test sample:test --labels-per-class 2,5 --draws 2 --baselines pixels,random"
    assert call("evaluate", run, *words.split()) == 0
    shown = capsys.readouterr().out
    scores = json.loads((run / "evaluation.json").read_text())
    assert {row["method"] for row in scores["rows"]} == {"simclr", "pixels", "random", "knn"}
    for row in scores["rows"]:
        assert f"{100 * row['mean']:.1f}" in shown
    assert "above in" in shown
    for bad, said in (("--probe liner", "linear"), ("--baselines pixles", "pixels"), ("--labels-per-class 200", "200")):
        assert call("evaluate", run, "--train", "sample:train", "--test", "sample:test", *bad.split()) == 2
        assert said in capsys.readouterr().err


def test_embed_writes_paths_labels_and_what_it_skipped(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = stepclr.open_images("sample:test", limit=6)
    for i in range(6):
        folder = tmp_path / "photos" / ("boots" if i % 2 else "bags")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.read([i])[0].permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    (tmp_path / "photos" / "bags" / "truncated.jpg").write_bytes(b"\xff\xd8\xff")
    out = tmp_path / "h.npz"
    assert call("embed", run, tmp_path / "photos", "--out", out) == 0
    with np.load(out) as stored:
        assert stored["embeddings"].shape == (6, 96)
        assert stored["embeddings"].dtype == np.float32
        assert list(stored["paths"]) == [
            "bags/0.png",
            "bags/2.png",
            "bags/4.png",
            "boots/1.png",
            "boots/3.png",
            "boots/5.png",
        ]
        assert list(stored["labels"]) == [0, 0, 0, 1, 1, 1]
        assert list(stored["classes"]) == ["bags", "boots"]
        direct = stepclr.embed(run, images)
        assert np.abs(stored["embeddings"][[0, 3, 1, 4, 2, 5]] - direct).max() < 1e-5
    assert "truncated.jpg" in (tmp_path / "h.skipped.csv").read_text()
    with pytest.warns(UserWarning, match="1 images of"):
        h = stepclr.embed(run, tmp_path / "photos")
    assert np.isnan(h).any(axis=1).sum() == 1
    assert call("embed", run, "sample:test", "--out", tmp_path / "h.csv") == 2
    assert ".npz" in capsys.readouterr().err


def test_views_draws_one_row_per_image(tmp_path: Path) -> None:
    out = tmp_path / "views.png"
    assert call("views", "sample:train", "--out", out, "--rows", "3", "--pairs", "2", "--size", "48") == 0
    with Image.open(out) as sheet:
        assert sheet.size == (5 * 50 + 2, 3 * 50 + 2)


def test_steps_walks_through_all_eight(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("steps", "sample:train", "--encoder", "test_resnet") == 0
    shown = capsys.readouterr().out
    for step in range(1, 9):
        assert f"step {step}  " in shown
    files = [word for line in shown.splitlines() if "read" in line for word in line.split() if word.startswith("src/")]
    root = Path(__file__).parents[2]
    assert len(files) == 8
    assert all((root / file.rstrip(",")).exists() for file in files)
    generator = torch.random.get_rng_state()
    assert call("steps", "sample:unlabeled", "--only", "5", "--encoder", "test_resnet") == 0
    assert torch.equal(torch.random.get_rng_state(), generator)
    alone = capsys.readouterr().out
    assert "NT-Xent" in alone
    assert "step 4" not in alone


def test_demo_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else is in the folder that was asked for, so the demo takes another."""
    left: list[float] = []
    monkeypatch.setattr(Counter, "left", lambda _, seconds: left.append(seconds))
    out = tmp_path / "demo-2"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("kept")
    words = ["demo", "--out", str(tmp_path / "demo"), "--epochs", "1", "--limit", "256", "--scratch-steps", "3"]
    assert call(*words) == 0
    shown, said = capsys.readouterr()
    assert "monitor: sample:train: 300 images, 10 classes: " in said
    for word in ("step 1", "step 8", "pixels", "random", "scratch", "simclr", "knn", "stepclr.load_encoder"):
        assert word in shown
    rows = json.loads((out / "evaluation.json").read_text())["rows"]
    draws = {(row["method"], row["labels_per_class"]): len(row["values"]) for row in rows}
    methods = ("pixels", "random", "scratch", "simclr", "knn")
    assert draws == {(method, labels): count for method in methods for labels, count in ((10, 5), ("all", 1))}
    assert (out / "encoder.safetensors").exists()
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["mine.txt"]
    assert left[-1] == 0  # the estimate of the evaluation, not one by the count of its fits


def test_ctrl_c_then_resume(forked: Forks, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["pretrain", "sample:unlabeled", "--out", str(out), *TINY, "--epochs", "400"]
    process = subprocess.Popen([forked.python, "-m", "stepclr", *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGINT
    assert "--resume" in said.splitlines()[-1]
    assert "Traceback" not in said
    taken = stepclr.Run(out).metrics[-1]["step"]
    assert call(*words[:-1], str(taken // 2 + 3), "--resume") == 0
    assert stepclr.Run(out).metrics[-1]["step"] == 2 * (taken // 2 + 3)
    assert (out / "encoder.safetensors").exists()
