"""`evaluate`: an encoder, labeled images to learn from and others to score on -> evaluation.json.

All predictions are made first; then the labels of the test images are read, once, so nothing can be chosen on them.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from stepclr.data.images import ImageSet
from stepclr.data.reading import channels_words, readable_as
from stepclr.data.sources import Source, open_train_test
from stepclr.device import beside, default_device
from stepclr.distributed import World, join
from stepclr.errors import StepclrError, check_number, check_used, check_whole, choose
from stepclr.evaluation import linear
from stepclr.evaluation.baselines import START, pixels, start_encoder, started_from
from stepclr.evaluation.holdout import check_holdout
from stepclr.evaluation.methods import METHODS, Method, Task, fits, method
from stepclr.evaluation.prepare import PreparedImages, prepare, represented_by, training_defaults
from stepclr.evaluation.results import EVALUATION, Predictions, Scores, first_confusion, score
from stepclr.evaluation.running import Running
from stepclr.evaluation.seeds import OF_THE_RUN, OneOrMore, other_seeds, over_seeds
from stepclr.evaluation.splits import (
    LabelsPerClass,
    Split,
    check_draws,
    label_splits,
    labels_words,
    parse_labels_per_class,
)
from stepclr.evaluation.work import Work, expected_sizes
from stepclr.io import check_writable
from stepclr.metrics import KNN_TEMPERATURE, NEIGHBORS
from stepclr.model.encoder import Encoder
from stepclr.model.files import load_encoder, state_checksum
from stepclr.model.timm_weights import from_anywhere, timm_name
from stepclr.pretraining.run import Run
from stepclr.threads import Announce, Progress, silent

PROBES = {"linear": "simclr", "sgd": "sgd", "knn": "knn"}  # and the method that each adds to the table
SCRATCH_STEPS, DRAWS = 1000, 5
BASELINES = ("pixels", "random", "scratch")  # or another encoder; or START, where training began with weights
READY = ("simclr", "knn")  # methods whose features there are from the start
Named = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]  # a name, or one string with commas, or several
Json = dict[str, Any]


@dataclass(frozen=True)
class _Given:
    """The arguments of `evaluate` that every run of it shares, and the process group."""

    train: ImageSet
    test: ImageSet | None
    holdout: float | None
    per_class: list[LabelsPerClass]
    draws: int
    seed: int
    scratch_steps: int
    knn_k: int
    knn_temperature: float
    progress: Progress
    announce: Announce
    left: Callable[[float], object]
    module: nn.Module | None
    world: World
    seeds: int
    """How many runs besides the first are scored."""


@dataclass(frozen=True)
class _Shared:
    """What the first run leaves to those with other seeds: the prepared images, and the count of all work."""

    images: PreparedImages
    work: Work


def evaluate(
    run: str | os.PathLike[str],
    train: Source,
    test: Source | None = None,
    labels_per_class: LabelsPerClass | Sequence[LabelsPerClass] = "all",
    draws: int = DRAWS,
    seed: int = 0,
    *,
    holdout: float | None = None,
    probe: str | Iterable[str] = ("linear", "knn"),
    baselines: Named = ("pixels", "random"),
    scratch_steps: int = SCRATCH_STEPS,
    finetune: bool = False,
    knn_k: int = NEIGHBORS,
    knn_temperature: float = KNN_TEMPERATURE,
    seeds: OneOrMore = (),
    progress: Progress | None = None,
    announce: Announce | None = None,
    left: Callable[[float], object] | None = None,
    module: nn.Module | None = None,
) -> Scores:
    """Scores of a run's frozen encoder with few labels, compared with baselines (SimCLR section 4, App. B).

    Args:
        run: a run's folder, where the result is written as `evaluation.json`; or an encoder file or "timm:NAME".
        train, test: labeled images to learn from and to score on, anything `open_images` takes. Without `test`, those
            of train that a table's column `split` holds out. Images without a label are left out and counted; so are
            those outside the classes that were chosen for pretraining, if any.
            `protocol["classes_not_in_test"]` lists the classes that test has no image of.
        holdout: instead of test, the share of train to hold out and score on, such as 0.2: as much of each class, drawn
            from `seed`; images that are identical or versions of each other stay on one side. All methods, draws and
            runs have the same images, which `protocol["holdout"]` counts.
        labels_per_class: a count, a share such as "1%" of the labels of each class (rounded, at least one), "all", or
            several of them (a sequence, or one string with commas).
        draws: how many random label splits to score for each of `labels_per_class`; for "all" there is one.
        seed: of the holdout, the splits and the baselines' initializations, 0 or above.
        probe: any of "linear" (linear evaluation by L-BFGS on stored features, method simclr), "sgd" (linear evaluation
            as in SimCLR App. B.6: 90 epochs of SGD on crops and flips, method sgd; slow) and "knn" (weighted kNN,
            method knn; always also scored with all labels).
        baselines: any of "pixels" and "random" (linear evaluation of raw pixels and of an untrained encoder),
            "scratch" (supervised training; slow), and other encoders, each with its own preprocessing: "timm:NAME", a
            run or an encoder file. Where training began with `weights`, "random" becomes "start": those weights.
        scratch_steps: optimizer steps of 32 images that scratch trains for.
        finetune: score fine-tuning on the same splits too (method finetuned), with the defaults of `stepclr.finetune`.
        knn_k, knn_temperature: the k nearest neighbors of weighted kNN and the temperature of their weights.
        seeds: the folder of a run, or of several, that differ from `run` in their seed alone. They are scored on the
            same splits, and rows such as "simclr over 3 seeds" are added, whose values are each run's mean over the
            splits: their `std` is the spread over pretraining seeds. Nothing is written into these folders.
        progress: called with (done, total) after each split of each method, of each run anew.
        announce: called with what is done next in words, such as "random, 10 labels per class, draw 3 of 5"; of small
            networks that are trained side by side, by their threads.
        left: called with about how many seconds are left, often; like `progress` by several threads, in turn.
        module: where the run was pretrained with your own module, such a module; it receives the weights.

    Returns the scores: a `Score` for each method and number of labels, with top-1, balanced accuracy, macro F1, the
    accuracy of each class, and top-5 from 20 classes up; and the protocol, whose "confusion" reports which classes the
    run's own method confuses with the most labels it had. `to_dict()` is `evaluation.json`.

    Test images that are in train too are counted in the protocol, and each score has a clean one without them.

    Raises StepclrError for an unknown name, a class that test has and train lacks, a class with too few labels, a test
    set that is all in train, and a holdout that leaves a class without an image on one side; RuntimeError if the
    encoder changed meanwhile, or a linear layer did not converge.
    """
    per_class = parse_labels_per_class(labels_per_class)
    names = _method_names(probe, baselines, finetune)
    of_the_run = [name for name in names if name in OF_THE_RUN]
    others = other_seeds(run, seeds)
    if others and not of_the_run:
        raise StepclrError(f"seeds need a probe, or finetune: there is no score of {os.fspath(run)} itself")
    check_draws(draws, DRAWS, per_class)
    check_whole("seed", seed, 0)
    check_whole("scratch_steps", scratch_steps, 1)
    check_whole("knn_k", knn_k, 1)
    check_number("knn_temperature", knn_temperature, above=0)
    check_used("scratch_steps", scratch_steps != SCRATCH_STEPS, "scratch" in names, "baselines=scratch")
    check_used("knn_k", knn_k != NEIGHBORS, "knn" in names, "probe=knn")
    check_used("knn_temperature", knn_temperature != KNN_TEMPERATURE, "knn" in names, "probe=knn")
    check_holdout(test, holdout)
    train, test = open_train_test(train, test, holds_out=holdout is None)
    if test is None and holdout is None:
        raise StepclrError("there is nothing to score on; give test, or holdout=0.2 to hold out a fifth of train")
    said = progress or silent, announce or silent, left or silent
    given = _Given(
        train, test, holdout, per_class, draws, seed, scratch_steps, knn_k, knn_temperature, *said, module, join(),
        len(others),
    )  # fmt: skip
    folder = Run(Path(run))
    if folder.folder.is_dir() and given.world.first:
        check_writable(folder.folder)
    scores, shared = _evaluate(folder, names, given)
    if others:
        # Runs that differ in their seed see the same images: only the first opens and compares them.
        of_others = [_evaluate(other, of_the_run, given, shared)[0] for other in others]
        scores.rows.extend(over_seeds([scores, *of_others]))
        scores.protocol["seeds"] = {str(each.folder.resolve()): each.config.seed for each in [folder, *others]}
    given.left(0.0)
    if folder.folder.is_dir() and given.world.first:
        folder.write(EVALUATION, scores.to_json())
    return scores


def _evaluate(run: Run, names: list[str], given: _Given, shared: _Shared | None = None) -> tuple[Scores, _Shared]:
    """The scores of one run by the methods of these names; nothing is written. shared: of a run with another seed."""
    encoder = load_encoder(run, given.module).to(default_device())
    before = state_checksum(encoder.state_dict())
    weights = started_from(run, encoder)
    names, others = _other_encoders(names, run, encoder, weights)
    given.announce("the images and their representations")
    min_area, bf16, flip = training_defaults(run)
    if shared is None:
        theirs = [name for name, other in others.items() if other is not encoder]
        counts = len(given.train.classes), encoder.num_features, pixels(encoder).num_features, given.scratch_steps
        work = Work(given.left, *counts, theirs, bf16, given.world.size, given.seeds)
        images = _prepared(encoder, names, given, work)
    else:
        # The first run's work counts that of all.
        work = shared.work
        images = represented_by(encoder, shared.images, given.world, work.images(work.represented))
    knn = given.knn_k, given.knn_temperature
    task = Task(encoder, others, images, given.seed, given.scratch_steps, *knn, min_area, bf16, flip)

    # kNN takes no time and has nothing to choose, so it is always scored with all labels too.
    splits = dict.fromkeys(names, images.splits)
    if "knn" in splits:
        with_all = list(dict.fromkeys([*given.per_class, "all"]))
        splits["knn"] = label_splits(images.train.labels, images.classes, with_all, given.draws, given.seed)
    if shared is None:
        sizes = {name: [(split.number, len(split.indices)) for split in own] for name, own in splits.items()}
        work.expect(sizes, len(images.train), len(images.test))
    predictions, methods = _predict(task, splits, given, work)
    after = state_checksum(encoder.state_dict())
    if after != before:
        raise RuntimeError("the encoder's weights or buffers changed while it was evaluated; its scores are not valid")

    labels = {split.labels_per_class: len(split.indices) for of_method in splits.values() for split in of_method}
    truth = images.test.labels  # the one place that reads them
    rows = [
        score(name, budget, labels[budget], [fit.ranked for fit in fits], truth, images.clean, images.classes)
        for (name, budget), fits in predictions.items()
    ]
    whose = OF_THE_RUN if timm_name(run) is None else (os.fspath(run), *OF_THE_RUN)
    protocol = {
        "run": from_anywhere(run),
        "started_from": weights,
        "interrupted": _interrupted(run),
        **images.known_to(run, sorted(others.keys() - {START}), encoder),
        "encoder": {"name": encoder.name, "stem": encoder.stem, "size": encoder.size},
        "encoder_sha256": {"before": before, "after": after},
        "test_size": encoder.test_size,
        "representation": f"{encoder.num_features} features, float32, eval mode, {encoder.resizing}",
        **images.protocol,
        "linear_evaluation": linear.SETTINGS,
        "methods": methods,
        "confusion": first_confusion(predictions, labels, whose, truth, images.classes, images.test.names),
    }
    return Scores(rows, protocol), _Shared(images, work)


def _interrupted(run: Run) -> Json | None:
    """How far a run has come that was extended and has not ended: its encoder is the one of before."""
    if not run.exists() or not run.interrupted:
        return None
    config = run.config
    return {"done": run.metrics[-1]["step"] / config.steps_per_epoch, "epochs": config.epochs}


def _prepared(encoder: Encoder, names: list[str], given: _Given, work: Work) -> PreparedImages:
    """The images with h by the encoder."""
    n, m = len(given.train), 0 if given.test is None else len(given.test)
    sizes = expected_sizes(given.per_class, given.draws, n, len(given.train.classes))
    work.expect(dict.fromkeys(names, sizes), n, m, opened=n + m)
    drawing = given.per_class, given.draws, given.seed, given.holdout
    counted = work.images(work.decoded), work.images(work.represented)
    return prepare(encoder, given.train, given.test, *drawing, given.world, given.announce, *counted)


def _method_names(probe: str | Iterable[str], baselines: Named, finetune: bool) -> list[str]:
    """The methods to score, in the order of the table; other encoders come after the baselines."""
    wanted = [PROBES[name] for name in _names("probe", probe, PROBES)] + _names(
        "baseline", baselines, (*BASELINES, START)
    )
    if finetune:
        wanted.append("finetuned")
    if not wanted:
        raise StepclrError(f"no probe and no baseline to score; there are: {', '.join([*PROBES, *BASELINES])}")
    known = [name for name in METHODS if name in wanted]
    of_the_run = [name for name in known if name in OF_THE_RUN]
    others = [name for name in wanted if name not in METHODS]
    return list(dict.fromkeys([*known[: len(known) - len(of_the_run)], *others, *of_the_run]))


def _names(what: str, given: Named, choices: Iterable[str]) -> list[str]:
    if isinstance(given, str):
        given = given.split(",") if given else ()
    names = []
    for each in [given] if isinstance(given, os.PathLike) else given:
        name = os.fspath(each).strip()
        is_encoder = name not in METHODS and (timm_name(name) is not None or os.path.exists(name))
        names.append(name if is_encoder and what == "baseline" else choose(what, name, choices))
    return names


def _other_encoders(
    names: list[str], run: Run, encoder: Encoder, weights: str | None
) -> tuple[list[str], dict[str, Encoder]]:
    """The methods of a run, and the encoders of those that are of another encoder than the run's.

    Where training began with `weights`, "start" takes the place of "random". An encoder of timm has the row timm:NAME.
    """
    if START in names and weights is None:
        raise StepclrError(f"no weights are known that {run.folder} began with: its baseline is random, not {START}")
    if weights and START not in names:
        names = [START if name == "random" else name for name in names]
    others = {name: load_encoder(name) for name in names if name not in METHODS}
    if timm_name(run) is not None:
        names = [os.fspath(run) if name == "simclr" else name for name in names]
        others[os.fspath(run)] = encoder
    for name, other in others.items():
        # Before the long part, see whether the others can read these images at all.
        if not readable_as(encoder.channels, other.channels):
            raise StepclrError(
                f"{name} takes images of {channels_words(other.channels)}, and {run.folder} of {encoder.channels}: "
                "leave it out of baselines"
            )
    if weights and START in names:
        others[START] = start_encoder(encoder, weights)
    return list(dict.fromkeys(names)), {name: other.to(encoder.mean.device) for name, other in others.items()}


def _predict(
    task: Task, splits: dict[str, list[Split]], given: _Given, work: Work
) -> tuple[Predictions, dict[str, Json]]:
    """Every method's fits, by (method, labels per class), and its settings with what it chose.

    Linear evaluations run beside the features of what comes next.
    """
    methods: dict[str, Method] = {}
    # A fit keeps one core busy: most matrices are so narrow that more threads of BLAS would mostly wait.
    with threadpool_limits(1, "blas"), beside(torch.get_num_threads()) as pool:
        running = Running(splits, pool, work, given.progress, given.world)
        task = replace(task, counted=running.images, training=running.training)
        # What has its features already comes first: it is fitted while others compute theirs.
        for name in sorted(splits, key=lambda name: name not in READY):
            given.announce(f"{name}: features")
            methods[name] = method(name, task)
            running.report()
            for number, fit in fits(methods[name], splits[name], partial(_say_split, name, given), given.world):
                running.begin(name, number, fit)
        given.announce("the rest of the linear evaluations")
        running.wait()

    predictions: Predictions = {}
    protocol: dict[str, Json] = {}
    for name, of_method in splits.items():
        chosen: dict[str, list[float]] = {}
        for split, fit in zip(of_method, running.gathered(name), strict=True):
            predictions.setdefault((name, split.labels_per_class), []).append(fit)
            chosen.setdefault(str(split.labels_per_class), []).append(fit.chosen)
        protocol[name] = {**methods[name].settings, methods[name].chooses: chosen}
    return predictions, protocol


def _say_split(name: str, given: _Given, what: Split | str) -> None:
    """Announce the split that is predicted next, or what is done before."""
    if isinstance(what, str):
        given.announce(f"{name}: {what}")
        return
    draw = "" if what.labels_per_class == "all" else f", draw {what.number + 1} of {given.draws}"
    given.announce(f"{name}, {labels_words(what.labels_per_class)}{draw}")
