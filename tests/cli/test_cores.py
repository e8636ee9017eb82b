"""Shared cores: threads keep to a container's share, sleep while they wait, and a note says who else is in the way."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from stepclr.cli import cores
from stepclr.cli.cores import Reading, note_on_others
from stepclr.threads import cores as all_cores
from stepclr.threads import pool

SPIN = "while True: pass"


@pytest.fixture
def busy() -> Iterator[None]:
    """As many busy processes as there are cores."""
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(all_cores())]
    yield
    for other in others:
        other.kill()
        other.wait()


def openmp_says(**settings: str) -> str:
    """What OpenMP displays of its settings in a command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    words = [sys.executable, "-m", "stepclr", "report", "no-such-run"]
    environment |= {"OMP_DISPLAY_ENV": "true", **settings}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment).stderr


@pytest.mark.skipif(sys.platform != "linux", reason="set on Linux only")
@pytest.mark.parametrize(("given", "waits"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")])
def test_openmp_waits_asleep_unless_the_user_says_otherwise(given: dict[str, str], waits: str) -> None:
    assert f"OMP_WAIT_POLICY = '{waits}'" in openmp_says(**given)


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP displays it as Linux's does")
@pytest.mark.parametrize(
    ("share", "given", "threads"),
    [("1", {}, 1), ("64", {}, all_cores()), ("1", {"OMP_NUM_THREADS": "3"}, 3)],
)
def test_threads_are_as_many_as_the_share_of_the_cores_allows(share: str, given: dict[str, str], threads: int) -> None:
    """joblib takes the least of a container's share, of the cores that can be seen and of LOKY_MAX_CPU_COUNT."""
    assert re.search(rf"OMP_NUM_THREADS = '{threads}'", openmp_says(LOKY_MAX_CPU_COUNT=share, **given))


def test_files_are_read_by_as_many_threads_as_the_share_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert all_cores() == 1
    assert pool()._max_workers == 1


@pytest.mark.usefixtures("busy")
def test_a_command_on_a_busy_machine_says_so_once() -> None:
    code = (
        "import time; from stepclr.cli import cores; cores.EVERY = 0.5\n"
        "with cores.noticing_others():\n"
        f"    import torch; torch.set_num_threads({max(2, all_cores())}); until = time.monotonic() + 3\n"
        "    while time.monotonic() < until: pass"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stderr.count("other processes keep") == 1
    assert "OMP_NUM_THREADS=1" in told.stderr or all_cores() > 2


def test_what_this_process_started_is_not_another() -> None:
    before = cores._own()
    child = "import time\nwhile time.process_time() < 1: pass\nprint('done', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout
        running.stdout.readline()
        assert cores._own() - before > 0.9  # while it runs
        running.communicate(b"\n")
    assert cores._own() - before > 0.9  # once it has ended


@pytest.mark.parametrize(
    ("all_cores", "threads", "idle", "own", "advice"),
    [
        (2, 2, 0.0, 10.0, "keep 1.0 of 2 cores busy: the 2 threads.*OMP_NUM_THREADS=1$"),
        (8, 8, 0.0, 60.0, "keep 2.0 of 8 cores busy: the 8 threads.*OMP_NUM_THREADS=6$"),
        (2, 2, 0.0, 0.0, "keep 2.0 of 2 cores busy.*OMP_NUM_THREADS=1$"),
        (2, 2, 2.0, 16.0, None),  # others took 0.2
        (2, 2, 10.0, 0.0, None),  # others took one core, and this command did nothing
        (2, 1, 0.0, 2.0, None),  # one thread waits for nobody
        (8, 4, 20.0, 40.0, None),  # others took 2, and there is room for both
    ],
)
def test_who_is_in_the_way(all_cores: int, threads: int, idle: float, own: float, advice: str | None) -> None:
    """Of 10 seconds."""
    line = note_on_others(Reading(5.0, 1.0, 2.0), Reading(15.0, 1.0 + idle, 2.0 + own), all_cores, threads)
    if advice is None:
        assert line is None
    else:
        assert re.search(advice, line or "")
