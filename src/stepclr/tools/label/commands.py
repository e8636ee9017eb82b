"""What to run with the labels.csv that a page for labels saves."""

import os
import shlex
from pathlib import Path

from stepclr.data.images import ImageSet
from stepclr.data.reading import Reading
from stepclr.data.sources import Source
from stepclr.evaluation.holdout import USUAL_SHARE
from stepclr.model.files import CLASSIFIER
from stepclr.model.timm_weights import timm_name
from stepclr.model.weights import ENCODER_FILE
from stepclr.pretraining.run import Run
from stepclr.tools.options import reading_words
from stepclr.tools.search.index import EmbeddingIndex, read_metadata


def next_commands(
    given: str | os.PathLike[str] | EmbeddingIndex, index: EmbeddingIndex, source: Source | None, options: list[str]
) -> list[tuple[str, str]]:
    """(what it does, command) for labels.csv; the next round has the `options` of this one.

    Unknown words are in capitals. given: what the user named as the `index`.
    """
    run, where, places = "RUN", "INDEX", places_of(index) or ["SOURCE"]
    reading = index.reading
    if not isinstance(given, EmbeddingIndex):
        where = os.fspath(given)
        metadata = read_metadata(Path(given))
        if metadata:
            run = short(metadata.run)
        # The run may be gone; a folder has its encoder.
        if Path(given, ENCODER_FILE).is_file() and not Path(run).exists() and timm_name(run) is None:
            run = os.path.join(given, ENCODER_FILE)
    if isinstance(source, ImageSet):
        places, reading = [*(source.parts or (source.source,))], source.store.reading
    elif isinstance(source, str | Path):
        places = [os.fspath(source)]
    places = [short(place) for place in places]
    again = ["stepclr", "label", where, *places, "--labels", "labels.csv", *options, *reading_words(reading)]
    if timm_name(run) is not None:  # weights off the shelf do not know what the index and a run's encoder know
        reading = Reading(index.value_range, channels=index.channels).changed(reading)
    read = reading_words(reading)
    train = ["stepclr", "finetune", run, "--train", *places, "--labels", "labels.csv", *read]
    train += ["--holdout", f"{USUAL_SHARE:g}"]
    classifier = run
    if not _has_place_for_classifier(Run(Path(run))):
        classifier = CLASSIFIER
        train += ["--out", classifier]
    predict = ["stepclr", "predict", classifier, *places, "--out", "predictions.csv", *read]
    lines = {"Train a classifier": train, "Classify all images": predict, "Choose and label the next images": again}
    return [(what, shlex.join(words)) for what, words in lines.items()]


def _has_place_for_classifier(run: Run) -> bool:
    """An encoder file or the name of weights has none, and a run keeps the one that pretraining trained."""
    return run.folder.is_dir() and not (run.exists() and run.trains_classifier)


def places_of(index: EmbeddingIndex) -> list[str]:
    """Where the images of an index are, one by one; none where that is not known."""
    return index.source if isinstance(index.source, list) else list(filter(None, [index.source]))


def short(path: str) -> str:
    """A path as it is named from here, if it lies here; a name such as sample:train stays."""
    here = os.fspath(Path.cwd()) + os.sep
    return path.removeprefix(here)
