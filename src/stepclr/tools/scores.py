"""What runs scored: evaluation.json as tables, lines and a chart, and the lines of Python that load the encoder."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file

from stepclr.errors import StepclrError
from stepclr.evaluation.baselines import START
from stepclr.evaluation.results import EVALUATION, Score, Scores
from stepclr.io import write_whole
from stepclr.model.files import load_encoder, state_checksum
from stepclr.model.weights import FILE
from stepclr.pretraining.run import Run
from stepclr.tools.methods import baselines_of, method_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Json = dict[str, Any]


def stored_scores(run: Run) -> Scores | None:
    """evaluation.json of the run, or None where there is none. Raises StepclrError if it is corrupt.

    Scores of an encoder that the run has since trained further have no rows.
    """
    path = run.folder / EVALUATION
    try:
        scores = Scores.from_dict(json.loads(path.read_bytes()))
        # Whatever the tables and the chart read is read once here, so that a corrupt file is named before any output.
        for row in scores.rows:
            percent(row), labels_words(row.labels_per_class)
        _scored_on(scores)
        scored = scores.protocol.get("encoder_sha256", {}).get("after")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StepclrError(f"{path} is corrupt: {error}") from None
    if scored is not None and scored != _encoder_checksum(run):
        return Scores([], scores.protocol)
    return scores


def _encoder_checksum(run: Run) -> str | None:
    """The checksum of the run's encoder; None where there is none, or it cannot be read."""
    try:
        return state_checksum(load_file(run.folder / FILE))
    except (SafetensorError, OSError):
        return None


PAIRED_COVERS = "the standard errors cover the draws of the labels, not other test images or another pretraining seed"


def percent(row: Score) -> str:
    """Top-1 of a row of evaluation.json, such as "76.5 ± 1.0 %": mean and, where there are several draws, std."""
    return _percent(row.mean, row.std)


def clean_percent(row: Score) -> str:
    """`percent` on the test images that are not in train too; "" where none is."""
    return "" if row.clean_mean is None else _percent(row.clean_mean, row.clean_std)


def percents(row: Score) -> str:
    """`percent`, followed by `clean_percent` where it is another."""
    clean = clean_percent(row)
    return f"{percent(row)} ({clean} on clean images)" if clean else percent(row)


def _percent(mean: float, std: float | None) -> str:
    spread = "" if std is None else f" ± {100 * std:.1f}"
    return f"{100 * mean:.1f}{spread} %"


def overlap_words(scores: Scores) -> str:
    """How many test images are in train too, in a sentence; "" where there are none, or no test."""
    found = scores.protocol.get("test_images_in_train")
    if not found:
        return ""
    near, total = found["near_identical"], scores.protocol["test"]["images"]
    if total == found["clean"]:
        return "" if near is not None else "Versions of test images in train were not looked for: too many pairs."
    versions = "versions not looked for" if near is None else f"{near:,} nearly identical"
    return (
        f"{total - found['clean']:,} of the {total:,} test images are in train too ({found['identical']:,} identical, "
        f"{versions}), such as {found['examples'][0]}; the clean scores are those on the other {found['clean']:,}."
    )


def holdout_words(scores: Scores) -> str:
    """What was held out of train to score on, in a sentence; "" where nothing was."""
    drawn = scores.protocol.get("holdout")
    if not drawn:
        return ""
    words = (
        f"Held out: {100 * drawn['share']:g} % of each class (seed {drawn['seed']}), {sum(drawn['test'].values()):,} "
        f"images to score on; {sum(drawn['train'].values()):,} are left to learn from"
    )
    groups = drawn["groups_kept_together"]
    if groups:
        together = f"{groups:,} group{'s' * (groups > 1)} of {drawn['images_in_groups']:,} images"
        words += f". Versions of one image are on one side: {together}"
    return f"{words}."


def start_words(scores: Scores) -> str:
    """Which weights training began with, in a sentence; "" for a random initialization."""
    weights = scores.protocol.get("started_from")
    if not weights:
        return ""
    words = f"Training began with the weights {weights}."
    if any(row.method == START for row in scores.rows):
        words += f" The row {START} is the encoder with these, so that the difference is what training added."
    return words


def notes(scores: Scores) -> list[str]:
    """What has to be known to read the scores, in sentences."""
    return [words for words in (start_words(scores), holdout_words(scores), overlap_words(scores)) if words]


