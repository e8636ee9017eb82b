"""Commands that train, and one that prepares data for it: pack, pretrain, finetune, distill.

torch is imported inside them: help is instant.
"""

import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

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
    Sources,
    Switch,
    base_settings,
    given_settings,
    open_source,
    open_train_test,
)
from stepclr.cli.printing import Counter, first_rank, page_of, say, say_next, say_unread
from stepclr.config import CONFIG_FILE, Number, PretrainConfig
from stepclr.data.reading import AS_DECLARED
from stepclr.errors import counted
from stepclr.recipes import RECIPES

PAGE_SECONDS = 5.0  # of --minutes, for report.html


def pack(
    source: Images,
    out: Annotated[Path, arg(metavar="DIR")],
    per_shard: Annotated[int, arg(metavar="N")] = 10_000,
    short_side: Annotated[int | None, arg(metavar="PX", help_behavior_hint="(default: keep every byte)")] = None,
    quality: Annotated[int | None, arg(metavar="1..95", help_behavior_hint="(default: 90 where reduced)")] = None,
    labels: LabelFiles = (),
    classes: Names = None,
    limit: Limit = None,
    reading: Read = AS_DECLARED,
) -> None:
    """Write the images of a source as tar shards with an index and checksums.

    If it is interrupted, run the same command again to resume.

    Args:
        out: Folder for 0000.tar, 0001.tar, ... and their index.
        per_shard: Images per shard.
        short_side: Reduce images with a longer short side to this many pixels, as JPEG. Twice the view size is enough.
        quality: JPEG quality of reduced images, and of images without a file (which are PNG by default).
    """
    from stepclr.data.shards.packing import pack as write_shards
    from stepclr.io import check_writable

    check_writable(out)
    images = open_source(source, classes, limit, reading=reading, labels=labels)
    packed = write_shards(images, out, per_shard, short_side, quality, Counter("images"))
    say_unread(images)
    skipped = f"; {packed.skipped:,} could not be read, see {out / 'skipped.csv'}" if packed.skipped else ""
    say(f"{out}: {counted(packed.images, 'image')} in {counted(packed.shards, 'shard')}{skipped}")
    if images.labeling and any(split for _, split in images.labeling.rows.values()):
        say("shards have no column split: without it, pretrain learns from the images that are for test too; pack only")
        say("those for train, or give the table with --labels to the commands that read the shards")


def pretrain(
    source: Images,
    out: Annotated[Path, arg(metavar="RUN")],
    config: Annotated[PretrainConfig, arg(name="training")],
    recipe: Annotated[str | None, arg(metavar="RECIPE", help_behavior_hint="(default: none)")] = None,
    labels: LabelFiles = (),
    classes: Names = None,
    limit: Limit = None,
    resume: Switch = False,
    profile: Switch = False,
    tensorboard: Switch = False,
) -> None:
    """Pretrain an encoder on images without labels, and write a run folder and its report.

    Args:
        out: Run folder to write.
        config: Training settings; unset ones are chosen from the data.
        recipe: Named settings, which the other options override; stepclr --help lists them.
        resume: Resume the run in --out from its newest checkpoint, or start it if there is none.
        profile: Time the parts of a training step, and print a table of them at the end.
        tensorboard: Also write the metrics as TensorBoard event files, to RUN/tensorboard.
    """
    since = time.monotonic() - PAGE_SECONDS
    import stepclr
    from stepclr.data.sources import open_images
    from stepclr.pretraining.loop import Diverged
    from stepclr.pretraining.run import Run
    from stepclr.tools.scores import loading_snippet

    base = base_settings(recipe, out if resume else None)
    if recipe and first_rank() and not (resume and Run(out).exists()):
        print(f"recipe {recipe}: {RECIPES[recipe].line}", file=sys.stderr)
    images: Any = source
    if labels:
        images = open_images(source, labels=labels, **asdict(config.reading))
    try:
        run = stepclr.pretrain(
            images,
            out,
            recipe=recipe,
            classes=classes or None,
            limit=limit,
            resume=resume,
            profile=profile,
            tensorboard=tensorboard,
            since=since,
            **given_settings(config, base),
        )
    except Diverged:
        page_of(out)  # its health says what went wrong
        raise
    page = page_of(out)
    if page:
        say(page.health)
    say(f"\nthe run is in {out}; to load its encoder:\n\n{loading_snippet(run)}")
    say_next(page)


