"""`Reading`: what a user decides about reading image files, where the files do not."""

import math
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from stepclr.errors import StepclrError, check_whole, choose

MAX_PIXELS = 200_000_000  # of an image; a phone's largest has 108 or 200 million
RGB, MAX_CHANNELS = 3, 16  # channels of an image: by default, and at most


def _two_numbers(words: list[str]) -> tuple[float, float]:
    try:
        low, high = (float(number) for number in words[0].split(","))
    except ValueError:
        raise ValueError(f"{words[0]!r} is not two numbers with a comma, such as 0,4095") from None
    return low, high


Range = tuple[float | int, float | int]  # (black, white)

# Two numbers with a comma on the command line.
ValueRange = Annotated[
    Range | None,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="LOW,HIGH",
        instance_from_str=_two_numbers,
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(f"{number:g}" for number in value) if value else "None"],
    ),
    arg(metavar="LOW,HIGH", help_behavior_hint="(default: what each file declares)"),
]
MaxPixels = Annotated[int | None, arg(metavar="N", help_behavior_hint=f"(default: {MAX_PIXELS})")]
Channels = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 3, RGB)")]
DamagedShards = Annotated[str | None, arg(metavar="{refuse,skip}", help_behavior_hint="(default: refuse)")]


@dataclass(frozen=True)
class Reading:
    """How image files are read, where they do not say it themselves."""

    value_range: ValueRange = None
    """The numbers that are black and white, in images of more than 8 bits per channel."""
    max_pixels: MaxPixels = None
    """Pixels of the largest image that is read; larger ones are skipped and counted."""
    channels: Channels = None
    """Channels of an image: 3 for RGB, 1 for gray, or as many as the files have bands, in their order (at most 16)."""
    damaged_shards: DamagedShards = None
    """What to do with a missing, truncated or corrupt shard: refuse the source, or skip the shard's images."""

    def __post_init__(self) -> None:
        if self.value_range is not None:
            given = tuple(float(number) for number in self.value_range)
            if len(given) != 2 or not -math.inf < given[0] < given[1] < math.inf:
                raise StepclrError(f"value_range must be two ascending numbers (black, white), not {self.value_range}")
            object.__setattr__(self, "value_range", given)
        check_whole("max_pixels", self.max_pixels, 1)
        if self.channels is not None and self.channels not in range(1, MAX_CHANNELS + 1):
            raise StepclrError(f"channels must be from 1 to {MAX_CHANNELS}, not {self.channels}")
        if self.damaged_shards is not None:
            choose("damaged_shards", self.damaged_shards, ("refuse", "skip"))

    @property
    def limit(self) -> int:
        """Pixels of the largest image that is read."""
        return self.max_pixels or MAX_PIXELS

    @property
    def bands(self) -> int:
        """Channels of each image that is read."""
        return self.channels or RGB

    @property
    def skips(self) -> bool:
        """Whether the images of a damaged shard are left out."""
        return self.damaged_shards == "skip"

    @property
    def decided(self) -> tuple[Range | None, int, int]:
        """Value range, limit and bands: the same for all that read alike, whether a user has said so or not."""
        return self.value_range, self.limit, self.bands

    def changed(self, by: "Reading") -> "Reading":
        """This, except for what `by` decides."""
        return Reading(
            by.value_range or self.value_range,
            by.max_pixels or self.max_pixels,
            by.channels or self.channels,
            by.damaged_shards or self.damaged_shards,
        )


def readable_as(held: int, wanted: int) -> bool:
    """Whether images of `held` channels can be read with `wanted` ones: gray becomes RGB, others stay as they are."""
    return held == wanted or (held, wanted) == (1, RGB)


def channels_words(channels: int) -> str:
    """ "1 channel", "4 channels"."""
    return f"{channels} channel{'s' * (channels > 1)}"


AS_DECLARED = Reading()


def as_words(sources: str | list[str]) -> str:
    """One source or several as text; of many, such as single files, the first."""
    several = [sources] if isinstance(sources, str) else sources
    return ", ".join(several) if len(several) < 10 else f"{several[0]} and {len(several) - 1:,} others"