def scored_images(scores: Scores) -> str:
    """What the images are that the scores are on."""
    return "images held out" if scores.protocol.get("holdout") else "test images"


def labels_words(labels: int | str) -> str:
    """A number of labels in words, such as "all labels" or "10 labels per class"."""
    if labels == "all":
        return "all labels"
    return f"{labels} label{'' if labels == 1 else 's'} per class"


def score_grid(scores: Scores) -> tuple[list[str], dict[str, list[str]]]:
    """The numbers of labels in words, and the top-1 of each method for each of them ("" where it has none).

    Where test images are in train too, the top-1 on the clean ones stands beside each.
    """
    columns: dict[str, None] = {}
    cells: dict[str, dict[str, str]] = {}
    for row in scores.rows:
        words = labels_words(row.labels_per_class)
        of_row = {words: percent(row)}
        if row.clean_mean is not None:
            of_row[f"{words}, clean"] = clean_percent(row)
        columns |= dict.fromkeys(of_row)
        cells.setdefault(row.method, {}).update(of_row)
    grid = {method: [of_method.get(words, "") for words in columns] for method, of_method in cells.items()}
    return list(columns), grid


def score_table(scores: Scores) -> Table:
    """Top-1, mean ± std over the draws: one row per method, one column per number of labels."""
    columns, grid = score_grid(scores)
    missing = scores.protocol.get("classes_not_in_test")
    title = f"top-1 on the {scored_images(scores)}" + (f", which lack {', '.join(missing)}" if missing else "")
    if scores.protocol.get("started_from"):
        title += f"; training began with {scores.protocol['started_from']}"
    table = Table(title=title)
    table.add_column("method", overflow="fold")
    for words in columns:
        table.add_column(words, justify="right")
    for method, cells in grid.items():
        table.add_row(method, *cells)
    return table


def score_summary(scores: Scores) -> Iterator[Table | str]:
    """What a command prints of the scores: the table, then what has to be known to read it, line by line."""
    if scores.rows:
        yield score_table(scores)
    yield from notes(scores)
    yield from paired_lines(scores)


def paired_lines(scores: Scores) -> Iterator[str]:
    """How far our methods are above each baseline, paired by draw: both saw the same labels in each.

    The last line says what the standard errors do not cover: draws share the test images, the run and some labels.
    """
    rows = {(row.method, row.labels_per_class): row for row in scores.rows}
    errors = 0
    for (name, labels), row in rows.items():
        for baseline in baselines_of(name, scores):
            if (baseline, labels) not in rows or len(row.values) < 2:
                continue
            gain = 100 * np.subtract(row.values, rows[baseline, labels].values)
            error = gain.std(ddof=1) / math.sqrt(len(gain))
            errors += 1
            yield (
                f"{name} - {baseline} with {labels_words(labels)}: {gain.mean():+.1f} points, standard error "
                f"{error:.1f}, above in {int((gain > 0).sum())} of {len(gain)} draws"
            )
    if errors:
        yield PAIRED_COVERS


def compare_table(runs: Iterable[str | os.PathLike[str]]) -> Table:
    """One column per run: policy, loss, encoder, epochs, minutes, last monitored kNN, and its own scores.

    Raises StepclrError for a folder that is not a run, and where two runs were scored on other images or classes.
    """
    scores = {run: stored_scores(run) for run in (Run(Path(path)) for path in runs)}
    _check_alike({run.folder: _scored_on(stored) for run, stored in scores.items() if stored and stored.rows})
    columns = [_facts(run) | _own_scores(stored) for run, stored in scores.items()]
    table = Table(title="runs, and their top-1 on the test images")
    table.add_column("run", no_wrap=True)
    for run in scores:
        table.add_column(str(run.folder), justify="right", overflow="fold")
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "") for column in columns))
    return table


def _facts(run: Run) -> dict[str, str]:
    config, lines = run.config, run.metrics
    last = lines[-1] if lines else {"epoch": 0}
    knn = [line["knn"] for line in lines if "knn" in line]
    unfinished = "" if lines and last["step"] == config.steps else f" of {config.epochs:g}"
    return {
        "policy": config.policy,
        "loss": config.loss,
        "encoder": config.encoder,
        "began with": config.weights or "",
        "images": f"{config.images:,}",
        "epochs": f"{last['epoch']}{unfinished}" if unfinished else f"{config.epochs:g}",
        "minutes": f"{last.get('seconds', 0) / 60:.1f}",
        "monitored kNN": f"{100 * knn[-1]:.1f} %" if knn else "",
    }


