"""Settings as options, in the commands that the package prints."""

from typing import Any

import pytest

from stepclr.data.reading import MAX_PIXELS, Reading
from stepclr.tools.options import option_words, reading_words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 64, "lr": 0.1, "policy": "simclr"}, "--batch-size 64 --lr 0.1 --policy simclr"),
        ({"balanced": True, "progressive": False, "head": None}, "--balanced"),
        ({"strength": (1.0, 0.5), "labels": ["a.csv", "b.csv"]}, "--strength 1,0.5 --labels a.csv b.csv"),
        ({"value_range": (0.0, 123456.75)}, "--value-range 0,123456.75"),
        ({"seed": 0}, "--seed 0"),
    ],
)
def test_settings_are_written_as_they_are_typed(settings: dict[str, Any], words: str) -> None:
    assert option_words(settings) == words.split()


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (Reading(), ""),
        (Reading(None, MAX_PIXELS, 3), ""),
        (Reading(damaged_shards="refuse"), ""),
        (Reading(damaged_shards="skip"), "--damaged-shards skip"),
        (Reading((0, 4095), 1000, 4), "--value-range 0,4095 --channels 4 --max-pixels 1000"),
    ],
)
def test_files_are_read_in_the_same_way_again(reading: Reading, words: str) -> None:
    assert reading_words(reading) == words.split()
