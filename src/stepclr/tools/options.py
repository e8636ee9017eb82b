"""Settings as a person types them, for the commands that the package prints."""

from collections.abc import Mapping

from stepclr.data.reading import MAX_PIXELS, RGB, Reading


def option_words(settings: Mapping[str, object]) -> list[str]:
    """Settings as options, such as ["--batch-size", "64", "--value-range", "0,1000"]; those that are None or off, not.

    A switch that is on has no value; several numbers are joined by commas, and several words follow each other.
    """
    words = []
    for name, value in settings.items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if isinstance(value, list):
            words += map(str, value)
        elif isinstance(value, tuple):
            words.append(",".join(map(_shown, value)))
        elif value is not True:
            words.append(_shown(value))
    return words


def reading_words(reading: Reading) -> list[str]:
    """The options with which files are read so; none where all is as by default."""
    channels = None if reading.bands == RGB else reading.bands
    max_pixels = None if reading.limit == MAX_PIXELS else reading.limit
    skip = "skip" if reading.skips else None
    return option_words(
        {"value_range": reading.value_range, "channels": channels, "max_pixels": max_pixels, "damaged_shards": skip}
    )


def _shown(value: object) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)
