"""The command that gets data ready for long runs: pack. torch is imported inside it: help is instant."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from stepclr.cli.arguments import Count, Counter, Names, Source, open_source, say


def pack(
    source: Positional[Source],
    out: Annotated[Path, arg(metavar="DIR")],
    per_shard: Annotated[int, arg(metavar="N")] = 10_000,
    short_side: Annotated[int | None, arg(metavar="PX", help_behavior_hint="(default: keep every byte)")] = None,
    quality: Annotated[int | None, arg(metavar="1..95", help_behavior_hint="(default: 90 where reduced)")] = None,
    classes: Names = None,
    limit: Count = None,
) -> None:
    """Write the images of a source as tar shards with index and checksums; stopped, the same command goes on.

    Args:
        source: Images: a folder, a zip, shards, or NAME:SPLIT.
        out: Folder for 0000.tar, 0001.tar, ... and their index.
        per_shard: Images in a shard.
        short_side: Reduce images above it to this short side, as JPEG; twice the views' size is enough.
        quality: JPEG quality of what is reduced, or of images that come from no files (else PNG).
        classes: Keep the labelled images of these classes only.
        limit: Keep that many images only.
    """
    from stepclr.data.shards.packing import pack as write_shards

    images = open_source(source, classes, limit)
    pixels, shards, left_out = write_shards(images, out, per_shard, short_side, quality, Counter())
    unread = f"; {left_out:,} could not be read, see {out / 'skipped.csv'}" if left_out else ""
    say(f"{out}: {pixels:,} images in {shards:,} shards{unread}")
