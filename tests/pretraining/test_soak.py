"""Hours of training, killed every few minutes: nothing grows, neither memory, threads, open files nor disk.

`STEPCLR_SOAK=7200 pytest -m slow tests/pretraining/test_soak.py -s` is two hours and prints the figures; the default
is half an hour.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import stepclr

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the figures are read from /proc"),
]
SECONDS = int(os.environ.get("STEPCLR_SOAK", "1800"))
LIFE = max(180, min(240, SECONDS / 6))  # seconds, until the next kill
EVERY = 2  # seconds between two looks
WARM_UP = 90  # seconds of each life: until then the allocator has not yet met every size of block
NOISE = 1.03  # of the memory


class Look(NamedTuple):
    rss: float  # MiB
    threads: int
    files: int
    disk: float  # KiB: the run's folder without metrics.jsonl, which gets a line an epoch, and the cache


def look(process: int, *folders: Path) -> Look:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    files = len(os.listdir(f"/proc/{process}/fd"))
    return Look(int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), files, disk(*folders))


def disk(*folders: Path) -> float:
    sizes = []
    for path in (path for folder in folders for path in folder.rglob("*") if path.name != "metrics.jsonl"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # an old checkpoint, gone meanwhile
            continue
    return sum(sizes) / 1024


def test_nothing_grows(tmp_path: Path) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    words = ["pretrain", "sample:unlabeled", "--out", str(run), "--resume", "--monitor", "sample:train"]
    words += ["--encoder", "test_resnet", "--stem", "small-stride2", "--epochs", "1000000", "--batch-size", "128"]
    command = [sys.executable, "-m", "stepclr", *words, "--limit", "2048"]
    environment = {**os.environ, "STEPCLR_CACHE": str(cache)}
    lives: list[list[Look]] = []
    between: list[float] = []
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        looks, killed = [], time.monotonic() + LIFE
        while time.monotonic() < killed:
            time.sleep(EVERY)
            assert child.poll() is None, "it ended by itself"
            looks.append(look(child.pid, run, cache))
        child.kill()
        child.wait()
        lives.append(looks[WARM_UP // EVERY :])
        between.append(disk(run, cache))
    steps = stepclr.Run(run).metrics[-1]["step"]
    print(f"\n{SECONDS} s, {len(lives)} lives, {steps:,} steps; of each life's first and last quarter, the median:")
    # Medians: a look at the moment in which a checkpoint is written sees one file more.
    quarters = [[np.median(part, axis=0) for part in np.array_split(np.array(life), 4)] for life in lives]
    for number, (first, *_, last) in enumerate(quarters, 1):
        rows = zip(Look._fields, first, last, strict=True)
        print(f"  {number}: " + ", ".join(f"{name} {a:,.0f} {b:,.0f}" for name, a, b in rows))
    print(f"  on disk after each kill, KiB: {', '.join(f'{size:,.0f}' for size in between)}")
    for before, after in [*((life[0], life[-1]) for life in quarters), (quarters[1][-1], quarters[-1][-1])]:
        assert after[0] < NOISE * before[0]
        assert (after[1:3] <= before[1:3]).all()
    assert max(between) < 1.5 * disk(run, cache)  # two checkpoints, and at most one half written
