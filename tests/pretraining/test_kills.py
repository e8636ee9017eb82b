"""SIGKILL at any moment, and the resumed run ends the same, bit for bit."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import differences, training
from touches import Forks

from stepclr.pretraining.checkpoint import checkpoints

pytest.importorskip("fcntl")
KILLS = 20


def unlike(here: Path, out: Path) -> list[str]:
    for older in checkpoints(out / "run" / "checkpoint")[:-2]:  # killed before it was removed: it does no harm
        older.unlink()
    return differences(here / "whole" / "run", out / "run")


def try_moment(forked: Forks, here: Path, how: str, at: int) -> None:
    """A run that is stopped at its `at`-th touch of the disk, and resumed, ends as the one in `here`."""
    out = here / f"{how}-{at}"
    out.mkdir()
    stopped = forked.run(*training(here, out), under=out, how=how, at=at)
    expected = {"killed": -signal.SIGKILL, "half-way": -signal.SIGXFSZ}[how]
    # How often files are looked at depends on how old they are; and behind the last one nothing is written.
    assert stopped.code == expected or (stopped.code == 0 and (how == "half-way" or stopped.touches < at)), stopped
    end = forked.run(*training(here, out), "--resume", under=out)
    assert end.code == 0, (how, at, end.said)
    assert unlike(here, out) == [], (how, at)
    pixels = [path.read_bytes() for place in (here / "whole", out) for path in (place / "cache").glob("*.pixels")]
    assert len(pixels) == 2
    assert pixels[0] == pixels[1]
    shutil.rmtree(out)


@pytest.fixture(scope="module")
def touches(forked: Forks, here: Path) -> int:
    """How often a run that nobody stops touches the disk: the cache, then its folder."""
    (here / "whole").mkdir()
    whole = forked.run(*training(here, here / "whole"), under=here / "whole")
    assert whole.code == 0, whole.said
    return whole.touches


@pytest.mark.parametrize("how", ["killed", "half-way"])
@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_its_nth_touch_of_the_disk(how: str, every: int, forked: Forks, here: Path, touches: int) -> None:
    """Before each file is opened, before and after each is renamed, and in the middle of the writing of each."""
    for at in range(1, touches + 1, every):
        try_moment(forked, here, how, at)


@pytest.mark.parametrize("kills", [2, pytest.param(KILLS, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    kills: int,
    forked: Forks,
    here: Path,
    tmp_path: Path,
    touches: int,  # noqa: ARG001
) -> None:
    """As a user would, from outside; many times, processes of their own too, from their start to their end."""
    python = sys.executable if kills == KILLS else forked.python
    generator = random.Random(kills)

    def begin(out: Path, *more: str) -> subprocess.Popen[bytes]:
        command = [python, "-m", "stepclr", *training(here, out), *more]
        environment = {**os.environ, "STEPCLR_CACHE": str(out / "cache")}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    began = time.monotonic()
    assert begin(tmp_path / "timed").wait() == 0
    life = time.monotonic() - began
    killed = 0
    for k in range(kills):
        out = tmp_path / str(k)
        out.mkdir()
        child = begin(out)
        time.sleep(life * (k + generator.random()) / kills)
        child.kill()
        killed += child.wait() == -signal.SIGKILL
        assert begin(out, "--resume").wait() == 0, k
        assert unlike(here, out) == [], k
    assert killed >= kills / 2  # the others were faster than the first
