"""The classifier of a run on its page: what `finetune` or `distill` wrote, its score, mistakes and doubts."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from stepclr.data.images import ImageSet
from stepclr.data.labels import of_these_classes
from stepclr.evaluation.predict import classify
from stepclr.evaluation.results import FINETUNING, MAX_CLASSES, Scores, confusion, least_certain
from stepclr.evaluation.splits import labels_words
from stepclr.evaluation.stored import read_scores
from stepclr.metrics import in_percent
from stepclr.model.files import CLASSIFIER, load_classifier, state_checksum
from stepclr.pretraining.run import Run
from stepclr.tools.gains import paired
from stepclr.tools.notes import test_counts
from stepclr.tools.report.context import Context
from stepclr.tools.report.evaluation import with_images
from stepclr.tools.report.plots import Bar
from stepclr.tools.report.plots import confusion as confusion_plot
from stepclr.tools.scores import encoder_checksum, measures_for, measures_words, percent

Json = dict[str, Any]


def classifier(context: Context) -> Json:
    """Scores, confusion, most confused pairs and the least certain images of the run's classifier; {} without one."""
    path = context.run.folder / CLASSIFIER
    if not path.is_file():
        return {}
    if context.config.teacher:
        return _facts(path) | _student(context, Path(context.config.teacher))
    scores = _stored(path)
    if scores is None and path.with_name(FINETUNING).is_file():
        return _facts(path) | {"why": f"{FINETUNING} has the scores of another classifier, not of this one."}
    if scores is None:
        return _facts(path)
    section = finetuned(path, scores, context.opened(scores.protocol["test"] or {}))
    return section | _against(scores, context.run)


def finetuned(path: Path, scores: Scores, test: ImageSet | None) -> Json:
    """The section of a classifier that was fine-tuned, with images where the test set can be read."""
    protocol = scores.protocol
    test = load_classifier(path).encoder.ranged(test) if test else None
    section = _facts(path) | {
        "labels": labels_words(protocol["classifier"]["labels_per_class"], protocol["classifier"].get("labels"))
    }
    part = protocol["test"]
    if part:
        for row in scores.rows:
            words = f"fine-tuned with {labels_words(row.labels_per_class, row.labels)}"
            section["scores"].append(Bar(words, row.mean, percent(row), 2))
        section["top1"] = protocol["classifier"]["top1"]
        section["measures"] = measures_words(protocol["classifier"], measures_for(test_counts(scores).values()))
        section["test"] = f"{part['images']:,} images of {part['source']}"
        section |= _mistakes(protocol.get("confusion"), protocol.get("unsure") or [], test)
    else:
        section["why"] = "It was not scored: give finetune --test or --holdout to know how good it is."
    return section


def is_a_guess(scores: Scores) -> bool:
    """Whether a classifier that was scored is no better than always naming the most frequent class."""
    top1, counts = scores.protocol["classifier"]["top1"], test_counts(scores).values()
    return top1 is not None and bool(counts) and top1 <= max(counts) / sum(counts)


def _against(scores: Scores, run: Run) -> Json:
    """What speaks against a classifier, in sentences, and whether it is of an `earlier` encoder than the run's."""
    earlier = scores.protocol.get("of_encoder") not in (None, encoder_checksum(run))
    cautions = []
    if earlier:
        cautions.append("The classifier is of an earlier encoder: the run has been trained further since.")
    if is_a_guess(scores):
        cautions.append("The classifier is no better than always naming the most frequent class.")
    return {"earlier": earlier, "cautions": cautions}


def _facts(path: Path) -> Json:
    command = ["stepclr", "predict", str(path), "NEW_IMAGES", "--out", "predictions.csv", "--sort"]
    classes = load_classifier(path).classes
    return {"file": path, "classes": classes, "scores": [], "command": shlex.join(command)}


def _stored(classifier: Path) -> Scores | None:
    """The finetune.json beside a classifier, or None where there is none, or it is of another classifier.

    Raises StepclrError if it is corrupt.
    """
    path = classifier.with_name(FINETUNING)
    try:
        scores = read_scores(path, of_classifier=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    checksum = scores.protocol["classifier"].get("sha256")
    return scores if checksum == state_checksum(load_classifier(classifier).state_dict()) else None


def _student(context: Context, teacher: Path) -> Json:
    """The student beside its teacher, on the images that the teacher was scored on, where these can be read."""
    scores = _stored(teacher / CLASSIFIER if teacher.is_dir() else teacher)
    if scores is None or not scores.protocol["test"] or scores.protocol["classifier"]["top1"] is None:
        return {
            "why": f"The teacher, {teacher}, was not scored when it was fine-tuned: there is nothing to compare with."
        }
    protocol = scores.protocol
    top1, part = protocol["classifier"]["top1"], protocol["test"]
    section: Json = {"test": f"{part['images']:,} images of {part['source']}"}
    section["scores"] = [Bar(f"teacher, {load_classifier(teacher).encoder.name}", top1, in_percent(top1), 1)]
    test = None if protocol.get("holdout") else context.opened(part)
    if test is None:
        return section | {"why": "The images that the teacher was scored on are not at hand: the student has no score."}
    test = of_these_classes(test.keep(test.classes), protocol["classes"])
    predicted = classify(context.run.folder, test)
    if predicted.classes != protocol["classes"]:
        return section | {"why": "The student and the teacher have other classes."}
    truth, best = predicted.images.labels, predicted.probabilities.argmax(1)
    own = float((best == truth).mean())
    section["top1"] = own
    of_teacher = classify(teacher, test)
    if of_teacher.skipped == predicted.skipped:  # paired by image: which of them each gets right
        section["gain"] = paired("the teacher", best == truth, of_teacher.probabilities.argmax(1) == truth, 1)
    section["scores"].insert(0, Bar(f"student, {context.config.encoder}", own, in_percent(own), 0))
    names, classes = predicted.images.names, predicted.classes
    matrix = None
    if len(classes) <= MAX_CLASSES:
        matrix = confusion("student", "all", [best], truth, classes, names)
    return section | _mistakes(matrix, least_certain(predicted.probabilities, truth, classes, names), test)


def _mistakes(matrix: Json | None, unsure: list[Json], test: ImageSet | None) -> Json:
    """The confusion matrix, the most confused pairs with images, and the images of which the classifier is unsure."""
    section: Json = {"unsure": with_images(unsure, test)}
    if matrix:
        counts = np.array(matrix["matrix"], dtype=np.int64)
        section["confusion"] = confusion_plot("What it takes for what", matrix["classes"], counts)
        section["confused"] = with_images(matrix["pairs"], test)
    return section
