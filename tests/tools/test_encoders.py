"""Whatever names an encoder, in whatever takes one: a run, an encoder file, timm:NAME, a name that is misspelt."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from PIL import Image
from rich.table import Table

import stepclr
from stepclr.evaluation.baselines import started_from
from stepclr.evaluation.results import Scores
from stepclr.model.files import save_encoder
from stepclr.tools.label_chart import label_chart
from stepclr.tools.report.context import open_context
from stepclr.tools.report.evaluation import evaluation
from stepclr.tools.scores import score_summary
from stepclr.tools.search.index import read_metadata

Capture = pytest.CaptureFixture[str]
TYPO = "timm:test_resnt"


@dataclass(frozen=True)
class Place:
    """A folder with labeled photos and what names an encoder there."""

    photos: Path
    names: dict[str, str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, off_the_shelf: str) -> Place:
    here = tmp_path_factory.mktemp("here")
    images = stepclr.open_images("sample:train").keep(["Bag", "Sandal"]).take(range(24))
    for i, image in enumerate(images.read(range(24))):
        path = here / "photos" / str(images.class_name(i)) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((200, 180)).save(path)
    stepclr.pretrain(here / "photos", here / "run", weights=off_the_shelf, size=32, epochs=1, batch_size=8, head="16-8")
    shutil.copy(here / "run" / "encoder.safetensors", here / "other.safetensors")
    names = {"run": str(here / "run"), "file": str(here / "other.safetensors"), "timm": off_the_shelf, "typo": TYPO}
    return Place(here / "photos", names)


def call(capsys: Capture, *words: object) -> tuple[int, str]:
    """Exit code of a command in this process and what it printed; errors are one line."""
    capsys.readouterr()
    code, said = small.call(*words), capsys.readouterr()
    return code, said.err if code else said.out


COMMANDS: dict[str, tuple[str, str]] = {  # a command, and what it says of an encoder that it cannot use
    "embed": ("embed WHERE PHOTOS --out OUT/index", ""),
    "embed to a file": ("embed WHERE PHOTOS --out OUT/h.parquet", ""),
    "finetune": ("finetune WHERE --train PHOTOS --out OUT/c.safetensors --epochs 1 --batch-size 16", ""),
    "evaluate": (
        "evaluate WHERE --train PHOTOS --holdout 0.5 --labels-per-class 2 --draws 1 --probe linear --baselines pixels",
        "",
    ),
    "export": ("export WHERE --format timm --check PHOTOS --out OUT/e.safetensors", ""),
    "pretrain": ("pretrain PHOTOS --weights WHERE --size 32 --epochs 1 --batch-size 8 --head 16-8 --out OUT/run", ""),
    "predict": ("predict WHERE PHOTOS --out OUT/p.csv", "finetune"),
    "label": ("label WHERE PHOTOS --classes Bag,other -n 4 --out OUT/label.html", ""),
    "search": ("search WHERE PHOTOS/Bag/0.png --out OUT/hits.png", "embed"),
    "find": ("find outliers WHERE PHOTOS --out OUT/o.csv", ""),
    "report": ("report WHERE", "evaluate"),
    "compare": ("compare WHERE", "evaluate"),
}


@pytest.mark.parametrize("kind", ["run", "file", "timm", "typo"])
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_takes_each_or_says_in_a_line_what_does(
    command: str, kind: str, place: Place, tmp_path: Path, capsys: Capture
) -> None:
    words, advice = COMMANDS[command]
    if kind == "run" and command in ("report", "compare", "evaluate"):
        pytest.skip("as tested with every other run")
    where, photo = place.names[kind], next(place.photos.glob("*/*.png"))
    words = words.replace("PHOTOS/Bag/0.png", str(photo)).replace("PHOTOS", str(place.photos))
    code, said = call(capsys, *words.replace("WHERE", where).replace("OUT", str(tmp_path)).split())
    if kind == "typo" or (advice and (kind != "run" or command == "predict")):
        assert code == 2
        said = said.splitlines()[-1]  # the lines before describe the images
        assert said.startswith("stepclr: ")
        if kind == "typo" and not advice:
            assert "Did you mean 'test_resnet'" in said
        else:
            assert f"stepclr {advice} {where}" in said
    else:
        assert code == 0, said


def test_an_index_remembers_that_its_encoder_is_timms(place: Place, tmp_path: Path, capsys: Capture) -> None:
    where, photo = place.names["timm"], next(place.photos.glob("*/*.png"))
    for index in (tmp_path / "index", tmp_path / "file.parquet"):
        assert call(capsys, "embed", where, place.photos, "--out", index)[0] == 0
        metadata = read_metadata(index)
        assert metadata is not None
        assert (metadata.run, metadata.size) == (where, 160)
        hits = stepclr.search(index, photo, k=3)  # with no encoder named
        assert hits[0].similarity == pytest.approx(1, abs=1e-5)
        assert photo.relative_to(place.photos).as_posix() in [hit.path for hit in hits]
        assert call(capsys, "find", "outliers", index, "--out", tmp_path / "o.csv")[0] == 0
    h = stepclr.embed(where, place.photos)
    paths = stepclr.open_images(place.photos).names
    opened = stepclr.open_index(tmp_path / "index")
    order = [paths.index(path) for path in opened.paths]
    assert np.allclose(opened.vectors, h[order], atol=1e-5)


def test_scikit_learn_transforms_with_timms_encoder(place: Place) -> None:
    where, paths = place.names["timm"], sorted(place.photos.glob("*/*.png"))[:3]
    transformer = stepclr.SimCLRTransformer(where).fit(paths)
    encoder = stepclr.load_encoder(where)
    with torch.inference_mode():
        expected = encoder(encoder.preprocess([Image.open(path) for path in paths]))
    assert np.allclose(transformer.transform(paths), expected.numpy(), atol=1e-4)
    with pytest.raises(stepclr.StepclrError, match="Did you mean 'test_resnet'"):
        stepclr.SimCLRTransformer(TYPO).fit(paths)


def scores_of(place: Place, name: str, **options: Any) -> Scores:
    settings: dict[str, Any] = {"labels_per_class": 4, "draws": 1, "probe": "linear"} | options
    return stepclr.evaluate(name, place.photos, holdout=0.5, **settings)


def test_off_the_shelf_weights_are_a_row_of_their_own_size_and_preprocessing(place: Place) -> None:
    """The same scores as by themselves: the run's 32 px do not reach them."""
    run, timms, file = (place.names[name] for name in ("run", "timm", "file"))
    scores = scores_of(place, run, baselines=["pixels", timms, file])
    values = {row.method: row.values for row in scores.rows}
    assert list(values) == ["pixels", timms, file, "simclr"]
    assert values[file] == values["simclr"]  # the file is the run's encoder
    method = scores.protocol["methods"][timms]
    assert method["encoder"]["size"] == 160
    assert "168 px (bilinear" in method["preprocessing"]
    alone = scores_of(place, timms, baselines="")
    assert alone.rows[0].method == alone.protocol["run"] == alone.protocol["confusion"]["method"] == timms
    assert alone.rows[0].values == values[timms]
    assert alone.protocol["started_from"] is None


