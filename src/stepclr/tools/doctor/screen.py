"""A diagnosis on one screen."""

from collections.abc import Iterator

from stepclr.data.labels import describe_classes
from stepclr.errors import counted, one_line
from stepclr.tools.doctor.examine import Diagnosis

MAX_WIDTH = 100  # characters of an example


def screen(diagnosis: Diagnosis) -> str:
    """What `doctor` found, in words: images, findings, time and memory, a command to type."""
    parts = (_images(diagnosis), _findings(diagnosis), _run(diagnosis), _advice(diagnosis))
    return "\n".join(one_line(line) for part in parts for line in part)


def _images(diagnosis: Diagnosis) -> Iterator[str]:
    images, classes = diagnosis.images, diagnosis.classes
    test = f"; test images: {diagnosis.test}" if diagnosis.test else ""
    yield f"{diagnosis.source}: {images['count']:,} images, {images['readable']:,} of them readable{test}"
    for line in images["left_out"]:
        yield f"  {line}"
    if images["sizes"]:
        sizes = ", ".join(f"{name} {w} x {h}" for name, (h, w) in images["sizes"].items())
        modes = ", ".join(f"{n:,} {mode}" for mode, n in images["modes"].items())
        turned = f"; {images['turned']:,} turned upright by their EXIF data" if images["turned"] else ""
        yield f"  sizes   {sizes}; modes {modes}{turned}"
    if not classes:
        yield "  labels  no image has a label, and SimCLR needs none"
        return
    yield f"  labels  {describe_classes(classes, diagnosis.unlabeled)}"
    yield from (f"  {line}" for line in images["sources"])


def _findings(diagnosis: Diagnosis) -> Iterator[str]:
    if not diagnosis.findings:
        yield "no problems found in the images"
    for finding in diagnosis.findings:
        yield f"{finding.severity:8}{finding.count:,} {finding.says}: {finding.do}"
        for example in finding.examples[:1]:
            short = example if len(example) <= MAX_WIDTH else f"{example[: MAX_WIDTH - 3]}..."
            yield f"        for example {short}"


def _run(diagnosis: Diagnosis) -> Iterator[str]:
    settings, machine = diagnosis.settings, diagnosis.machine
    speed, run = diagnosis.throughput, diagnosis.estimate
    if not run or not speed:
        return
    yield (
        f"this run on {machine['device']} with {counted(machine['threads'], 'thread')}: {settings.encoder}, "
        f"{settings.views} views of {settings.size} px, batch size {settings.batch_size:,}, "
        f"{settings.precision}, {counted(settings.epochs, 'epoch')}"
    )
    yield f"  speed   {speed.decoded_per_second:,.0f} images/s decoded, {speed.views_per_second:,.0f} views/s made"
    decoding = "nothing to decode first"
    if run.decoded_each_epoch:
        decoding = "every epoch decodes the images again (see --cache-gib)"
    elif run.decode_seconds:
        decoding = f"decoding {_time(run.decode_seconds)} once"
        if run.decoded_before:
            decoding += ", or not at all: an earlier run has read these files"
    growing = " on average" if settings.progressive else ""
    yield (
        f"  time    {_time(run.epoch_seconds)} per epoch{growing} ({counted(run.steps_per_epoch, 'step')} of "
        f"{run.step_seconds:.3g} s), {_time(run.run_seconds)} in total; {decoding}"
    )
    free = f"; {_gib(run.available_bytes)} are free" if run.available_bytes is not None else ""
    yield (
        f"  memory  {_gib(run.peak_bytes)}, of which {_gib(run.images_bytes)} are decoded images that the system "
        f"can reclaim{free}"
    )
    if run.largest_at_once is not None:
        fits = "the batch fits" if run.largest_at_once >= run.at_once else "not enough memory for this run"
        yield f"  fits    up to about {run.largest_at_once:,} images at once (--micro-batch): {fits}"


def _advice(diagnosis: Diagnosis) -> Iterator[str]:
    advice = diagnosis.advice
    if advice:
        yield f"where to start: {advice.start.answer}"
        for command in advice.start.compare:
            yield f"  {command}"
        for note in advice.start.notes:
            yield f"    {note}"
        yield "from scratch"
        yield f"  {advice.command}"
        for reason in advice.why:
            yield f"    {reason}"
        if advice.with_labels:
            yield f"  {advice.with_labels}"
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in diagnosis.seconds.items())
    yield f"time taken: {took}; nothing was changed"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
