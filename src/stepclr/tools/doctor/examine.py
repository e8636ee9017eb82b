"""The whole examination: a data set, and what a run on it would be."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from stepclr.config import PretrainConfig
from stepclr.data.images import ImageSet
from stepclr.device import default_device
from stepclr.pretraining.resolve import resolve, view_size
from stepclr.threads import Progress, cores
from stepclr.tools.doctor.advice import advice
from stepclr.tools.doctor.copies import of_duplicates, of_leakage
from stepclr.tools.doctor.estimate import available, decoded, reckon, throughput, trials
from stepclr.tools.doctor.findings import class_counts, find, of_each, of_labels, ordered
from stepclr.tools.doctor.look import Look, look


def examine(
    images: ImageSet,
    config: PretrainConfig,
    test: ImageSet | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All that the doctor finds about `images`, and about `test` beside them, as one JSON object.

    `config`: the settings of the run to reckon with. Raises StepclrError for settings that cannot be used, and where a
    trial run fails; `estimate` is null where there are too few images for one.
    """
    spent: dict[str, float] = {}
    with _timed(spent, "looking"):
        seen = look(images, progress)
        tested = look(test, progress) if test is not None else None
    config = resolve(replace(config, size=config.size or view_size(seen.images)), images)
    with _timed(spent, "duplicates"):
        findings = [*of_each(seen, config.size), *of_labels(images), *of_duplicates(seen)]
        if tested:
            broken = [f for f in of_each(tested, config.size) if f["gravity"] == "error"]
            findings += [f | {"name": f"test-{f['name']}", "says": f"test images {f['says']}"} for f in broken]
            findings += of_leakage(seen, tested)
    n = len(seen.readable)
    rates, reckoned = None, None
    if n < 2:
        do = "give it more: a contrast needs at least 2"
        findings.append(find("too-few", "error", 1, f"set, in which only {n} images can be read", do))
    else:
        pixels = decoded(seen, config)
        with _timed(spent, "throughput"):
            rates = throughput(pixels, config)
        with _timed(spent, "trials"):
            reckoned = reckon(pixels, config, list(trials(pixels, config)), rates["decoded_per_second"])
    findings = ordered(findings)
    labelled = int((images.labels >= 0).sum())
    largest = reckoned["largest_at_once"] if reckoned else None
    gpu = default_device().type == "cuda"
    suggested = advice(images.source, images.chosen or [], config.size, n, labelled, gpu, largest, findings)
    return {
        "source": images.source,
        "test": test.source if test is not None else None,
        "images": _images(seen),
        "classes": class_counts(images),
        "unlabelled": len(images) - labelled,
        "findings": findings,
        "throughput": rates,
        "estimate": reckoned,
        "advice": suggested if n > 1 else None,
        "settings": asdict(config),
        "machine": {
            "device": str(default_device()),
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "available_bytes": available(),
        },
        "seconds": spent,
    }


def _images(seen: Look) -> dict[str, Any]:
    good = [seen.each[i] for i in seen.readable]
    sizes = seen.sizes
    areas = sizes.prod(axis=1) if len(sizes) else np.zeros(0)
    order = areas.argsort(kind="stable")
    of = {"smallest": 0, "median": len(sizes) // 2, "largest": len(sizes) - 1}
    return {
        "count": len(seen.images),
        "readable": len(good),
        "modes": dict(Counter(one.mode for one in good).most_common()),
        "turned": sum(one.turned for one in good),
        "sizes": {name: sizes[order[at]].tolist() for name, at in of.items()} if good else {},
        "bytes": sum(one.length or 0 for one in seen.each),
    }


@contextmanager
def _timed(spent: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    spent[name] = time.perf_counter() - begun
