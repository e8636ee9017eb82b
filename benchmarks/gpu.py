"""What stepclr reaches on one GPU, and how far that is from what the card can do: one table, in under 9 minutes.

    python benchmarks/gpu.py --cifar TRAIN --imagenette SOURCE [--limit N] [--seconds 20] [--rows train,views]
        [--out FILE.jsonl]  # each row is added as it comes; the same command again measures only what is missing
    python benchmarks/gpu.py --device cpu --quick ...  # tries the script, in tiny sizes: no number means anything

TRAIN is CIFAR-10 as a class folder, a zip or an `.npz` of JPEGs (see cifar10_record.py), SOURCE Imagenette as a folder
or a zip; images for 224 px are Imagenette's, enlarged. Where there is no network: `pip download` what is missing
elsewhere, here `pip install --no-index --find-links WHEELS --target SITE`, and set PYTHONPATH=SITE:src.

- The roof is measured first, on this card: TFLOP/s of one large bf16 product of matrices, and GB/s of a large copy
  (read and write counted). A network's FLOPs are torch's flop counter's: forward and backward, all views of an image.
- Training is the real `stepclr.pretrain` (its data, views, steps, log and checkpoints), stopped after `--seconds`:
  images over time after a warm-up, in which everything compiles, alongside the batch over the median step.
- Views: `Views` of images in the GPU's memory; the share is that of the bytes that must be read and written.
- The loss: `nt_xent` of M projections of 128, forward and backward; the share is that of 4 M^2 128 FLOPs in bf16, and
  the loss computes in float32. Peaks of memory are all that torch allocated.
- lightly: the loop of its own benchmark (lightly_loop.py), in float32, and in bf16 with channels_last; a DataLoader
  with up to 8 workers, same GPU, same images.

A row that fails says why, and the others continue; a row for which no time was left says so. Without a GPU all rows do.
"""

import argparse
import gc
import itertools
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from cifar10_record import open_images
from PIL import Image
from rows import Stored
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

import stepclr
from stepclr.config import PretrainConfig
from stepclr.pretraining import loop
from stepclr.pretraining.gpu_cache import on_device

D = 128
LARGE = 256  # px: side to which images are enlarged for views of 224


class OutOfTime(Exception):
    """The script's time is over."""


class Enough(Exception):
    """A row has been measured for as long as was asked."""


class NotMeasured(Exception):
    """A row cannot be measured here, and why."""


@dataclass
class Bench:
    """The device, its measured roof, how long to measure, and the images."""

    device: torch.device
    seconds: float
    quick: bool
    cifar: Path | None
    imagenette: Path | None
    limit: int | None
    flops: float = 0.0  # a second, measured
    bandwidth: float = 0.0  # bytes a second, measured


@dataclass
class Row:
    """What a row reports: the number, its share of the roof, and a remark."""

    result: str
    share: str = ""
    remark: str = ""


