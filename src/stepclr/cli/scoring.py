"""Commands that use what was trained: evaluate, compare, predict, embed, export. They import torch when they run."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from stepclr.cli.arguments import (
    EncoderName,
    Holdout,
    Images,
    LabelFiles,
    Limit,
    Names,
    OptionalSources,
    Read,
    Source,
    Sources,
    Switch,
    check_apart,
    image_format,
    open_source,
    open_train_test,
    write_image,
)
from stepclr.cli.printing import Counter, page_of, say, say_next, say_unread
from stepclr.config import CONFIG_FILE
from stepclr.data.reading import AS_DECLARED
from stepclr.errors import StepclrError


def evaluate(
    run: EncoderName,
    train: Sources,
    test: Annotated[OptionalSources, arg(help_behavior_hint="(or --holdout, or a split)")] = None,
    holdout: Holdout = None,
    labels: LabelFiles = (),
    labels_per_class: Annotated[str, arg(metavar="N,N%,...,all")] = "all",
    draws: int = 5,
    seed: int = 0,
    probe: str = "linear,knn",
    baselines: str = "pixels,random",
    scratch_steps: int = 1000,
    finetune: Switch = False,
    knn_k: int = 20,
    knn_temperature: float = 0.1,
    seeds: Annotated[tuple[Path, ...], arg(metavar="RUN ...", help_behavior_hint="(default: none)")] = (),
    reading: Read = AS_DECLARED,
) -> None:
    """Evaluate a run's frozen encoder with few labels and compare it with baselines.

    Writes evaluation.json into the run and, for two or more numbers of labels, a chart of them, evaluation.png.

    Args:
        train: Labeled images to train on.
        test: Labeled images to score on; their labels are read once, at the end. Without it, those that the column
            split of --labels says are for test.
        labels_per_class: Labels per class to learn from: a list such as 1,10,all or, as shares of each class, 1%,10%.
        draws: Number of random draws of the labels to score.
        seed: Seed of the holdout, the draws and the baselines' initializations.
        probe: Probes of the frozen encoder: linear (on its features), knn, sgd (linear layer trained on crops and flips
            as in SimCLR App. B.6; slow).
        baselines: Baselines to compare with: pixels, random (untrained; where training began with weights, start: those
            weights), scratch (supervised, slow), other encoders such as timm:NAME or a run; or none.
        scratch_steps: Training steps of scratch, of 32 images each.
        finetune: Also score fine-tuning with the same labels (slow).
        knn_k: Nearest neighbors that vote in the probe knn.
        knn_temperature: Temperature of their votes.
        seeds: Runs that differ in their seed alone: adds the mean and the spread over pretraining seeds.
    """
    options = dict(locals())  # under the names of the library's arguments
    import stepclr
    from stepclr.evaluation.results import EVALUATION
    from stepclr.tools.label_chart import write_label_chart
    from stepclr.tools.scores import score_summary

    holds_out = holdout is None
    reading = options.pop("reading")
    options["train"], options["test"] = open_train_test(train, test, options.pop("labels"), reading, holds_out)
    options["baselines"] = "" if baselines == "none" else baselines
    counter = Counter()
    scores = stepclr.evaluate(**options, progress=counter, announce=counter.announce, left=counter.left)
    say_unread(options["train"], options["test"])
    for part in score_summary(scores):
        say(part)
    if run.is_dir():
        say(f"protocol and every value: {run / EVALUATION}")
    chart = run / "evaluation.png"
    if run.is_dir() and len(scores.protocol["labels_per_class"]) > 1:
        write_label_chart(scores, chart)
        say(f"chart: {chart}")
    elif run.is_dir():
        chart.unlink(missing_ok=True)  # that of an earlier evaluation
    if (run / CONFIG_FILE).is_file():
        say_next(page_of(run))


def compare(
    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN", help_behavior_hint="(one or more)")]],
) -> None:
    """Compare runs: policy, loss, encoder, epochs, minutes, and scores with their spread.

    Args:
        runs: The runs' folders.
    """
    from stepclr.tools.compare import compare_table

    if not runs:
        raise StepclrError("compare takes the folders of runs: stepclr compare runs/a runs/b")
    say(compare_table(runs))


def predict(
    classifier: Positional[Annotated[Path, arg(metavar="CLASSIFIER")]],
    source: Images,
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: the screen)")] = None,
    sort: Switch = False,
    sheet: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="(default: none)")] = None,
    limit: Limit = None,
    reading: Read = AS_DECLARED,
) -> None:
    """Predict the class of images, with the probability of every class.

    Without --out, the first 20 images are shown on the screen.

    Args:
        classifier: The classifier that stepclr finetune wrote: a file, or a run's folder.
        out: File to write, with the probability of every class: .csv, .parquet, .json.
        sort: Put the least certain images first: the probabilities of their best two classes differ least.
        sheet: Also draw a contact sheet: of each predicted class the most and the least certain images.
    """
    from stepclr.evaluation.predict import COLUMNS, classify
    from stepclr.io import check_same_table, check_table, check_writable
    from stepclr.tools.predicted import SCREEN_ROWS, labeled_words, prediction_sheet, prediction_table

    if out:
        check_table(out)
    format = image_format(sheet, "--sheet") if sheet else ""
    for file in filter(None, (out, sheet)):
        check_writable(file)
    if out:
        check_same_table(out, COLUMNS)
    if sheet:
        check_apart(sheet, source, "--sheet")
    images = open_source(source, limit=limit, reading=reading, labels_elsewhere=True)
    predictions = classify(classifier, images, Counter("images"))
    if sort:
        predictions = predictions.least_certain_first()
    say_unread(images)
    rows, skipped = len(predictions.images), predictions.skipped
    if out:
        predictions.write(out)
        say(f"{out}: {rows:,} predictions{_unreadable(skipped, out.with_suffix('.skipped.csv'))}")
    else:
        say(prediction_table(predictions))
        if rows > SCREEN_ROWS:
            say(f"{SCREEN_ROWS} of {rows:,} images are shown; --out FILE.csv writes all, and every probability")
    if agreement := labeled_words(predictions):
        say(agreement)
    if sheet:
        write_image(sheet, prediction_sheet(predictions), format)
        say(f"{sheet}: the most and the least certain images of each class")


def embed(
    run: EncoderName,
    source: Images,
    out: Annotated[Path, arg(metavar="FOLDER|FILE")],
    labels: LabelFiles = (),
    classes: Names = None,
    limit: Limit = None,
    precision: str = "fp32",
    reading: Read = AS_DECLARED,
) -> None:
    """Write the representations of all images of a source, with their paths and labels.

    A folder becomes an index for search and find; running the command again updates it and embeds only new images.

    Args:
        out: Folder of the index, or file to write: .parquet, .npz.
        precision: Precision of the encoder: fp32, bf16.
    """
    from stepclr.io import check_writable
    from stepclr.tools.search.table import build_index, write_embeddings

    check_writable(out)
    images = open_source(source, classes, limit, reading, labels)
    if out.suffix and not out.is_dir():
        written = write_embeddings(run, images, out, precision, Counter("images"))
        say_unread(images)
        say(f"{out}: {written.rows:,} embeddings{_unreadable(written.skipped, out.with_suffix('.skipped.csv'))}")
        return
    built = build_index(run, images, out, precision, Counter("images"))
    say_unread(images)
    say(
        f"{out}: {built.rows:,} embeddings, {built.added:,} of them new, {built.removed:,} removed"
        + _unreadable(built.skipped, out / "skipped.csv")
        + (f"; approximate search, recall at 10 {built.recall:.3f}" if built.recall is not None else "")
    )


def export(
    run: Positional[Annotated[Path, arg(metavar="RUN|FILE|timm:NAME")]],
    out: Annotated[Path, arg(metavar="FILE|FOLDER")],
    format: Literal["safetensors", "torchvision", "timm", "onnx", "torch-export"] = "onnx",
    check: Source = "sample:test",
) -> None:
    """Export the encoder for other programs, check it against the original, and write a card that describes it.

    Args:
        run: A run's folder, an encoder.safetensors, a classifier file, or timm:NAME.
        out: File to write, or a folder to put it in; the card is FILE.md next to it.
        format: Format of the file. onnx and torch-export include the preprocessing and take uint8 images.
        check: Images on which to compare the exported file with the original (at most 64).
    """
    import stepclr

    done = stepclr.export(run, out, format, check)
    say(f"{done.path}: the same as the original; {done.parity}")
    say(f"{done.card}: how to load it, data, recipe, scores, limits")


def _unreadable(skipped: int, where: Path) -> str:
    return f"; {skipped:,} images could not be read, see {where}" if skipped else ""
