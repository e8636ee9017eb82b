"""A full disk: one line that says what could not be written, no partial file left, and with space it resumes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from small import WORDS, differences, training
from touches import End, Forks

from stepclr.cli import main

pytest.importorskip("fcntl")
LABELED = ["--train", "sample:train", "--test", "sample:test"]


@pytest.fixture(scope="module")
def whole(forked: Forks, here: Path) -> End:
    (here / "whole").mkdir()
    end = forked.run(*training(here, here / "whole"), under=here / "whole")
    assert end.code == 0, end.said
    return end


def check_said(end: End, out: Path) -> None:
    assert "Traceback" not in end.said, end.said
    last = end.said.splitlines()[-1]
    assert end.code == (2 if "STEPCLR_CACHE may name another folder" in last else 1), end
    assert last.startswith(("stepclr: cannot write in ", f"stepclr: {out}")), last
    assert "File too large" in last or "No space left on device" in last, last
    assert end.code == 2 or "; free some disk space and retry (use --resume to continue a run)" in last
    assert list(out.rglob(".*.tmp")) == []


@pytest.mark.parametrize("every", [14, pytest.param(1, marks=pytest.mark.slow)])
def test_full_from_the_nth_touch_of_the_disk_on(every: int, forked: Forks, here: Path, whole: End) -> None:
    """Each file that a run writes in turn: the cache and its index, config, metrics, checkpoints, the encoder."""
    failed = set()
    for at in range(1, whole.touches + 1, every):
        out = here / str(at)
        out.mkdir()
        end = forked.run(*training(here, out), under=out, how="full", at=at)
        if end.code:  # after the last thing that is written there is nothing that can fail
            check_said(end, out)
            failed.add(end.said.splitlines()[-1].split(": ")[1].removeprefix(str(out)))
        end = forked.run(*training(here, out), "--resume", under=out)
        assert end.code == 0, (at, end.said)
        assert differences(here / "whole" / "run", out / "run") == [], at
        shutil.rmtree(out)
    wanted = {"/run/config.json", "/run/metrics.jsonl", "/run/checkpoint/step-00000009.safetensors"}
    assert every > 1 or wanted | {"/run/encoder.safetensors"} <= failed
    assert any("cannot write in" in place for place in failed)


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "RUN", *LABELED, "--labels-per-class", "10", "--draws", "1", "--probe", "knn", "--baselines", ""],
        ["embed", "RUN", "sample:train", "--limit", "32", "--out", "RUN/h.npz"],
        ["views", "sample:train", "--rows", "2", "--out", "RUN/views.png"],
        ["finetune", "RUN", "--train", "sample:train", "--labels-per-class", "1", "--epochs", "1"],
    ],
    ids=lambda command: command[0],
)
def test_every_other_command_says_so_too(
    command: list[str],
    forked: Forks,
    here: Path,
    whole: End,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(here / "whole" / "run", run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    spoken = [word.replace("RUN", str(run)) for word in command]
    end = forked.run(*spoken, under=tmp_path, how="full", at=1)
    check_said(end, tmp_path)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before
    assert forked.run(*spoken, under=tmp_path).code == 0


@pytest.mark.parametrize("kib", [64, 3_000, 8_000, pytest.param(5_900, marks=pytest.mark.slow)])
def test_a_small_disk(kib: int, forked: Forks, here: Path, whole: End, tmp_path: Path) -> None:  # noqa: ARG001
    """A file system that is full: for the cache, for the first checkpoint, for the third, for the second."""
    small = tmp_path / "disk"
    small.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(small)]
    if os.geteuid() or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("only root may make a file system")
    try:
        end = forked.run(*training(here, small), under=small)
        check_said(end, small)
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        end = forked.run(*training(here, small), "--resume", under=small)
        assert end.code == 0, end.said
        assert differences(here / "whole" / "run", small / "run") == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_folder_that_may_not_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file stands where a folder should be, which keeps root out too."""
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "sample:unlabeled", "--out", str(tmp_path / "file" / "run"), *WORDS])
    assert stop.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"stepclr: {tmp_path / 'file' / 'run'}: Not a directory"