class Marks:
    """Moments on the device's own clock: CUDA events, which nobody waits for until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.events: list[torch.cuda.Event] = []
        self.times: list[float] = []

    def __len__(self) -> int:
        return len(self.events) + len(self.times)

    def mark(self) -> None:
        if self.device.type == "cuda":
            self.events.append(torch.cuda.Event(enable_timing=True))
            self.events[-1].record()
        else:
            self.times.append(time.perf_counter())

    def gaps(self) -> list[float]:
        """Seconds between each mark and the next."""
        wait(self.device)
        if self.device.type == "cuda":
            return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(self.events)]
        return [b - a for a, b in itertools.pairwise(self.times)]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(call: Callable[[], object], device: torch.device, seconds: float, warm_up: int = 5) -> float:
    """Of one call: at least 3 after the warm-up, else as many as fit into `seconds`."""
    for _ in range(warm_up):
        call()
    wait(device)
    marks, until = Marks(device), time.perf_counter() + seconds
    marks.mark()
    for count in itertools.count(1):
        call()
        marks.mark()
        if count % 3 == 0:
            wait(device)  # or thousands of calls would be on their way when time is over
            if time.perf_counter() > until:
                break
    return statistics.median(marks.gaps())


# The rows.


def roof(bench: Bench) -> Row:
    side, size = (256, 2**26) if bench.quick else (8192, 2**31)
    a, b = (torch.randn(side, side, device=bench.device).bfloat16() for _ in range(2))
    bench.flops = 2 * side**3 / median_seconds(lambda: a @ b, bench.device, bench.seconds / 8)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    bench.bandwidth = 2 * size / median_seconds(lambda: target.copy_(source), bench.device, bench.seconds / 8)
    return Row(f"{bench.flops / 1e12:.0f} TFLOP/s bf16", "1", f"copies {bench.bandwidth / 1e9:,.0f} GB/s")


def train(bench: Bench, images: stepclr.ImageSet, config: PretrainConfig) -> Row:
    """The real `pretrain`, stopped after this many seconds."""
    batch, warm_up = min(config.batch_size, len(images)), 1 if bench.quick else 10
    marks, step, begun = Marks(bench.device), loop.train_step, 0.0

    def timed(*args: Any, **options: Any) -> Any:
        nonlocal begun
        if len(marks) == warm_up:
            wait(bench.device)
            begun = time.perf_counter()
        elif len(marks) > warm_up + 2 and time.perf_counter() - begun > bench.seconds:
            raise Enough
        marks.mark()
        return step(*args, **options)

    _forget_peak(bench.device)
    loop.train_step = timed
    try:
        with tempfile.TemporaryDirectory() as out:
            stepclr.pretrain(images, Path(out) / "run", config=config, progress=False)
    except Enough:
        wait(bench.device)
        spent = time.perf_counter() - begun
    finally:
        loop.train_step = step
    gaps = marks.gaps()[warm_up:]
    speed = batch * (len(gaps) + 1) / spent
    return Row(
        f"{speed:,.0f} images/s",
        f"{speed * flops(config) / bench.flops:.0%}",
        f"median step {batch / statistics.median(gaps):,.0f} images/s; batch {batch}; {_peak(bench.device)}; "
        f"{flops(config) / 1e9:.1f} GFLOP an image",
    )


def flops(config: PretrainConfig) -> int:
    """Of an image: all its views through encoder and head, forward and backward."""
    assert config.size is not None
    encoder = stepclr.build_encoder(str(config.encoder), config.stem, size=config.size)
    head = stepclr.ProjectionHead(encoder.num_features, encoder.num_features, D)
    with FlopCounterMode(display=False) as counter:
        head(encoder(torch.rand(2, 3, config.size, config.size))).sum().backward()
    return int(counter.get_total_flops()) * config.views // 2


def views(bench: Bench, images: stepclr.ImageSet, size: int, n: int) -> Row:
    there = on_device(images.take(range(min(n, len(images)))), bench.device)
    pixels = there.read(range(len(there)))
    if not isinstance(pixels, Tensor):
        raise NotMeasured("the images differ in size")
    pixels = pixels.to(bench.device)
    policy, epoch = stepclr.Views("simclr", size), itertools.count()

    def keys() -> Tensor:
        return stepclr.view_keys(0, next(epoch), range(len(pixels)))

    rendering = median_seconds(lambda: policy(pixels, keys()), bench.device, bench.seconds / 4)
    drawing = median_seconds(lambda: policy.sample_params(pixels, keys()), torch.device("cpu"), bench.seconds / 20)
    made = len(pixels) * policy.views
    moved = pixels.numel() + made * 3 * size * size * 4
    return Row(
        f"{made / rendering:,.0f} views/s",
        f"{moved / rendering / bench.bandwidth:.0%} of the bandwidth",
        f"{len(pixels)} images of {pixels.shape[-1]} px, {policy.describe()}; "
        f"drawing alone, on the host: {made / drawing:,.0f} views/s",
    )


def loss(bench: Bench, m: int) -> Row:
    z = [torch.randn(m // 2, D, device=bench.device, requires_grad=True) for _ in range(2)]

    def both_ways() -> None:
        stepclr.nt_xent(z[0], z[1], 0.5).backward()

    both_ways()  # the gradients exist from now on
    _forget_peak(bench.device)
    seconds = median_seconds(both_ways, bench.device, bench.seconds / 8, warm_up=1)
    return Row(f"{seconds * 1000:,.1f} ms", f"{4 * m * m * D / seconds / bench.flops:.0%}", _peak(bench.device))


class Arrays(Dataset[tuple[Any, int, str]]):
    """Images for lightly, as its data sets hand them out: (transformed, label, name)."""

    def __init__(self, images: Tensor, transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.transform = images.permute(0, 2, 3, 1).numpy(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int, str]:
        return self.transform(Image.fromarray(self.images[index])), 0, str(index)


def lightly(bench: Bench, images: stepclr.ImageSet, encoder: str, size: int, batch: int, bf16: bool) -> Row:
    """Its loop at its best."""
    try:
        from lightly_loop import LightlyLoop
    except SystemExit as missing:
        raise NotMeasured(str(missing)) from None

    pixels = images.read(range(len(images)))
    assert isinstance(pixels, Tensor)
    workers = 0 if bench.quick else min(8, os.cpu_count() or 1)
    arrays = partial(Arrays, pixels)
    loop = LightlyLoop(arrays, size, "small", 10**6, batch, bf16, encoder, workers, bench.device)
    going, warm_up = loop.steps(endless=True), 1 if bench.quick else 5
    for _ in range(warm_up):
        next(going)
    wait(bench.device)
    begun, taken = time.perf_counter(), 0
    while time.perf_counter() - begun < bench.seconds:
        next(going)
        taken += 1
    wait(bench.device)
    speed = batch * taken / (time.perf_counter() - begun)
    precision = "bf16, channels_last" if bf16 else "float32"
    remark = f"lightly {version('lightly')}, batch {batch}, {workers} workers, {precision}"
    return Row(f"{speed:,.0f} images/s", "", remark)


# Images.


def cifar(bench: Bench) -> stepclr.ImageSet:
    if not bench.cifar:
        raise NotMeasured("it needs --cifar")
    return _opened(bench.cifar, bench.limit, 64)


def imagenette(bench: Bench) -> stepclr.ImageSet:
    if not bench.imagenette:
        raise NotMeasured("it needs --imagenette")
    return _opened(bench.imagenette, bench.limit, 192)


@cache
def _opened(path: Path, limit: int | None, short_side: int) -> stepclr.ImageSet:
    return open_images(path, limit).decoded(short_side)


def enlarged(bench: Bench) -> stepclr.ImageSet:
    return _enlarged(imagenette(bench))


@cache
def _enlarged(images: stepclr.ImageSet) -> stepclr.ImageSet:
    """The images at LARGE px, in memory."""
    parts = []
    for start in range(0, len(images), 64):
        pixels = images.read(range(start, min(start + 64, len(images))))
        if not isinstance(pixels, Tensor):
            raise NotMeasured("the images differ in size")
        grown = F.interpolate(pixels.float(), (LARGE, LARGE), mode="bicubic", antialias=True)
        parts.append(grown.round().clamp(0, 255).byte())
    return stepclr.open_images(torch.cat(parts))


# The table.


@dataclass
class Plan:
    """A row to be measured; `kind` is what --rows chooses by."""

    kind: str
    label: str
    measure: Callable[[Bench], Row]


def config_of(encoder: str, stem: Any, size: int, batch: int) -> PretrainConfig:
    return PretrainConfig(encoder, stem=stem, size=size, batch_size=batch, epochs=1000)


def plans(quick: bool) -> list[Plan]:
    """What is measured, the most wanted first. `quick`: the same rows in sizes that a CPU manages."""
    small, large = ("test_resnet", "test_resnet") if quick else ("resnet18", "resnet50")
    at_32 = config_of(small, "small", 32, 8 if quick else 1024)
    at_96 = config_of(small, "imagenet", 96, 4 if quick else 512)
    at_224 = config_of(large, "imagenet", 224, 2 if quick else 256)
    counts = {32: 4, 96: 2, 224: 1} if quick else {32: 1024, 96: 512, 224: 256}
    sides = (64, 128, 256) if quick else (8 * 1024, 64 * 1024, 256 * 1024)
    batch = 4 if quick else 512
    return [
        Plan("roof", "the card's roof", roof),
        Plan("train", f"{small}, 32 px (goal: 25,000 on an H200)", lambda b: train(b, cifar(b), at_32)),
        Plan("train", f"{large}, 224 px (goal: 2,000)", lambda b: train(b, enlarged(b), at_224)),
        Plan("views", "views, 32 px", lambda b: views(b, cifar(b), 32, counts[32])),
        Plan("views", "views, 96 px", lambda b: views(b, imagenette(b), 96, counts[96])),
        Plan("views", "views, 224 px", lambda b: views(b, enlarged(b), 224, counts[224])),
        *(Plan("loss", f"loss, M = {m:,}, forward and backward", lambda b, m=m: loss(b, m)) for m in sides),  # type: ignore[misc]
        Plan("train", f"{small}, 96 px", lambda b: train(b, imagenette(b), at_96)),
        Plan("lightly", f"lightly, {small}, 32 px", lambda b: lightly(b, cifar(b), small, 32, batch, False)),
        Plan("lightly", f"lightly in bf16, {small}, 32 px", lambda b: lightly(b, cifar(b), small, 32, batch, True)),
    ]


def measured(plan: Plan, bench: Bench, deadline: float) -> Row:
    """The row, or why there is none."""
    if bench.device.type == "cuda" and not torch.cuda.is_available():
        return Row(f"not measured: torch {torch.__version__} finds no CUDA device")
    try:
        with alarm(deadline - time.monotonic()):
            return plan.measure(bench)
    except NotMeasured as reason:
        return Row(f"not measured: {reason}")
    except Exception as error:  # a row that fails does not stop the others
        if isinstance(error, OutOfTime) or time.monotonic() > deadline:
            return Row("not measured: out of time")
        text = str(error).strip().split("\n")[0]
        return Row(f"not measured: {type(error).__name__}: {text[:200]}")
    finally:
        gc.collect()
        if bench.device.type == "cuda" and torch.cuda.is_available():
            torch.compiler.reset()
            torch.cuda.empty_cache()


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the middle of whatever is running when the time is over."""
    if seconds <= 0:
        raise OutOfTime

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> str:
    return f"peak {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB" if device.type == "cuda" else "no peak"


