"""What a run scored: evaluation.json as tables and lines, and the lines of Python that load the encoder."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file

from stepclr.errors import StepclrError, fault_of
from stepclr.evaluation.results import EVALUATION, Score, Scores
from stepclr.evaluation.splits import labels_words
from stepclr.evaluation.stored import read_scores
from stepclr.metrics import in_percent
from stepclr.model.files import load_encoder, state_checksum
from stepclr.model.weights import ENCODER_FILE
from stepclr.pretraining.run import Run
from stepclr.tools.gains import gains_of
from stepclr.tools.methods import method_of
from stepclr.tools.notes import is_unbalanced, notes, scored_images, test_counts

Json = dict[str, Any]


def stored_scores(run: Run, to_compare: bool = False) -> Scores | None:
    """evaluation.json of the run, or None where there is none. Raises StepclrError if it is corrupt.

    to_compare: see `read_scores`. Scores of an encoder that the run has since trained further have no rows.
    """
    path = run.folder / EVALUATION
    try:
        scores = read_scores(path, to_compare=to_compare)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        # Whatever the tables and the chart read is read once here, so that a corrupt file is named before any output.
        for row in scores.rows:
            percent(row), labels_words(row.labels_per_class, row.labels)
        scored_on(scores), score_table(scores), class_table(scores), list(paired_lines(scores))
        scored = (scores.protocol.get("encoder_sha256") or {}).get("after")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StepclrError(f"{path} is corrupt: {fault_of(error)}") from None
    trained_on = scored is not None and (scored != encoder_checksum(run) or (run.exists() and run.interrupted))
    return Scores([], scores.protocol) if trained_on else scores


def encoder_checksum(run: Run) -> str | None:
    """The checksum of the run's encoder; None where there is none, or it cannot be read."""
    try:
        return state_checksum(load_file(run.folder / ENCODER_FILE))
    except (SafetensorError, OSError):
        return None


MEASURES = {"top1": "top-1", "top5": "top-5", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}
LISTED = 20  # classes in the table of their accuracies
PAIRED_COVERS = "the standard errors cover the draws of the labels, not other test images or another pretraining seed"


def percent(row: Score, measure: str = "top1", clean: bool = False) -> str:
    """A measure of a row of evaluation.json, such as "76.5 ± 1.0 %": mean and, where there are several draws, std.

    clean: on the test images that are not in train too. "" where there is no such figure.
    """
    summary = row.summary(measure, clean)
    return "" if summary is None else in_percent(summary.mean, summary.std)


def percents(row: Score, measure: str = "top1") -> str:
    """`percent`, followed by that on clean images where not all are."""
    clean = percent(row, measure, clean=True)
    return f"{percent(row, measure)} ({clean} on clean images)" if clean else percent(row, measure)


def measures_for(counts: Iterable[int]) -> list[str]:
    """The measures that a reader needs for classes with these numbers of images; unbalanced ones need more."""
    return list(MEASURES) if is_unbalanced(counts) else ["top1", "top5"]


def shown_measures(scores: Scores) -> list[str]:
    """The measures that a reader needs of these scores, as far as they have them."""
    wanted = measures_for(test_counts(scores).values())
    return [name for name in wanted if any(row.summary(name) for row in scores.rows)]


def measures_words(values: dict[str, Any], shown: Iterable[str]) -> str:
    """Measures in words, such as "top-1 76.5 %, balanced accuracy 60.1 %, macro F1 58.2 %"."""
    return ", ".join(f"{MEASURES[name]} {in_percent(values[name])}" for name in shown if values.get(name) is not None)


def score_grid(scores: Scores, measure: str = "top1") -> tuple[list[str], dict[str, list[str]]]:
    """The numbers of labels in words, and a measure of each method for each of them ("" where it has none).

    Where test images are in train too, the measure on the clean ones stands beside each.
    """
    columns: dict[str, None] = {}
    cells: dict[str, dict[str, str]] = {}
    for row in scores.rows:
        words = labels_words(row.labels_per_class, row.labels)
        of_row = {words: percent(row, measure)}
        if row.clean_mean is not None:
            of_row[f"{words}, clean"] = percent(row, measure, clean=True)
        columns |= dict.fromkeys(of_row)
        cells.setdefault(row.method, {}).update(of_row)
    grid = {method: [of_method.get(words, "") for words in columns] for method, of_method in cells.items()}
    return list(columns), grid


