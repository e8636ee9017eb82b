"""The top of a page: the score and what it beats, health, time, what to do next; no more than is known."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from stepclr.config import OPTIMIZERS, RunConfig
from stepclr.data.reading import Reading
from stepclr.evaluation.baselines import START
from stepclr.evaluation.holdout import USUAL_SHARE
from stepclr.evaluation.results import EVALUATION, Score, Scores
from stepclr.evaluation.splits import labels_words
from stepclr.evaluation.stored import reading_of
from stepclr.loss.objectives import OBJECTIVES
from stepclr.metrics import FEW, coarse_words, in_percent, whole_percent
from stepclr.model.files import CLASSIFIER
from stepclr.pretraining.resolve import asked_for, usual_lr
from stepclr.pretraining.run import LABELS
from stepclr.tools.gains import Gain, gains_of
from stepclr.tools.methods import method_of
from stepclr.tools.notes import is_unbalanced, scored_images, test_counts
from stepclr.tools.options import option_words, reading_words
from stepclr.tools.report.context import Context
from stepclr.tools.scores import percent

Json = dict[str, Any]
OVER = {
    "pixels": "raw pixels",
    "random": "the untrained encoder",
    START: "the weights it began with",
    "scratch": "training from scratch",
}
HOUR, MINUTE = 3600, 60  # seconds
EARLIER = "evaluation.json is of an earlier encoder: the run has been trained further since."


class Lead(NamedTuple):
    """How far the score is above a baseline, in points; `level` is "good", "even" (within its error) or "bad"."""

    points: str
    over: str
    level: str


def verdict(context: Context, sections: Mapping[str, Json]) -> Json:
    """The headline, what qualifies it, the facts beside it, and one command.

    sections: those of the page that the verdict sums up: "training", "usage", "classifier".
    """
    scores = context.scores
    training = sections["training"]
    headline: Json = {"gains": [], "cautions": []}
    row = _main(scores) if scores else None
    if scores and row:
        headline |= _scored(scores, row)
        of_classifier = sections["classifier"]
        if of_classifier.get("top1") is not None:
            learned = of_classifier.get("labels", "distilled")
            headline["facts"].append(("Classifier", in_percent(of_classifier["top1"]), learned))
    else:
        headline |= _unscored(context, sections["classifier"])
        if scores:
            headline["cautions"].insert(0, EARLIER)
    headline["cautions"] += sections["classifier"].get("cautions", [])
    facts = [*headline.pop("facts", []), *_facts(context, training)]
    return headline | {
        "facts": facts,
        "health": training["health"],
        "watched": [one.name for one in training["attention"]],
        "curve": next((plot for plot in training["learning"] if plot.title == "Loss"), None),
        "neighbors": sections["usage"].get("neighbors", [])[:3],
        "next": _next(context, training["health"].name, training["attention"], sections["classifier"]),
    }


def _main(scores: Scores) -> Score | None:
    """The row of the headline: of the run's own methods the first, with the most labels that are still a number."""
    for name in ("simclr", scores.protocol["run"], "finetuned", "knn"):
        rows = [row for row in scores.rows if row.method == name]
        if rows:
            few = [row for row in rows if row.labels_per_class != "all"]
            if not few:
                return rows[0]
            # Files of earlier versions do not have `labels`.
            return max(few, key=lambda row: row.labels or float(row.labels_per_class))
    return None