def _own_scores(scores: Scores | None) -> dict[str, str]:
    cells = {}
    if scores and not scores.rows:
        cells["scores"] = "of an earlier encoder: evaluate again"
    if scores is None:
        return cells
    for row in scores.rows:
        method = method_of(row.method, scores)
        if method and method.ours:
            cells[f"{row.method}, {labels_words(row.labels_per_class)}"] = percents(row)
    return cells


def _check_alike(scored_on: dict[Path, Json]) -> None:
    """Raise StepclrError unless all runs were scored on the same classes of the same images."""
    for run, test in scored_on.items():
        first = next(iter(scored_on))
        if test != scored_on[first]:
            raise StepclrError(
                f"{first} and {run} cannot be compared: the first was scored on {_test_words(scored_on[first])}, "
                f"the second on {_test_words(test)}; evaluate both on the same images"
            )


def _test_words(test: Json) -> str:
    classes, holdout = test["classes"], test["holdout"]
    words = f"{test['images']:,} images of {test['source']}, {len(classes)} classes from {classes[0]} to {classes[-1]}"
    if holdout:
        words += f", held out with share {holdout['share']:g}, seed {holdout['seed']} ({holdout['names_checksum'][:8]})"
    return words


def _scored_on(scores: Scores) -> Json:
    protocol = scores.protocol
    test, classes, holdout = protocol["test"], protocol["classes"], protocol.get("holdout")
    scored_on = {"source": test["source"], "images": int(test["images"]), "classes": [classes[0], *classes[1:]]}
    # Encoders that take images of other sizes may find other versions, and then hold out other images.
    return scored_on | {"holdout": holdout and {name: holdout[name] for name in ("share", "seed", "names_checksum")}}


def label_curves(scores: Scores) -> dict[str, list[tuple[float, float, float]]]:
    """(labels per class, mean, std) of each method, by rising number of labels; "all" is the mean over the classes."""
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for method in dict.fromkeys(row.method for row in scores.rows):
        rows = [row for row in scores.rows if row.method == method]
        if method_of(method, scores):
            curves[method] = sorted((_labels(row, scores), row.mean, row.std or 0.0) for row in rows)
    return curves


def _labels(row: Score, scores: Scores) -> float:
    protocol = scores.protocol
    if row.labels_per_class == "all":
        return float(protocol["train"]["images"] / len(protocol["classes"]))
    return float(row.labels_per_class)


def label_chart(scores: Scores) -> "Figure":
    """Mean top-1 against the number of labels, one line per method, with the standard deviation over the draws."""
    from matplotlib.figure import Figure  # for this chart alone; without pyplot no screen is needed
    from matplotlib.ticker import PercentFormatter

    protocol = scores.protocol
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log")
    for name, points in label_curves(scores).items():
        x, mean, std = zip(*points, strict=True)
        style = method_of(name, scores)
        assert style is not None
        axes.errorbar(x, mean, std, label=name, color=style.color, marker=style.marker, markersize=5, capsize=3)
    # "all" comes last, and gives its place its name.
    ticks = {_labels(row, scores): str(row.labels_per_class) for row in scores.rows}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xticks([], minor=True)
    axes.set_xlabel("labels per class")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set_ylabel(f"top-1 (mean ± std of {protocol['draws']} draws)")
    title = f"{protocol['test']['images']:,} images of {protocol['test']['source']}"
    if protocol.get("started_from"):
        title += f"\n{START}: {protocol['started_from']}"
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def write_label_chart(scores: Scores, path: Path) -> None:
    """Write `label_chart` as a PNG file, all or nothing."""
    write_whole(path, lambda file: label_chart(scores).savefig(file, format="png", dpi=150))


def loading_snippet(run: str | os.PathLike[str]) -> str:
    """Three lines of Python that load the encoder of `run` and use it, with the encoder's own shape."""
    features = load_encoder(run).num_features
    return (
        "import stepclr\n"
        f"encoder = stepclr.load_encoder({os.fspath(run)!r})\n"
        f"h = encoder(encoder.preprocess(image))  # a PIL image -> [1, {features}]"
    )
