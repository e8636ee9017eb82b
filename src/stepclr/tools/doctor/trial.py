"""A trial: a real, short run on some of the images, in a process of its own, to see what time and memory it takes.

python -m stepclr.tools.doctor.trial FOLDER    # in that process: images/, config.json -> one line of JSON
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
from PIL import Image

from stepclr.config import PretrainConfig
from stepclr.data.decode import suffix_of
from stepclr.data.images import ImageSet
from stepclr.data.sources import open_images
from stepclr.errors import StepclrError
from stepclr.pretraining.api import pretrain
from stepclr.pretraining.loop import Diverged
from stepclr.tools.spread import spread

NO_CACHE = 1e-6  # GiB
TIMED = 3  # epochs at least, after a first that compiles; the median counts


@dataclass
class Trial:
    """What a short run took."""

    at_once: int
    """Images put through the encoder at a time."""
    batch: int
    images: int
    steps: int
    """Steps timed, those of the first epoch left out."""
    step_seconds: float
    checkpoint_seconds: float
    """What else an epoch takes: its checkpoint."""
    around_seconds: float
    """All that was not training: start, compiling, decoding, kNN, saving."""
    peak_bytes: int
    """Of the process, or on a GPU of its allocator."""


def trial(images: ImageSet, config: PretrainConfig, batch: int, steps: int, cached: bool) -> Trial:
    """Train on `batch` of the images a step for about `steps` timed steps, in a temporary folder, and look.

    cached: whether a whole run would find its images decoded. Raises StepclrError where the run refuses or is killed.
    """
    chosen = spread(len(images), batch * max(1, steps // TIMED))
    batch = min(batch, len(chosen))
    epochs = 1 + max(TIMED, -(-steps // (len(chosen) // batch)))
    changes = {"epochs": epochs, "batch_size": batch, "monitor": None, "keep_every": None, "linear_epochs": 0}
    short = replace(config, **changes, cache_gib=config.cache_gib if cached else NO_CACHE)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="stepclr-doctor-") as name:
        folder = Path(name)
        for number, i in enumerate(chosen.tolist()):
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
    said = done.stdout.strip().split("\n")[-1]
    if done.returncode:
        reason = said if done.returncode == 2 else (done.stderr.strip().split("\n")[-1] or f"signal {-done.returncode}")
        raise StepclrError(reason)
    found = json.loads(said)
    return Trial(
        at_once=min(config.micro_batch or batch, batch),
        batch=batch,
        images=len(chosen),
        steps=found["steps"],
        step_seconds=found["step_seconds"],
        checkpoint_seconds=found["checkpoint_seconds"],
        around_seconds=seconds - found["seconds"],
        peak_bytes=found["peak_bytes"],
    )


def _copy(images: ImageSet, i: int, folder: Path, number: int) -> None:
    """Put image i into the folder as it is, or as a PNG where it has no file."""
    label = int(images.labels[i])
    path = folder / (f"{label:06d}" if label >= 0 else "") / f"{number:06d}"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = images.store.open(int(images.rows[i]))
    if file is not None:
        with file:
            suffix = suffix_of(file)
            file.seek(0)
            path.with_suffix(suffix).write_bytes(file.read())
    else:
        Image.fromarray(images.read([i])[0].permute(1, 2, 0).numpy()).save(path.with_suffix(".png"), compress_level=1)


def _run(folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    if isinstance(settings["strength"], list):
        settings["strength"] = tuple(settings["strength"])  # JSON has lists only
    config = PretrainConfig(**settings)
    try:
        run = pretrain(open_images(folder / "images"), folder / "run", config=config, progress=False)
    except (StepclrError, Diverged) as error:
        print(error)
        sys.exit(2)
    ends = {line["epoch"]: line for line in run.metrics}
    clock = [ends[epoch]["seconds"] for epoch in sorted(ends)]
    each = ends[1]["step"]
    speeds = [line["images_per_second"] for line in ends.values() if line["epoch"] > 1]
    step = config.batch_size / float(np.median(speeds))  # another job that comes and goes does not count
    took = {
        "steps": ends[config.epochs]["step"] - each,
        "step_seconds": step,
        "checkpoint_seconds": max(0.0, float(np.median(np.diff(clock))) - each * step),
        "seconds": clock[-1],
        "peak_bytes": _peak_bytes(),
    }
    print(json.dumps(took))


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's too
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