def _scored(scores: Scores, row: Score) -> Json:
    # Those with the same labels, paired by draw, the smallest first.
    gains = [_lead(gain) for gain in sorted(gains_of(row, scores), key=lambda gain: gain.mean)]
    cautions = _cautions("The pretrained encoder", gains, "the draws" if len(row.values) > 1 else "the test images")
    if not gains:
        cautions.append(
            "No baseline was scored: add --baselines pixels,random,scratch to see what pretraining is worth."
        )
    count, kind = scores.protocol["test"]["images"], scored_images(scores)
    if row.clean_mean is not None:
        in_all, count = f"{percent(row)} of all {count:,}", scores.protocol["test_images_in_train"]["clean"]
        kind += " that are not in train too"
        cautions.append(f"The other test images are in train too; with them it would be {in_all}.")
    cautions += _few(kind, count)
    method = method_of(row.method, scores)
    headline: Json = {
        "score": _honest(row),
        "words": f"of the {count:,} {kind} classified correctly, with {labels_words(row.labels_per_class, row.labels)}",
        "method": method.words if method else row.method,
        "gains": gains,
        "cautions": cautions,
        "facts": [],
    }
    if is_unbalanced(test_counts(scores).values()) and row.balanced_accuracy:
        headline["facts"].append(("Balanced accuracy", _honest(row, "balanced_accuracy"), "every class counts alike"))
    others = [other for other in scores.rows if other != row]
    of_knn = [other for other in others if other.method == "knn"]
    if of_knn:
        best = next((other for other in of_knn if other.labels_per_class == "all"), of_knn[-1])
        headline["facts"].append(("kNN", _honest(best), labels_words(best.labels_per_class, best.labels)))
    for other in others:
        if (other.method, other.labels_per_class) == (row.method, "all") and row.method != "knn":
            headline["facts"].append(("With all labels", _honest(other), "the same method"))
    return headline


def _honest(row: Score, measure: str = "top1") -> str:
    """A measure of a row, on the clean images alone where others are in train too."""
    return percent(row, measure, clean=row.clean_mean is not None)


def _lead(gain: Gain) -> Lead:
    return Lead(f"{gain.mean:+.1f}", OVER.get(gain.over, gain.over), gain.level)


def _cautions(who: str, gains: list[Lead], pairs: str) -> list[str]:
    """Which of the gains are losses or within the noise, in sentences."""
    cautions = []
    for level, words in (
        ("bad", f"{who} scores below {{}}."),
        ("even", f"Neither clearly better nor worse than {{}}: the difference is within the noise of {pairs}."),
    ):
        names = [gain.over for gain in gains if gain.level == level]
        if names:
            cautions.append(words.format(_and(names)))
    return cautions


def _few(kind: str, count: int) -> list[str]:
    """How coarse a score on this number of images is, in a sentence, where they are few."""
    return [f"Only {count:,} {kind}: {coarse_words(count)}."] if count < FEW else []


def _unscored(context: Context, classifier: Json) -> Json:
    """What is shown where the encoder has no score: the score of its classifier, or what the log says."""
    if classifier.get("top1") is not None:
        headline: Json = {"score": in_percent(classifier["top1"]), "words": f"top-1 of {classifier['file'].name} on "}
        headline["words"] += classifier["test"]
        if "gain" in classifier:
            headline["gains"] = [_lead(classifier["gain"])]
            headline["cautions"] = _cautions("The student", headline["gains"], "the test images")
        return headline
    last: Json = {}
    for entry in context.metrics:
        last |= entry
    if context.no_encoder:
        return {"score": "No encoder", "words": "this run has not ended; what its log says is below"}
    if "knn" in last:
        images = f"{last['knn_images']:,} " if "knn_images" in last else ""
        headline = {
            "score": in_percent(last["knn"]),
            "words": f"of {images}labeled images have the class of their nearest labeled neighbors (kNN). It shows how "
            "training went, and is not a score next to baselines yet.",
        }
        cautions = _few("labeled images", last["knn_images"]) if "knn_images" in last else []
        if OBJECTIVES[context.config.loss].needs_labels and not context.config.monitor:
            cautions.append("Training learned from these very labels: other images may score lower.")
        return headline | {"cautions": cautions}
    if "contrastive_top1" in last:
        return {
            "score": whole_percent(last["contrastive_top1"]),
            "words": "of the views find the other view of their image first, in a batch. "
            "There are no labels, so nothing says yet what the encoder is worth.",
        }
    return {"score": "Not scored", "words": "evaluate it on labeled images to see what it is worth"}


