"""A trial: a short run on some of the images, in a separate process, to measure its time and memory.

python -m stepclr.tools.doctor.trial FOLDER    # in that process: images/, settings.json -> one line of JSON
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from stepclr.config import PretrainConfig, ResolvedConfig
from stepclr.data.decode import suffix_of
from stepclr.data.images import ImageSet
from stepclr.data.order import spread
from stepclr.data.shards.packing import encoded
from stepclr.data.sources import open_images
from stepclr.errors import StepclrError
from stepclr.io import from_json
from stepclr.pretraining.api import pretrain
from stepclr.pretraining.loop import Diverged

NO_CACHE = 1e-6  # GiB
MIN_EPOCHS = 3  # that are timed, after a first one that compiles; their median counts


@dataclass(frozen=True)
class Trial:
    """What a short run took."""

    at_once: int
    """Images put through the encoder at a time."""
    batch: int
    images: int
    steps: int
    """Steps timed, without those of the first epoch."""
    step_seconds: float
    checkpoint_seconds: float
    """What else an epoch takes: its checkpoint."""
    around_seconds: float
    """All that was not training: start, compiling, decoding, kNN, saving."""
    peak_bytes: int
    """The peak memory of the process, or on a GPU that of its allocator."""


def trial(images: ImageSet, config: ResolvedConfig, batch: int, steps: int, cached: bool) -> Trial:
    """Train for about `steps` timed steps of `batch` images in a temporary folder, and measure.

    cached: whether a whole run would find its images decoded. Raises StepclrError where the run fails or is killed.
    """
    indices = spread(len(images), batch * max(1, steps // MIN_EPOCHS))
    batch = min(batch, len(indices))
    # What a run does now and then, such as kNN, is left out: in a short run it would weigh too much. So are smaller
    # views: those of full size need the most memory, and `estimate` knows how much work the others are.
    short = replace(
        config,
        minutes=None,
        epochs=1 + max(MIN_EPOCHS, -(-steps // (len(indices) // batch))),
        batch_size=batch,
        progressive=False,
        monitor=None,
        keep_every=None,
        linear_epochs=0,
        damaged_shards=None,
        cache_gib=config.cache_gib if cached else NO_CACHE,
    )
    with tempfile.TemporaryDirectory(prefix="stepclr-doctor-") as name:
        folder = Path(name)
        for number, i in enumerate(indices.tolist()):
            _copy(images, i, folder / "images", number)
        (folder / "settings.json").write_text(json.dumps(asdict(short)))
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "stepclr.tools.doctor.trial", name],
            capture_output=True,
            text=True,
            env={**os.environ, "STEPCLR_CACHE": str(folder / "cache")},
        )
        seconds = time.perf_counter() - begun
    last_line = done.stdout.strip().split("\n")[-1]
    if done.returncode == 2:
        raise StepclrError(last_line)
    if done.returncode:
        raise StepclrError(done.stderr.strip().split("\n")[-1] or f"the trial run ended by signal {-done.returncode}")
    measured = json.loads(last_line)
    around_seconds = seconds - measured.pop("seconds")
    at_once = min(config.micro_batch or batch, batch)
    return Trial(at_once=at_once, batch=batch, images=len(indices), around_seconds=around_seconds, **measured)


def _copy(images: ImageSet, i: int, folder: Path, number: int) -> None:
    """Copy image i into the folder, or write it as a PNG where it has no file."""
    label = int(images.labels[i])
    path = folder / (f"{label:06d}" if label >= 0 else "") / f"{number:06d}"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = images.store.open(int(images.rows[i]))
    if file is not None:
        with file:
            suffix = suffix_of(file, images.store.reading)
            file.seek(0)
            path.with_suffix(suffix).write_bytes(file.read())
    else:
        content = encoded(images.read([i])[0], None)
        path.with_suffix(content.suffix).write_bytes(content.bytes)


def _run(folder: Path) -> None:
    settings = folder / "settings.json"
    config = from_json(PretrainConfig, json.loads(settings.read_text()), settings)
    try:
        run = pretrain(open_images(folder / "images"), folder / "run", config=config, progress=False)
    except (StepclrError, Diverged) as error:
        print(error)
        sys.exit(2)
    last_of = {line["epoch"]: line for line in run.metrics}
    steps_per_epoch = last_of[1]["step"]
    clock = [last_of[epoch]["seconds"] for epoch in sorted(last_of)]
    speeds = [line["images_per_second"] for epoch, line in last_of.items() if epoch > 1]
    step_seconds = config.batch_size / float(np.median(speeds))  # the median leaves out what other jobs slow down
    measured = {
        "steps": run.config.steps - steps_per_epoch,
        "step_seconds": step_seconds,
        "checkpoint_seconds": max(0.0, float(np.median(np.diff(clock))) - steps_per_epoch * step_seconds),
        "seconds": clock[-1],
        "peak_bytes": _peak_bytes(),
    }
    print(json.dumps(measured))


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    peak = proc_bytes("self/status", "VmHWM")
    if peak is not None:  # getrusage would include the parent
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def proc_bytes(file: str, field: str) -> int | None:
    """A number of bytes that Linux states in a file of /proc; None on other systems."""
    path = Path("/proc", file)
    if not path.exists():
        return None
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
