"""What a run on these images would take here: time and memory, from two trials; and the largest micro-batch."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepclr.config import ResolvedConfig
from stepclr.data.decode import reduced_size, source_side
from stepclr.data.images import ImageSet
from stepclr.device import default_device
from stepclr.io import user_folder
from stepclr.pretraining.batches import steps_per_epoch
from stepclr.pretraining.resolve import views_of
from stepclr.tools.doctor.look import Look
from stepclr.tools.doctor.trial import Trial, trial
from stepclr.views.keys import view_keys

FIRST, LARGEST = 32, 256  # images at once, in the first trial and at most in the second
STEP, TIMED = 8.0, 10.0  # seconds: a step of the second trial at most, all its timed steps about
STEPS = 30  # at most
READ = 512  # images, to see how fast they are decoded and how fast views are made of them
USABLE = 0.9  # of the memory that is free


@dataclass
class Decoded:
    """What the images take once decoded for a run."""

    images: ImageSet
    bytes_each: float
    cached: bool
    """Whether they are kept decoded; else each epoch decodes them again."""
    needed: bool
    """Whether they have to be decoded at all: an array of small images has not."""


def decoded(seen: Look, config: ResolvedConfig) -> Decoded:
    """The readable images as a run would have them."""
    images = seen.images.take(seen.readable)
    side = source_side(config.size)
    sizes = np.array([reduced_size(h, w, side) for h, w in seen.sizes.tolist()])
    each = 3.0 * float(sizes.prod(axis=1).mean())
    array = images.store.as_array()
    if array is not None:
        each *= array.shape[1] / 3
    needed = images.decoded(side, budget=0) is not images
    return Decoded(images, each, not needed or each * len(images) <= config.cache_gib * 2**30, needed)


def throughput(images: Decoded, config: ResolvedConfig) -> dict[str, float]:
    """Images decoded, and images that all their views are made of, a second."""
    n = len(images.images)
    some = images.images.take(np.unique(np.linspace(0, n - 1, min(n, READ)).astype(np.int64)))
    begun = time.perf_counter()
    batch, kept = some.decoded(source_side(config.size), budget=0).read_readable(range(len(some)))
    decoding = len(kept) / (time.perf_counter() - begun)
    views, keys = views_of(config), view_keys(config.seed, 0, kept)
    views(batch[:2], keys[:2])  # compiles
    begun = time.perf_counter()
    for start in range(0, len(kept), 64):
        views(batch[start : start + 64], keys[start : start + 64])
    viewing = len(kept) / (time.perf_counter() - begun)
    return {"decoded_per_second": decoding, "views_per_second": config.views * viewing}


def trials(images: Decoded, config: ResolvedConfig) -> Iterator[Trial]:
    """A small trial, and one as large as a real step or as STEP seconds allow."""
    wanted = min(config.micro_batch or config.batch_size, len(images.images))

    def at(size: int, steps: int) -> Trial:
        micro = size if config.micro_batch else None
        batch = min(2 * size, config.batch_size) if micro else size
        return trial(images.images, replace(config, micro_batch=micro), batch, steps, images.cached)

    first = at(max(2, min(FIRST, wanted // 2)), 2)
    yield first
    rate = first.batch / first.step_seconds
    size = min(wanted, LARGEST, max(2 * first.at_once, int(rate * STEP)))
    yield at(size, min(STEPS, max(2, round(TIMED * rate / size))))


def reckon(images: Decoded, config: ResolvedConfig, measured: list[Trial], decoded_per_second: float) -> dict[str, Any]:
    """Seconds of an epoch and of the run, its peak memory, and how many images at once would fit."""
    small, large = measured
    n = len(images.images)
    batch = min(config.batch_size, n)
    at_once = min(config.micro_batch or batch, n)
    step = large.step_seconds * batch / large.batch
    epoch = step * steps_per_epoch(n, config.batch_size) + large.checkpoint_seconds
    decoding = n / decoded_per_second if images.needed and images.cached else 0.0
    slope = max(0.0, (large.peak_bytes - small.peak_bytes) / max(1, large.at_once - small.at_once))
    mapped = images.bytes_each if images.cached and default_device().type == "cpu" else 0.0
    network = large.peak_bytes - mapped * min(n, large.images)
    free = available()
    fits = int((USABLE * free - network) / slope + large.at_once) if free and slope else None
    return {
        "step_seconds": step,
        "epoch_seconds": epoch,
        "steps_per_epoch": steps_per_epoch(n, config.batch_size),
        "decode_seconds": decoding,
        "decoded_each_epoch": images.needed and not images.cached,
        "decoded_before": _decoded_before(images.images),
        "around_seconds": large.around_seconds,
        "run_seconds": large.around_seconds + decoding + config.epochs * epoch,
        "peak_bytes": round(network + slope * (at_once - large.at_once) + mapped * n),
        "images_bytes": round(mapped * n),
        "available_bytes": free,
        "at_once": at_once,
        "largest_at_once": None if fits is None else max(0, fits),
        "trials": [asdict(one) for one in measured],
    }


def available() -> int | None:
    """Bytes of memory that a run could have now: the GPU's, or this machine's or container's; None where unknown."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    found = [free for ask in (_free_here, _free_in_cgroup) if (free := ask()) is not None]
    return min(found) if found else None


def _free_here() -> int | None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _free_in_cgroup(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Of version 2 or 1: the limit without what is used, but for files that can be read again."""
    for limit, used, stat, spare in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            most, now = (root / limit).read_text().strip(), int((root / used).read_text())
            counts = dict(line.split() for line in (root / stat).read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most.isdecimal():
            return max(0, int(most) - now + int(counts.get(spare, 0)))
    return None


def _decoded_before(images: ImageSet) -> bool:
    """Whether the cache knows these files: an earlier run has read them all."""
    if not any(user_folder("STEPCLR_CACHE", "decoded").glob("*.pixels")):
        return False
    return images.store.known_checksums(images.rows) is not None