def _facts(context: Context, training: Json) -> list[tuple[str, str, str]]:
    """(title, value, note) of each fact beside the headline."""
    config = context.config
    facts = []
    if training["seconds"]:
        facts.append(
            ("Training time", _time(training["seconds"]), f"{training['epochs']} of {training['wanted']} epochs")
        )
    facts.append(
        ("Images", f"{config.images:,}", f"{config.labeled:,} with a label" if config.labeled else "no labels")
    )
    features = "" if context.no_encoder else f"h: {context.encoder.num_features:,} numbers, "
    sizes = f"views of {config.size}\u00a0px"
    if config.test_scale != 1:
        sizes += f", whole images of {config.test_size}\u00a0px"
    began = f"from {config.weights}" if config.weights else f"{features}{sizes}"
    facts.append(("Encoder", config.encoder, began))
    return facts


def _next(context: Context, diagnosis: str, attention: list[Any], classifier: Json) -> tuple[str, str]:
    """What to do next, and the command."""
    config, run = context.config, context.run.folder
    over_teacher: Gain | None = classifier.get("gain")
    mended: dict[str, dict[str, object]] = {
        "rate too high": _lower_rate(config),
        "nothing learned": {"lr": usual_lr(config)},
        "weight decay too high": {"weight_decay": OPTIMIZERS[config.optimizer][1]},
        "views too easy": {"policy": "simclr"},
        "no negatives": {"batch_size": 256},
    }
    changes = mended.get(diagnosis, {})
    if any(getattr(config, name) != value for name, value in changes.items()):
        return "Train again with what is most likely to mend it:", _command(_again(context, changes))
    if changes or diagnosis == "collapsed":  # with the same settings it would end the same way
        examined = ["stepclr", "doctor", *context.sources, *reading_words(config.reading)]
        return "Look for what is wrong with the images or the settings:", _command(examined)
    resumed: list[Any] = ["stepclr", "pretrain", *context.sources, "--out", run, "--resume"]
    if context.no_encoder or any(one.name == "schedule" for one in attention):
        return "Finish the run:", _command(resumed)
    if over_teacher and over_teacher.level == "bad":
        return "Let the student learn for longer:", _command([*resumed, *_twice_as_long(config)])
    if (run / CLASSIFIER).is_file() and not classifier.get("earlier"):
        words = ["stepclr", "predict", run, "NEW_IMAGES", "--out", "predictions.csv"]
        return "Classify new images:", _command(words)
    if (run / EVALUATION).is_file() and context.scores and context.scores.rows:
        return _after_scores(context, context.scores, resumed)
    if config.labeled or config.monitor:
        unseen = " that it has not learned from" if _needs_others(config) else ""
        return f"Score it on labeled images{unseen}:", _command(_evaluate(context))
    words = ["stepclr", "label", run, "--classes", "CLASS,CLASS"]
    return "Label a few images, chosen by the encoder, on a page of their own:", _command(words)


def _after_scores(context: Context, scores: Scores, resumed: list[Any]) -> tuple[str, str]:
    """What to do next with an encoder that has scores, and the command: what it scores below decides."""
    config, row = context.config, _main(scores)
    gains = sorted(gains_of(row, scores), key=lambda gain: gain.mean) if row else []
    below = [gain.over for gain in gains if gain.level == "bad"]
    better = [name for name in below if name not in OVER]  # other encoders, the best of them first
    if better:
        read = replace(config.reading, channels=None)  # each encoder has its own
        words = [*_finetune(context, better[0], read), "--out", CLASSIFIER]
        return f"Turn {better[0]}, which scores better, into a classifier:", _command(words)
    if START in below:
        return "Train again at a rate that changes the weights less:", _command(_again(context, _lower_rate(config)))
    # A linear layer on a frozen encoder may score below a whole network; that is then to be fine-tuned too.
    if {"pixels", "random"} & set(below) or (below and row and row.method == "finetuned"):
        return f"Train for longer, to get above {OVER[below[0]]}:", _command([*resumed, *_twice_as_long(config)])
    words = _finetune(context, context.run.folder, _not_of_the_encoder(config))
    if context.run.trains_classifier:  # which finetune does not replace
        words += ["--out", CLASSIFIER]
    return "Turn the encoder into a classifier:", _command(words)