def finetune(
    run: EncoderName,
    train: Sources,
    test: Annotated[OptionalSources, arg(help_behavior_hint="(default: no score)")] = None,
    holdout: Holdout = None,
    labels: LabelFiles = (),
    labels_per_class: Annotated[str, arg(metavar="N,N%,...,all")] = "all",
    draws: int = 1,
    seed: int = 0,
    start: Annotated[str, arg(name="from", metavar="encoder|head.1|head.2")] = "encoder",
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: RUN/classifier.safetensors)")] = None,
    epochs: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 60, and at least 500 steps)")] = None,
    batch_size: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: a 16th of the images, 32 to 256)")
    ] = None,
    optimizer: Annotated[str, arg(metavar="{sgd,lars}")] = "sgd",
    lr: Annotated[float | None, arg(metavar="RATE", help_behavior_hint="(default: 0.05 sgd, 0.08 lars)")] = None,
    min_area: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="(default: the run's)")] = None,
    reading: Read = AS_DECLARED,
    zero_init: Switch = False,
) -> None:
    """Fine-tune a run's encoder into a classifier with few labels.

    Args:
        train: Labeled images to train on.
        test: Labeled images to score on; their labels are read once, at the end. Without it, those that the column
            split of --labels says are for test.
        labels_per_class: Labels per class to learn from: a list such as 1,10,all or, as shares of each class, 1%,10%.
        draws: Number of random draws of the labels to score.
        seed: Seed of the holdout, the draws and the training.
        start: encoder; or head.1 or head.2 to keep that many layers of the projection head.
        out: File for the classifier: the one trained with the most labels, on the first draw.
        epochs: Passes over the chosen images.
        batch_size: Images in a batch.
        optimizer: sgd, as in SimCLR, or lars, as in SimCLRv2.
        lr: Peak learning rate at batch 256; scaled by the square root of the batch size.
        min_area: Smallest crop, as a share of the image's area.
        zero_init: Start the linear layer at 0 instead of at random.
    """
    options = dict(locals())  # under the names of the library's arguments
    import stepclr
    from stepclr.evaluation.splits import labels_words
    from stepclr.tools.notes import scored_images
    from stepclr.tools.report.classifier import is_a_guess
    from stepclr.tools.report.writing import classifier_page
    from stepclr.tools.scores import measures_words, score_summary, shown_measures

    holds_out = holdout is None
    reading = options.pop("reading")
    options["train"], options["test"] = open_train_test(train, test, options.pop("labels"), reading, holds_out)
    counter = Counter("steps")
    scores = stepclr.finetune(**options, progress=counter, announce=counter.announce)
    say_unread(options["train"], options["test"])
    for part in score_summary(scores):
        say(part)
    made = scores.protocol["classifier"]
    label_words = labels_words(made["labels_per_class"], made["labels"])
    if made["labels_per_class"] == "all":  # but for those held out
        label_words += f" ({made['labels']:,})"
    say(f"{made['file']}: classifier trained with {label_words}, draw {made['draw'] + 1}")
    if made["top1"] is not None:
        file, count = Path(made["file"]).name, scores.protocol["test"]["images"]
        measures = measures_words(made, shown_measures(scores))
        say(f"{file}: {measures} on the {count:,} {scored_images(scores)}")
        if is_a_guess(scores):
            say("this is no better than always naming the most frequent class")
    classifier = out or Path(made["file"])
    if (run / CONFIG_FILE).is_file() and Path(made["file"]).parent.samefile(run):
        page_of(run)
        classifier = out or run
    else:
        say(f"report written to {classifier_page(scores, str(run))}")
    words = ["stepclr", "predict", str(classifier), "NEW_IMAGES", "--out", "predictions.csv"]
    say(f"\nClassify new images:\n    {shlex.join(words)}")


def distill(
    classifier: Positional[Annotated[Path, arg(metavar="CLASSIFIER")]],
    source: Images,
    out: Annotated[Path, arg(metavar="RUN")],
    student: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: resnet18)")] = None,
    weights: Annotated[
        str | None, arg(metavar="RUN|FILE|timm:NAME", help_behavior_hint="(default: a new initialization)")
    ] = None,
    mean_std: Annotated[str | None, arg(metavar="MEAN_STD", help_behavior_hint="(default: the weights' own)")] = None,
    epochs: Annotated[Number | None, arg(metavar="N", help_behavior_hint="(default: 100)")] = None,
    minutes: Annotated[
        Number | None, arg(metavar="M", help_behavior_hint="(default: as long as the epochs take)")
    ] = None,
    batch_size: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 256)")] = None,
    lr: Annotated[float | None, arg(metavar="RATE", help_behavior_hint="(default: 0.12 at batch 256)")] = None,
    temperature: Annotated[float | None, arg(metavar="T", help_behavior_hint="(default: 1)")] = None,
    seed: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 0)")] = None,
    monitor: Annotated[str | None, arg(metavar="SOURCE", help_behavior_hint="(default: the source itself)")] = None,
    limit: Limit = None,
    resume: Switch = False,
    reading: Read = AS_DECLARED,
) -> None:
    """Train a student on a classifier's predictions for unlabeled images (SimCLRv2's third stage).

    Args:
        classifier: The teacher that stepclr finetune wrote: a file, or a run's folder.
        out: The run's folder; its classifier.safetensors is for stepclr predict.
        student: The student's encoder: resnet10 to resnet200, or any timm name.
        weights: Start the student from a run, a checkpoint file or timm:NAME.
        mean_std: Normalize images by imagenet, none, or six numbers with commas (three of mean, three of std).
        epochs: Passes over the images.
        minutes: Instead of epochs: how long the run may take on this machine, with everything that it does.
        batch_size: Images in a batch.
        lr: Peak learning rate at batch 256.
        temperature: Temperature T of both softmaxes.
        seed: Seed of the initialization, the batch order and the views.
        monitor: Labeled images for the kNN score during training.
        resume: Resume the run in --out from its newest checkpoint, or start it if there is none.
    """
    options = dict(locals())
    options |= asdict(options.pop("reading"))
    options = {name: value for name, value in options.items() if value is not None}  # the others have defaults
    since = time.monotonic() - PAGE_SECONDS
    import stepclr

    stepclr.distill(images=options.pop("source"), since=since, **options)
    page = page_of(out)
    say(f"\nthe run is in {out}")
    say_next(page)
