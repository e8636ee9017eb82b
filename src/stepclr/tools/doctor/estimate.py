"""How long a run on these images would take here, and how much memory, measured by two short trials."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stepclr.config import Number, ResolvedConfig
from stepclr.data.decode import reduced_size, source_side
from stepclr.data.images import ImageBatch, ImageSet
from stepclr.data.order import spread
from stepclr.device import default_device
from stepclr.io import user_folder
from stepclr.pretraining.batches import steps_per_epoch
from stepclr.pretraining.gpu_cache import joined, parted
from stepclr.pretraining.resolve import views_of, work_of
from stepclr.threads import Announce
from stepclr.tools.doctor.scan import Scan
from stepclr.tools.doctor.trial import Trial, proc_bytes, trial
from stepclr.views.cuda import COMPILE_FROM
from stepclr.views.keys import view_keys
from stepclr.views.views import Views

FIRST, LARGEST = 16, 256  # images at once: in the first trial, and at most in the second
STEP_SECONDS, TIMED_SECONDS = 4.0, 10.0  # of the second trial: a step at most, and about all timed steps
MAX_STEPS = 30
READ, AT_ONCE = 256, 64  # images that are decoded and then rendered, to time both; images rendered at once
USABLE = 0.9  # share of the free memory


@dataclass(frozen=True)
class Prepared:
    """The images as a run would decode them."""

    images: ImageSet
    bytes_each: float
    cached: bool
    """Whether they stay decoded; otherwise each epoch decodes them again."""
    needed: bool
    """Whether they have to be decoded at all: an array of small images does not."""


@dataclass(frozen=True)
class Throughput:
    """Images decoded per second, and views made per second."""

    decoded_per_second: float
    views_per_second: float


@dataclass(frozen=True)
class Estimate:
    """Time and memory of a run; `largest_at_once` is how many images fit into memory at once, if that is known."""

    epochs: Number
    """The epochs of the settings, or those that fit where the settings have minutes instead."""
    step_seconds: float
    """Of a step, averaged over the run."""
    epoch_seconds: float
    steps_per_epoch: int
    decode_seconds: float
    decoded_each_epoch: bool
    decoded_before: bool
    around_seconds: float
    run_seconds: float
    peak_bytes: int
    images_bytes: int
    available_bytes: int | None
    at_once: int
    largest_at_once: int | None
    trials: list[Trial]


def prepared(scan: Scan, config: ResolvedConfig) -> Prepared:
    """The readable images, and whether a run decodes and caches them."""
    images = scan.images.take(scan.readable)
    side = source_side(config.size)
    sizes = np.array([reduced_size(h, w, side) for h, w in scan.sizes.tolist()])
    bytes_each = float(images.channels) * float(sizes.prod(axis=1).mean())
    array = images.store.as_array()
    if array is not None:
        bytes_each *= array.shape[1] / images.channels  # RGB that is gray has one
    needed = images.decoded(side, budget=0) is not images
    cached = not needed or bytes_each * len(images) <= config.cache_gib * 2**30
    return Prepared(images, bytes_each, cached, needed)


def throughput(prepared: Prepared, config: ResolvedConfig) -> Throughput:
    """Decode some images, and make views of them, on the GPU where training makes them there."""
    some = prepared.images.take(spread(len(prepared.images), READ))
    begun = time.perf_counter()
    batch, indices = some.decoded(source_side(config.size), budget=0).read_readable(range(len(some)))
    decoded = len(indices) / (time.perf_counter() - begun)
    views, keys, device = views_of(config), view_keys(config.seed, 0, indices), default_device()
    size = min(AT_ONCE, len(indices))
    starts = range(0, len(indices) - size + 1, size)  # only batches of one size: each size compiles anew
    parts = [(_put(batch[start : start + size], device), keys[start : start + size]) for start in starts]
    _render(views, parts[:1] * (1 if device.type == "cpu" else COMPILE_FROM))  # compiles
    begun = time.perf_counter()
    _render(views, parts)
    viewed = size * len(parts) / (time.perf_counter() - begun)
    return Throughput(decoded, config.views * viewed)


def _put(images: ImageBatch, device: torch.device) -> ImageBatch:
    flat, shapes = joined(images)
    return parted(flat.to(device), shapes, isinstance(images, torch.Tensor))


def _render(views: Views, parts: Sequence[tuple[ImageBatch, Tensor]]) -> None:
    for images, keys in parts:
        rendered = views(images, keys)
    rendered[-1, -1, -1, -1, -1].item()  # a GPU has rendered them only when a value is asked for


def trials(prepared: Prepared, config: ResolvedConfig, announce: Announce) -> Iterator[Trial]:
    """A small trial, and one as large as a real step or as STEP_SECONDS allow; `announce` is told of each."""
    wanted = min(config.micro_batch or config.batch_size, len(prepared.images))

    def run(at_once: int, steps: int) -> Trial:
        announce(f"training briefly, {at_once} images at once, to measure time and memory")
        if not config.micro_batch:
            return trial(prepared.images, config, at_once, steps, prepared.cached)
        batch = min(2 * at_once, config.batch_size)
        return trial(prepared.images, replace(config, micro_batch=at_once), batch, steps, prepared.cached)

    # Two sizes tell what memory the network takes by itself, and what each further image adds. The first trial also
    # says how large the second can be.
    first = run(max(2, min(FIRST, wanted // 2)), 2)
    yield first
    rate = first.batch / first.step_seconds
    at_once = min(wanted, LARGEST, max(2 * first.at_once, int(rate * STEP_SECONDS)))
    yield run(at_once, min(MAX_STEPS, max(2, round(TIMED_SECONDS * rate / at_once))))


def estimate(prepared: Prepared, config: ResolvedConfig, measured: list[Trial], decoded_per_second: float) -> Estimate:
    """Extrapolate the two trials to the whole run."""
    small, large = measured
    n = len(prepared.images)
    batch = min(config.batch_size, n)
    at_once = min(config.micro_batch or batch, n)
    steps = steps_per_epoch(n, config.batch_size)
    # Time grows with the batch and with the area of the views, which are smaller at first in a progressive run.
    step_seconds = large.step_seconds * batch / large.batch * work_of(config, 1, 1)
    epoch_seconds = step_seconds * steps + large.checkpoint_seconds
    decode_seconds = n / decoded_per_second if prepared.needed and prepared.cached else 0.0
    epochs, around_seconds = config.epochs, large.around_seconds + decode_seconds
    if config.minutes:
        epochs = float(f"{max(0.0, 60 * config.minutes - around_seconds) / epoch_seconds:.4g}")
    # Memory grows with the images that are put through the encoder at once; a CPU run also maps the decoded images.
    slope = max(0.0, (large.peak_bytes - small.peak_bytes) / max(1, large.at_once - small.at_once))
    mapped = prepared.bytes_each if prepared.cached and default_device().type == "cpu" else 0.0
    network = large.peak_bytes - mapped * min(n, large.images)
    free = available()
    largest = None
    if free and slope:
        largest = max(0, int((USABLE * free - network) / slope + large.at_once))
    return Estimate(
        epochs=epochs,
        step_seconds=step_seconds,
        epoch_seconds=epoch_seconds,
        steps_per_epoch=steps,
        decode_seconds=decode_seconds,
        decoded_each_epoch=prepared.needed and not prepared.cached,
        decoded_before=_decoded_before(prepared.images),
        around_seconds=large.around_seconds,
        run_seconds=around_seconds + epochs * epoch_seconds,
        peak_bytes=round(network + slope * (at_once - large.at_once) + mapped * n),
        images_bytes=round(mapped * n),
        available_bytes=free,
        at_once=at_once,
        largest_at_once=largest,
        trials=measured,
    )


def available() -> int | None:
    """Free bytes of memory, of the GPU or else of this machine or container; None where that is not known."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    known = [free for free in (proc_bytes("meminfo", "MemAvailable"), free_in_cgroup()) if free is not None]
    return min(known, default=None)


def free_in_cgroup(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Free bytes of a container (cgroup version 2 or 1): files in memory that can be read again count as free."""
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
    """Whether an earlier run has read all these files: the cache of decoded images knows them."""
    if not any(user_folder("STEPCLR_CACHE", "decoded").glob("*.pixels")):
        return False
    return images.store.known_checksums(images.rows) is not None
