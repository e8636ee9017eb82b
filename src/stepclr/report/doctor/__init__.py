"""What to know before training: what is wrong with the pictures, how fast and how large a run would be, a recipe.

`look.py` looks at each picture once; `findings.py` and `copies.py` say what is wrong; `trial.py` trains a little in a
process of its own, from which `estimate.py` reckons a run; `advice.py` suggests one; `screen.py` puts it in words.
Nothing is changed: no file of the source, no run, no cache.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from stepclr.config import PretrainConfig
from stepclr.data import ImageSet
from stepclr.data.stores import cores
from stepclr.pretrain.settle import device_for_training, settle, view_size
from stepclr.report.doctor.advice import advice
from stepclr.report.doctor.copies import of_duplicates, of_leakage
from stepclr.report.doctor.estimate import available, decoded, reckon, throughput, trials
from stepclr.report.doctor.findings import class_counts, find, of_each, of_labels, ordered
from stepclr.report.doctor.look import Look, look
from stepclr.report.doctor.screen import screen

__all__ = ["examine", "screen"]

Progress = Callable[[int, int], None]


def examine(
    images: ImageSet,
    config: PretrainConfig,
    test: ImageSet | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All that the doctor finds about `images`, and about `test` beside them, as one JSON object.

    `config`: the settings of the run to reckon with. Raises StepclrError for settings that cannot be used, and where a
    trial run fails; `estimate` is null where there are too few pictures for one.
    """
    spent: dict[str, float] = {}
    with _timed(spent, "looking"):
        seen = look(images, progress)
        tested = look(test, progress) if test is not None else None
    config = settle(replace(config, size=config.size or view_size(seen.images)), images)
    with _timed(spent, "duplicates"):
        findings = [*of_each(seen, config.view_size), *of_labels(images), *of_duplicates(seen)]
        if tested:
            broken = [f for f in of_each(tested, config.view_size) if f["gravity"] == "error"]
            findings += [f | {"name": f"test-{f['name']}", "says": f"test pictures {f['says']}"} for f in broken]
            findings += of_leakage(seen, tested)
    n = len(seen.readable)
    rates, reckoned = None, None
    if n < 2:
        do = "give it more: a contrast needs at least 2"
        findings.append(find("too-few", "error", 1, f"set, in which only {n} pictures can be read", do))
    else:
        pictures = decoded(seen, config)
        with _timed(spent, "throughput"):
            rates = throughput(pictures, config)
        with _timed(spent, "trials"):
            reckoned = reckon(pictures, config, list(trials(pictures, config)), rates["decoded_per_second"])
    findings = ordered(findings)
    labelled = int((images.labels >= 0).sum())
    largest = reckoned["largest_at_once"] if reckoned else None
    gpu = device_for_training().type == "cuda"
    suggested = advice(images.source, images.chosen or [], config.view_size, n, labelled, gpu, largest, findings)
    return {
        "source": images.source,
        "test": test.source if test is not None else None,
        "pictures": _pictures(seen),
        "classes": class_counts(images),
        "unlabelled": len(images) - labelled,
        "findings": findings,
        "throughput": rates,
        "estimate": reckoned,
        "advice": suggested if n > 1 else None,
        "settings": asdict(config),
        "machine": {
            "device": str(device_for_training()),
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "available_bytes": available(),
        },
        "seconds": spent,
    }


def _pictures(seen: Look) -> dict[str, Any]:
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