def score_table(scores: Scores) -> Table:
    """The measures that a reader needs, mean ± std over the draws: a section per number of labels, a row per method.

    Where test images are in train too, top-1 on the clean ones stands beside it.
    """
    measures = shown_measures(scores) or ["top1"]
    missing = scores.protocol.get("classes_not_in_test")
    what = MEASURES[measures[0]] if len(measures) == 1 else "scores"
    title = f"{what} on the {scored_images(scores)}" + (f", which lack {', '.join(missing)}" if missing else "")
    if scores.protocol.get("started_from"):
        title += f"; training began with {scores.protocol['started_from']}"
    has_clean = any(row.clean_mean is not None for row in scores.rows)
    heads = [MEASURES[name] for name in measures]
    table = Table(title=title)
    table.add_column("labels", no_wrap=True)
    table.add_column("method", overflow="fold")
    if has_clean:
        heads.insert(1, "clean")
    for head in heads:
        table.add_column(head, justify="right")

    sections: dict[str, list[Score]] = {}
    for row in scores.rows:
        sections.setdefault(labels_words(row.labels_per_class, row.labels), []).append(row)
    for labels, rows in sections.items():
        for row in rows:
            cells = [percent(row, name) for name in measures]
            if has_clean:
                cells.insert(1, percent(row, measures[0], clean=True))
            table.add_row(labels if row is rows[0] else "", row.method, *cells, end_section=row is rows[-1])
    return table


def class_table(scores: Scores) -> Table | None:
    """The accuracy of each class, lowest first, of the run's own method with the most labels; at most LISTED classes.

    None where the classes hardly differ in size, neither in test nor in train.
    """
    row = own_row(scores)
    counts = scores.protocol.get("images_per_class") or {"train": {}}
    unbalanced = is_unbalanced(test_counts(scores).values()) or is_unbalanced(counts["train"].values())
    if row is None or not row.per_class or not unbalanced:
        return None
    lowest = sorted(row.per_class.items(), key=lambda item: item[1].mean)[:LISTED]
    these = "each class" if len(lowest) == len(row.per_class) else f"the {len(lowest)} lowest classes"
    table = Table(title=f"accuracy of {these}: {row.method}, {labels_words(row.labels_per_class, row.labels)}")
    table.add_column("class", overflow="fold")
    for head in ("training images", scored_images(scores), "accuracy"):
        table.add_column(head, justify="right")
    for name, of_class in lowest:
        table.add_row(
            name, f"{counts['train'][name]:,}", f"{of_class.images:,}", in_percent(of_class.mean, of_class.std)
        )
    return table


def own_row(scores: Scores) -> Score | None:
    """The row of the first of the run's own methods, with the most labels that it had; None where there is none."""
    rows: dict[str, list[Score]] = {}
    for row in scores.rows:
        method = method_of(row.method, scores)
        if method and method.ours:
            rows.setdefault(row.method, []).append(row)
    first = next(iter(rows.values()), [])
    return max(first, key=lambda row: row.labels or 0, default=None)


def score_summary(scores: Scores) -> Iterator[Table | str]:
    """What a command prints of the scores: the table, then what has to be known to read it, line by line."""
    if scores.rows:
        yield score_table(scores)
    of_classes = class_table(scores)
    if of_classes:
        yield of_classes
    yield from notes(scores)
    yield from paired_lines(scores)


def paired_lines(scores: Scores) -> Iterator[str]:
    """How far our methods are above each baseline, paired by draw: both saw the same labels in each.

    Where the classes are unbalanced, the difference in balanced accuracy follows that in top-1. The last line says what
    the standard errors do not cover: draws share the test images, the run and some labels.
    """
    lines = [line for row in scores.rows for line in _paired_lines(row, scores)]
    yield from [*lines, PAIRED_COVERS] if lines else []


def _paired_lines(row: Score, scores: Scores) -> Iterator[str]:
    compared = ["top1"]
    if is_unbalanced(test_counts(scores).values()):
        compared.append("balanced_accuracy")
    labels = labels_words(row.labels_per_class, row.labels)
    clean = "" if row.clean_mean is None else ", on clean images"
    for measure in compared:
        of_measure = "" if measure == "top1" else f", {MEASURES[measure]}"
        for gain in gains_of(row, scores, measure):
            if gain.error is not None:
                yield (
                    f"{row.method} - {gain.over} with {labels}{of_measure}{clean}: {gain.mean:+.1f} points, standard "
                    f"error {gain.error:.1f}, above in {gain.above} of {len(row.values)} draws"
                )


def scored_on(scores: Scores) -> Json:
    """The images and the classes that the scores are on, and the labeled images that were learned from."""
    protocol = scores.protocol
    test, classes, holdout = protocol["test"], protocol["classes"], protocol.get("holdout")
    train = protocol.get("train")  # earlier versions may not have it
    images_and_classes = {
        "source": test["source"],
        "images": int(test["images"]),
        "classes": [classes[0], *classes[1:]],
        "train": train and {"source": train["source"], "images": int(train["images"])},
    }
    # Encoders that take images of other sizes may find other versions, and then hold out other images.
    return images_and_classes | {
        "holdout": holdout and {name: holdout[name] for name in ("share", "seed", "names_checksum")}
    }


def loading_snippet(run: str | os.PathLike[str]) -> str:
    """Three lines of Python that load the encoder of `run` and use it, with the encoder's own shape."""
    features = load_encoder(run).num_features
    return (
        "import stepclr\n"
        f"encoder = stepclr.load_encoder({os.fspath(run)!r})\n"
        f"h = encoder(encoder.preprocess(image))  # a PIL image -> [1, {features}]"
    )