def main(arguments: Sequence[str] | None = None) -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--imagenette", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seconds", type=float, default=20, help="of measuring, a row of training; others take less")
    parser.add_argument("--minutes", type=float, default=9, help="after which no row starts or continues")
    parser.add_argument("--rows", default="train,views,loss,lightly", help="kinds of rows, with commas")
    parser.add_argument("--out", type=Path, help="file to which each row is added; rows that it has are not repeated")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script itself")
    given = parser.parse_args(arguments)
    if given.device == "cpu":
        if not given.quick:
            parser.error("--device cpu is for trying the script: it goes with --quick")
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # `pretrain` takes a GPU where it finds one
    bench = Bench(torch.device(given.device), given.seconds, given.quick, given.cifar, given.imagenette, given.limit)
    stored = Stored(given.out, given.device, given.quick)
    print(f"{stored.card}; torch {torch.__version__}, CUDA {torch.version.cuda}, stepclr {stepclr.__version__}\n")
    print("| what | measured | share of the roof | |\n|---|---|---|---|", flush=True)
    for plan in plans(given.quick):
        if plan.kind in ("roof", *given.rows.split(",")):
            known = stored.done.get(plan.label)
            if known and plan.kind != "roof":  # the others need the roof's numbers
                row = Row(**known)
            else:
                row = measured(plan, bench, begun + 60 * given.minutes)
                stored.add(plan.label, asdict(row), not row.result.startswith("not measured"))
            print(f"| {plan.label} | {row.result} | {row.share} | {row.remark} |", flush=True)


if __name__ == "__main__":
    main()
