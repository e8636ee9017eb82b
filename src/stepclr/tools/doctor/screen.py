"""The doctor's JSON on one screen."""

from collections.abc import Iterator
from typing import Any

WIDTH = 100  # characters of an example, at most
CLASSES = 12  # that are named


def screen(found: dict[str, Any]) -> str:
    """What `examine` found, in words: images, findings gravest first, speed, memory, a command to type."""
    return "\n".join(shown(line) for part in (_set, _findings, _run, _advice) for line in part(found))


def shown(text: str) -> str:
    """A text on one line, whatever a file's name has in it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _set(found: dict[str, Any]) -> Iterator[str]:
    images, classes = found["images"], found["classes"]
    beside = f", beside {found['test']}" if found["test"] else ""
    yield f"{found['source']}: {images['count']:,} images, {images['readable']:,} of them readable{beside}"
    if images["sizes"]:
        sides = ", ".join(f"{name} {w} x {h}" for name, (h, w) in images["sizes"].items())
        modes = ", ".join(f"{n:,} {mode}" for mode, n in images["modes"].items())
        turned = f"; {images['turned']:,} turned upright by their EXIF data" if images["turned"] else ""
        yield f"  sizes   {sides}; modes {modes}{turned}"
    if classes:
        most = sorted(classes.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{name} {n:,}" for name, n in most[:CLASSES]) + (", ..." if len(most) > CLASSES else "")
        yield f"  classes {len(classes)}: {listed}; {found['unlabelled']:,} images without a label"
    else:
        yield "  classes none: no image has a label, and SimCLR needs none"


def _findings(found: dict[str, Any]) -> Iterator[str]:
    if not found["findings"]:
        yield "nothing wrong with the images"
    for one in found["findings"]:
        yield f"{one['gravity']:8}{one['count']:,} {one['says']}: {one['do']}"
        if one["examples"]:
            clipped = (
                text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..." for text in map(str, one["examples"][:1])
            )
            yield f"        as {'; '.join(clipped)}"


def _run(found: dict[str, Any]) -> Iterator[str]:
    settings, rates, run, machine = (found[key] for key in ("settings", "throughput", "estimate", "machine"))
    if not run:
        return
    yield (
        f"a run here, on {machine['device']} with {machine['threads']} threads: {settings['encoder']}, "
        f"{settings['views']} views of {settings['size']} px, batch {settings['batch_size']:,}, "
        f"{settings['precision']}, {settings['epochs']:,} epochs"
    )
    yield f"  decodes {rates['decoded_per_second']:,.0f} images/s, makes {rates['views_per_second']:,.0f} views/s"
    once = f"decoding {_time(run['decode_seconds'])} once" if run["decode_seconds"] else "nothing to decode first"
    once = "every epoch decodes again (--cache-gib)" if run["decoded_each_epoch"] else once
    once += ", if at all: an earlier run has read these files" if run["decoded_before"] else ""
    yield (
        f"  time    {_time(run['epoch_seconds'])} an epoch ({run['steps_per_epoch']:,} steps of "
        f"{run['step_seconds']:.3g} s), {_time(run['run_seconds'])} in all; {once}"
    )
    free = f"; {_gib(run['available_bytes'])} are free" if run["available_bytes"] is not None else ""
    yield (
        f"  memory  {_gib(run['peak_bytes'])}, {_gib(run['images_bytes'])} of it decoded images that the system "
        f"can take back{free}"
    )
    largest = run["largest_at_once"]
    if largest is not None:
        enough = "the batch fits whole" if largest >= run["at_once"] else "less than this run takes: it will not fit"
        yield f"  fits    up to about {largest:,} images at once (--micro-batch); {enough}"


def _advice(found: dict[str, Any]) -> Iterator[str]:
    if advised := found["advice"]:
        yield "suggested"
        yield f"  {advised['command']}"
        yield from (f"    {reason}" for reason in advised["why"])
        if advised["with_labels"]:
            yield f"  {advised['with_labels']}"
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["seconds"].items())
    yield f"took {took}; nothing was changed"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