def _lower_rate(config: RunConfig) -> dict[str, object]:
    return {"lr": float(f"{config.lr / 10:.2g}")}


def _twice_as_long(config: RunConfig) -> list[str]:
    return ["--epochs", f"{2 * config.epochs:g}"]


def _again(context: Context, mended: dict[str, object]) -> list[Any]:
    """`pretrain` as it was, but for what is mended."""
    config = context.config
    chosen: dict[str, object] = {"labels": _tables(context), "limit": config.limit}
    chosen["classes"] = ",".join(config.classes) or None
    asked = asked_for(config, context.images) | mended
    end = [*reading_words(config.reading), *option_words(asked), "--out", f"{context.run.folder}-2"]
    return ["stepclr", "pretrain", *context.sources, *option_words(chosen), *end]


def _tables(context: Context) -> list[str] | None:
    """The tables that the run's labels are from; where one is not there, such as a mapping, the run's own."""
    tables = context.config.labels
    if all(Path(table).exists() for table in tables):
        return tables or None
    return [str(context.run.folder / LABELS)]


def _evaluate(context: Context) -> list[Any]:
    """`evaluate` on the labels that the run knows."""
    config = context.config
    words: list[Any] = ["stepclr", "evaluate", context.run.folder, "--train"]
    reading = _not_of_the_encoder(config)
    if config.monitor:  # which may not be in shards
        words += [config.monitor, *reading_words(replace(reading, damaged_shards=None))]
    else:
        words += [*context.sources, *option_words({"labels": _tables(context)}), *reading_words(reading)]
    if _needs_others(config):
        return [*words, "--test", "OTHER_IMAGES"]
    # A table that says which images are for testing leaves nothing to hold out.
    return words if config.split and not config.monitor else [*words, "--holdout", f"{USUAL_SHARE:g}"]


def _needs_others(config: RunConfig) -> bool:
    """Whether the encoder has learned from all labels that the run knows, so that none of them can score it."""
    return OBJECTIVES[config.loss].needs_labels and not (config.monitor or config.split)


def _finetune(context: Context, encoder: Path | str, reading: Reading) -> list[Any]:
    """`finetune` with the images and labels that the scores are of."""
    assert context.scores
    protocol = context.scores.protocol
    train, test = protocol["train"], protocol["test"]
    sources, others = (context.placed(part.get("sources") or [part["source"]]) for part in (train, test))
    words = ["stepclr", "finetune", encoder, "--train", *sources]
    if train.get("labels"):
        words += ["--labels", *train["labels"]]
    reading = replace(reading, damaged_shards=None)  # the run's shards may be others
    for part in (train, test):
        reading = reading.changed(reading_of(part))
    words += reading_words(reading)
    drawn = protocol.get("holdout")
    if drawn:
        words += ["--holdout", f"{drawn['share']:g}"]
        return [*words, "--seed", drawn["seed"]] if drawn["seed"] else words
    # The test images are those of a source of their own, or those that a column `split` of the tables names.
    return words if train.get("split") and sources == others else [*words, "--test", *others]


def _not_of_the_encoder(config: RunConfig) -> Reading:
    """How the run reads files, without what its encoder knows: the range of values and the channels."""
    return replace(config.reading, value_range=None, channels=None)


def _command(words: list[Any]) -> str:
    return shlex.join(map(str, words))


def _time(seconds: float) -> str:
    if seconds >= HOUR:
        return f"{seconds / HOUR:.1f} h"
    if seconds >= MINUTE:
        return f"{seconds / MINUTE:.1f} min"
    return f"{seconds:.0f} s"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
