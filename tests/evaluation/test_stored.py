"""evaluation.json and finetune.json as users leave them: edited by hand, or cut off."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small import call, run_config, untrained_run

import stepclr
from stepclr.data.reading import AS_DECLARED
from stepclr.errors import StepclrError
from stepclr.evaluation.results import Scores
from stepclr.evaluation.stored import read_scores, reading_of
from stepclr.tools.report.classifier import classifier
from stepclr.tools.report.context import Context
from stepclr.tools.scores import score_table, stored_scores

WRONG: list[Any] = [None, "x", 3, [1], {"a": 1}]  # where another type belongs
GONE = object()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder and a classifier, and with the scores of both."""
    folder = untrained_run(tmp_path_factory.mktemp("run"))
    train = stepclr.open_images("sample:train", classes="Bag,Sandal", limit=24)
    stepclr.evaluate(folder, train, labels_per_class="2,all", draws=2, holdout=0.5)
    stepclr.finetune(folder, train, labels_per_class=2, holdout=0.5, epochs=1)
    return folder


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a JSON value, the first of each list."""
    keys: Any = value if isinstance(value, dict) else range(min(1, len(value))) if isinstance(value, list) else ()
    for key in keys:
        yield (*before, key)
        yield from places(value[key], (*before, key))


def changed(stored: Any, place: tuple[Any, ...], new: Any) -> Any:
    stored = copy.deepcopy(stored)
    inner = stored
    for key in place[:-1]:
        inner = inner[key]
    if new is GONE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return stored


@pytest.mark.parametrize("name", ["evaluation.json", "finetune.json"])
def test_whatever_is_wrong_in_a_field_is_one_line_that_names_the_file(name: str, run: Path, tmp_path: Path) -> None:
    stored = json.loads((run / name).read_text())
    path, of_classifier = tmp_path / name, name == "finetune.json"
    messages = []
    for place in places(stored):
        for new in (GONE, *WRONG):
            path.write_text(json.dumps(changed(stored, place, new)))
            try:
                scores = read_scores(path, True) if of_classifier else stored_scores(stepclr.Run(tmp_path))
                score_table(scores or Scores([], {}))
            except StepclrError as error:
                messages.append(str(error))
    assert len(messages) > 300
    assert {message for message in messages if "\n" in message or f"{path} is corrupt: " not in message} == set()
    path.write_bytes((run / name).read_bytes())
    assert read_scores(path, of_classifier).to_dict() == stored


@pytest.mark.parametrize(
    ("place", "new", "said"),
    [
        (("protocol", "test", "images"), "many", "protocol: test: images: it is 'many'"),
        (("protocol", "train"), GONE, "protocol: it has no 'train'"),
        (("rows", 0, "mean"), "high", "row 1 is corrupt: mean is 'high'"),
        (("rows", 0, "labels_per_class"), 0, "--labels-per-class must be counts from 1 up"),
        (("protocol", "test", "reading"), {"max_pixels": -5}, "--max-pixels must be at least 1, not -5"),
        (("protocol", "confusion", "matrix"), [[1]], "its confusion matrix does not have one row and one column"),
        (("protocol", "confusion", "pairs"), [{"is": "a"}], "protocol: confusion: pairs: it has no 'taken_for'"),
    ],
)
@pytest.mark.parametrize("name", ["evaluation.json", "finetune.json"])
def test_the_line_says_which_field(
    name: str,
    place: tuple[Any, ...],
    new: Any,
    said: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    path = copied / name
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place, new)))
    exported = copied / ("classifier.safetensors" if name == "finetune.json" else "encoder.safetensors")
    assert call("export", exported, "--format", "safetensors", "--out", tmp_path / "e.safetensors") == 2
    assert f"stepclr: {path} is corrupt: {said}" in capsys.readouterr().err


def test_names_that_a_reading_does_not_have_are_ignored() -> None:
    reading = reading_of({"reading": {"max_pixels": 7, "gamma": 2.2}})
    assert (reading.max_pixels, reading.channels) == (7, None)
    assert reading_of({}) == AS_DECLARED


def test_the_page_says_that_the_stored_scores_are_those_of_a_later_classifier(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    run_config().write(copied)
    context = Context(stepclr.Run(copied), None)
    assert "why" not in classifier(context)
    train = stepclr.open_images("sample:train", classes="Bag,Sandal", limit=24)
    stepclr.finetune(copied, train, labels_per_class=2, epochs=1, seed=1, out=tmp_path / "c.safetensors")
    assert classifier(context)["why"] == "finetune.json has the scores of another classifier, not of this one."
