"""Shards: rates, sizes, and the memory of a stream of 10 million images.

    python benchmarks/stream.py FOLDER [--images 10000000] [--decode 16] [--batch 256] [--seconds 10]

FOLDER contains real images of about 96 px. First, each in one process on one core: `pack` with unchanged bytes, and
reading the shards in the order of an epoch, decoded to twice the view size S as `pretrain` does. This is done for
FOLDER (S = 96), and for photos in the mix of sizes of `loader.py` (S = 224), unchanged and with --short-side 448.

Then the stream: an index of IMAGES rows over links to FOLDER's shards, repeated as often as needed. Opening it, the
order of the epoch and the bytes of every image, which are read and verified, are real; one batch in DECODE is also
decoded. Resident memory is that of a separate process, measured every second: in the first minute and in the last.
"""

import argparse
import itertools
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from loader import make_photos
from memory import in_own_process

import stepclr
from stepclr.data.decode import source_side
from stepclr.data.images import ImageSet
from stepclr.data.shards.index import INDEX, MEMBERS, NAMES
from stepclr.data.shards.packing import pack
from stepclr.io import checksum

MINUTE = 60  # s


def one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def packed(source: Path, out: Path, short_side: int | None) -> dict[str, float]:
    """Images per second of `pack` on one core, and bytes per image of its source, shards and index."""
    one_core()
    images = stepclr.open_images(source)
    begun = time.perf_counter()
    n = pack(images, out, per_shard=2000, short_side=short_side).images
    took = time.perf_counter() - begun
    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    return {
        "rate": n / took,
        "source": sum((source / name).stat().st_size for name in images.names) / n,
        "shards": sum(size for name, size in sizes.items() if name.endswith(".tar")) / n,
        "index": sum(sizes[name] for name in (INDEX, MEMBERS, NAMES)) / n,
    }


def read_rates(folder: Path, side: int, batch: int, seconds: float) -> tuple[float, float]:
    """Images per second on one core, in the order of an epoch: decoded, and their bytes alone."""
    one_core()
    images = stepclr.open_images(folder).decoded(source_side(side), budget=0)
    rates = []
    for read in (images.read, lambda indices: read_bytes(images, indices)):
        read(next(order(images, batch)))
        pixels, begun = 0, time.perf_counter()
        for indices in order(images, batch):
            read(indices)
            pixels += len(indices)
            if time.perf_counter() - begun > seconds:
                break
        rates.append(pixels / (time.perf_counter() - begun))
    return rates[0], rates[1]


def order(images: ImageSet, batch: int) -> Iterator[Any]:
    for epoch in itertools.count():
        yield from images.stream(0, epoch, batch) or ()


def read_bytes(images: ImageSet, indices: Any) -> None:
    for row in images.rows[indices].tolist():
        images.store.open(row)  # verifies them


def simulate(shards: Path, out: Path, images: int) -> None:
    """An index of this many images over links to the same shards, repeated."""
    stored = json.loads((shards / INDEX).read_text())
    rows, names = np.load(shards / MEMBERS), (shards / NAMES).read_bytes()
    times = -(-images // len(rows))
    out.mkdir()
    header = {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": (times * len(rows),)}
    with (out / MEMBERS).open("wb") as file, (out / NAMES).open("wb") as names_file:
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(times):
            file.write(rows.tobytes())
            rows["name"] += len(names)
            names_file.write(names)
    again = []
    for turn, shard in itertools.product(range(times), stored["shards"]):
        again.append(shard | {"name": f"{turn:05d}-{shard['name']}"})
        os.link(shards / shard["name"], out / again[-1]["name"])
    files = {name: checksum(out / name) for name in (MEMBERS, NAMES)}
    (out / INDEX).write_text(json.dumps(stored | {"shards": again, "files": files}))


def resident() -> tuple[float, float]:
    """MiB of this process in memory now: in all, and without mapped files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1024, int(status["RssAnon"].split()[0]) / 1024


def stream(folder: Path, batch: int, decode: int) -> dict[str, Any]:
    """One epoch over the simulated set."""
    opening = []
    for _ in range(2):
        begun = time.perf_counter()
        images = stepclr.open_images(folder)
        opening.append(time.perf_counter() - begun)
    seen: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(min(1, len(seen))):
            seen.append(resident())

    watcher = threading.Thread(target=watch)
    begun, read = time.perf_counter(), 0
    batches = images.decoded(source_side(96)).stream(0, 0, batch) or iter(())
    first = next(batches)
    to_first = time.perf_counter() - begun
    watcher.start()
    for k, indices in enumerate(itertools.chain([first], batches)):
        if k % decode == 0:
            images.read(indices)
        else:
            read_bytes(images, indices)
        read += len(indices)
    over.set()
    watcher.join()
    return {
        "opening": opening,
        "to_first": to_first,
        "read": read,
        "of": len(images),
        "took": time.perf_counter() - begun,
        "first": [max(part) for part in zip(*seen[:MINUTE], strict=True)],
        "last": [max(part) for part in zip(*seen[-MINUTE:], strict=True)],
        "most": max(seen)[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10)
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, stepclr {stepclr.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        os.environ["STEPCLR_CACHE"] = str(home / "cache")
        make_photos(stepclr.open_images(given.folder), home / "photos", 1000)
        for name, source, side, short_side in (
            ("96 px", given.folder, 96, None),
            ("photos", home / "photos", 224, None),
            ("photos, --short-side 448", home / "photos", 224, 448),
        ):
            out = home / f"shards of {name}"
            made = in_own_process(packed, source, out, short_side)
            decoded, raw = in_own_process(read_rates, out, side, given.batch, given.seconds)
            print(
                f"{name}: packed at {made['rate']:,.0f} images/s; bytes per image: {made['source']:,.0f} in the "
                f"source, {made['shards']:,.0f} in shards, {made['index']:,.0f} in the index; read and decoded at S = "
                f"{side}: {decoded:,.0f} images/s, bytes alone {raw:,.0f}"
            )
        simulate(home / "shards of 96 px", home / "simulated", given.images)
        result = in_own_process(stream, home / "simulated", given.batch, given.decode)
        print(
            f"stream: {result['read']:,} of {result['of']:,} images, one batch of {given.batch} in {given.decode} "
            f"decoded, in {result['took']:,.0f} s ({result['read'] / result['took']:,.0f} images/s)\n"
            f"opened in {result['opening'][0]:.1f} s with every shard verified, then in {result['opening'][1]:.1f} s; "
            f"first batch of the order after {result['to_first']:.2f} s\n"
            f"resident: {result['first'][0]:,.0f} MiB at most in the first minute (own {result['first'][1]:,.0f}), "
            f"{result['last'][0]:,.0f} in the last (own {result['last'][1]:,.0f}), {result['most']:,.0f} in all"
        )


if __name__ == "__main__":
    main()