def test_the_baseline_of_an_adapted_run_is_where_it_started(place: Place) -> None:
    run, timms = place.names["run"], place.names["timm"]
    scores = scores_of(place, run)
    values = {row.method: row.values for row in scores.rows}
    assert list(values) == ["pixels", "start", "simclr"]
    assert scores.protocol["started_from"] == timms
    # It is the encoder with timm's weights at the run's size, not at timm's.
    file = place.photos.parent / "start.safetensors"
    save_encoder(stepclr.build_encoder("test_resnet", weights=timms, size=32), file)
    assert scores_of(place, str(file), baselines="").rows[0].values == values["start"]
    # A run that began with another run; an encoder file remembers timm's weights.
    settings: dict[str, Any] = {"size": 32, "epochs": 1, "batch_size": 8, "head": "16-8"}
    second = stepclr.pretrain(place.photos, place.photos.parent / "second", weights=run, **settings)
    again = scores_of(place, str(second.folder), baselines="random")
    assert again.protocol["started_from"] == run
    assert again.rows[0].values == values["simclr"]
    encoder = stepclr.load_encoder(place.names["file"])
    assert started_from(stepclr.Run(Path(place.names["file"])), encoder) == timms


def test_the_weights_of_an_adapted_run_are_named_wherever_its_scores_are(place: Place, tmp_path: Path) -> None:
    run, timms = place.names["run"], place.names["timm"]
    scores = scores_of(place, run, labels_per_class="2,4", draws=2, baselines=["random", timms])
    stored = json.loads((Path(run) / "evaluation.json").read_text())
    assert stored["protocol"]["started_from"] == timms
    assert [row["method"] for row in stored["rows"][::2]] == ["start", timms, "simclr"]

    table, *lines = score_summary(scores)
    assert isinstance(table, Table)
    assert str(table.title).endswith(f"training began with {timms}")
    assert str(lines[0]).startswith(f"Training began with the weights {timms}.")
    compared = {line.split(" with ")[0] for line in map(str, lines) if line.startswith("simclr - ")}
    assert compared == {"simclr - start", f"simclr - {timms}"}

    axes = label_chart(scores).axes[0]
    assert axes.get_title().endswith(f"start: {timms}")
    assert {"start", timms, "simclr"} <= set(axes.get_legend_handles_labels()[1])
    page = evaluation(open_context(stepclr.Run(Path(run)), None))
    assert any(timms in sentence for sentence in page["protocol"])
    assert timms in page["curve"].words
    assert [(row["method"], row["ours"]) for row in page["rows"]] == [
        ("start", False),
        (timms, False),
        ("simclr", True),
    ]

    card = stepclr.export(run, tmp_path / "out", "timm", place.photos).card.read_text()
    plain = timms.replace("_", "\\_")
    assert f"- Training began with the weights: {plain}" in card
    assert "whose license is apache-2.0" in card
    assert f"| {plain} | 2 |" in card


def test_an_adapted_run_resumes_with_the_same_words(place: Place, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"weights": "timm:test_resnet", "size": 32, "batch_size": 8, "head": "16-8"}
    run = stepclr.pretrain(place.photos, tmp_path / "run", epochs=1, **settings)
    assert (run.config.encoder, run.config.weights) == ("test_resnet", place.names["timm"])
    assert stepclr.pretrain(place.photos, tmp_path / "run", epochs=2, resume=True, **settings).config.epochs == 2


def test_the_card_of_an_exported_encoder_of_timm_says_whose_it_is(place: Place, tmp_path: Path) -> None:
    exported = stepclr.export(place.names["timm"], tmp_path / "e.safetensors", "timm", place.photos)
    text = exported.card.read_text()
    assert "is, or began as, timm:test\\_resnet.r160\\_in1k, whose license is apache-2.0" in text
    assert text.count("Those of timm:test\\_resnet.r160\\_in1k, which timm describes.") == 2
    assert "short side to 168 px (bilinear" in text
    assert exported.parity.difference < 1e-5


def test_a_network_that_the_weights_are_not_of_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(stepclr.StepclrError, match="are of the network test_resnet, not of resnet18; leave out"):
        stepclr.pretrain(place.photos, tmp_path / "run", weights=place.names["timm"], encoder="resnet18")
