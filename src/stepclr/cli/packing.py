"""The command that prepares data for long runs: pack."""

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from stepclr.cli.arguments import Counter, Images, LabelFiles, Limit, Names, Read, open_source, say, say_unread
from stepclr.data.reading import AS_DECLARED


def pack(
    source: Images,
    out: Annotated[Path, arg(metavar="DIR")],
    per_shard: Annotated[int, arg(metavar="N")] = 10_000,
    short_side: Annotated[int | None, arg(metavar="PX", help_behavior_hint="(default: keep every byte)")] = None,
    quality: Annotated[int | None, arg(metavar="1..95", help_behavior_hint="(default: 90 where reduced)")] = None,
    labels: LabelFiles = (),
    classes: Names = None,
    limit: Limit = None,
    reading: Read = AS_DECLARED,
) -> None:
    """Write the images of a source as tar shards with an index and checksums.

    If it is interrupted, run the same command again to resume.

    Args:
        out: Folder for 0000.tar, 0001.tar, ... and their index.
        per_shard: Images per shard.
        short_side: Reduce images with a longer short side to this many pixels, as JPEG. Twice the view size is enough.
        quality: JPEG quality of reduced images, and of images without a file (which are PNG by default).
    """
    from stepclr.data.shards.packing import pack as write_shards

    images = open_source(source, classes, limit, reading=reading, labels=labels)
    packed = write_shards(images, out, per_shard, short_side, quality, Counter())
    say_unread(images)
    skipped = f"; {packed.skipped:,} could not be read, see {out / 'skipped.csv'}" if packed.skipped else ""
    say(f"{out}: {packed.images:,} images in {packed.shards:,} shards{skipped}")
