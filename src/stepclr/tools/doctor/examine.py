"""The whole examination: what is wrong with a set of images, and what a run on it would take."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from stepclr.config import PretrainConfig, ResolvedConfig
from stepclr.data.images import ImageSet
from stepclr.data.labels import check_classes, class_counts, of_these_classes, source_lines
from stepclr.data.reading import AS_DECLARED
from stepclr.data.sources import Source, open_images, open_train_test
from stepclr.device import default_device
from stepclr.errors import StepclrError
from stepclr.pretraining.resolve import resolve, view_size, with_epochs
from stepclr.threads import Announce, Progress, cores, silent
from stepclr.tools.doctor.advice import Advice, Facts, advice
from stepclr.tools.doctor.estimate import Estimate, Throughput, available, estimate, prepared, throughput, trials
from stepclr.tools.doctor.findings import Finding, finding, findings_of, ordered
from stepclr.tools.doctor.memory import fitting
from stepclr.tools.doctor.scan import Scan, scan


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found: about the images, the run, and this machine.

    `throughput`, `estimate` and `advice` are None where there are too few images to train on.
    """

    source: str
    test: str | None
    images: dict[str, Any]
    classes: dict[str, int]
    """Images of each class."""
    unlabeled: int
    findings: list[Finding]
    """The most severe first."""
    throughput: Throughput | None
    estimate: Estimate | None
    advice: Advice | None
    settings: ResolvedConfig
    machine: dict[str, Any]
    seconds: dict[str, float]
    """What each part of the examination took."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `stepclr doctor --json` prints."""
        return asdict(self)


def doctor(
    images: Source,
    config: PretrainConfig | None = None,
    test: Source | None = None,
    progress: Progress | None = None,
    announce: Announce | None = None,
    limit: int | None = None,
) -> Diagnosis:
    """Examine images before training: findings, time and memory of a run with these settings, a suggested recipe.

    Nothing is changed: no file of the source, no run, no cache. Two short trial runs take place in temporary folders.

    Args:
        images: the images to train on, anything `open_images` takes.
        config: the settings of the planned run; by default those of `pretrain`.
        test: images to score on later; those that are also training images are reported.
        progress: called with (images read, images in all).
        announce: called with what is done next in words, such as "reading 2,000 images".
        limit: examine a run on at most this many of the images, which the suggested commands then limit too.

    Raises StepclrError for settings that cannot be used, and where a trial run fails.
    """
    config = config or PretrainConfig()
    images, test = open_train_test(images, test, reading=config.reading)
    images = open_images(images, limit=limit)
    test = of_these_classes(test, images.chosen) if test is not None and images.chosen else test
    announce = announce or silent
    seconds: dict[str, float] = {}
    with _timed(seconds, "looking"):
        announce(f"reading {len(images) + (len(test) if test else 0):,} images")
        scanned = scan(images, progress)
        test_scanned = scan(test, progress) if test is not None else None
    settings = resolve(replace(config, size=config.size or view_size(scanned.images)), images)

    with _timed(seconds, "duplicates"):
        announce("comparing the images, to find duplicates")
        findings = findings_of(images, scanned, test_scanned, settings.size)

    # With one image or none there is nothing to train on.
    readable = len(scanned.readable)
    speed, estimated, advised = None, None, None
    if readable < 2:
        says, do = f"set with only {readable} readable images", "add images: contrastive learning needs at least 2"
        findings.append(finding("too-few", "error", 1, says, do))
    else:
        ready = prepared(scanned, settings)
        with _timed(seconds, "throughput"):
            announce("timing the decoding of images and the making of views")
            speed = throughput(ready, settings)
        with _timed(seconds, "trials"):
            estimated = estimate(ready, settings, list(trials(ready, settings, announce)), speed.decoded_per_second)
        if config.minutes:
            settings = with_epochs(settings, config, estimated.epochs)
        learnable = _learnable(images)
        facts = Facts(
            sources=images.parts or [images.source],
            size=settings.size,
            images=readable,
            gpu=default_device().type == "cuda",
            own_size=view_size(scanned.images),
            fitting=partial(fitting, estimated.largest_at_once, settings),
            labeled=learnable,
            smallest_class=min(filter(None, class_counts(images).values())) if learnable else 0,
            chosen=images.chosen or [],
            limit=limit,
            tables=list(images.labeling.labeled) if images.labeling else [],
            test=(test.parts or [test.source]) if test is not None and (test.labels >= 0).any() else (),
            reading=images.store.reading,
            test_reading=test.store.reading if test is not None else AS_DECLARED,
        )
        advised = advice(facts, ordered(findings))
    return Diagnosis(
        source=images.source,
        test=test.source if test is not None else None,
        images={**_images(scanned), "sources": source_lines(images)},
        classes=class_counts(images),
        unlabeled=int((images.labels < 0).sum()),
        findings=ordered(findings),
        throughput=speed,
        estimate=estimated,
        advice=advised,
        settings=settings,
        machine={
            "device": default_device().type,
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "available_bytes": available(),
        },
        seconds=seconds,
    )


def _learnable(images: ImageSet) -> int:
    """The number of labeled images, or 0 where their classes are nothing that a supervised loss would take."""
    try:
        check_classes(images)
    except StepclrError:
        return 0
    return int((images.labels >= 0).sum())


def _images(scanned: Scan) -> dict[str, Any]:
    readable = [scanned.each[i] for i in scanned.readable]
    sizes = {}
    if readable:
        order = scanned.sizes.prod(axis=1).argsort(kind="stable")
        for name, place in (("smallest", 0), ("median", len(order) // 2), ("largest", -1)):
            sizes[name] = scanned.sizes[order[place]].tolist()
    return {
        "count": len(scanned.images),
        "left_out": scanned.images.ledger.lines(),
        "readable": len(readable),
        "modes": dict(Counter(image.mode for image in readable).most_common()),
        "turned": sum(image.turned for image in readable),
        "sizes": sizes,
        "bytes": sum(image.length or 0 for image in scanned.each),
    }


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begun
