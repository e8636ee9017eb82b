"""What has to be known to read the scores of a run, in sentences: of its encoder, of the images and of the labels."""

from collections.abc import Iterable

from stepclr.evaluation.baselines import START
from stepclr.evaluation.results import Scores
from stepclr.metrics import FEW, coarse_words
from stepclr.tools.methods import lambda_words

# Where the largest class has UNBALANCED times the test images of the smallest, top-1 describes the common classes. The
# counts of a small hold-out are rounded, so they must differ that much even if each is off by ROUNDED.
UNBALANCED, ROUNDED = 1.5, 0.5


def notes(scores: Scores) -> list[str]:
    """What has to be known to read the scores, in sentences."""
    known = start_words(scores), interrupted_words(scores), learned_words(scores), seen_words(scores)
    images = holdout_words(scores), small_test_words(scores), unbalanced_words(scores), overlap_words(scores)
    return [words for words in (*known, *images, lambda_words(scores)) if words]


def start_words(scores: Scores) -> str:
    """Which weights training began with, in a sentence; "" for a random initialization."""
    weights = scores.protocol.get("started_from")
    if not weights:
        return ""
    words = f"Training began with the weights {weights}."
    if any(row.method == START for row in scores.rows):
        words += f" The row {START} is the encoder with these, so that the difference is what training added."
    return words


def interrupted_words(scores: Scores) -> str:
    """That the encoder is the one of before the run went on, in a sentence; "" where it is the run's last."""
    interrupted = scores.protocol.get("interrupted")
    if not interrupted:
        return ""
    return (
        f"The run has done {interrupted['done']:g} of its {interrupted['epochs']:g} epochs: its encoder is the one of "
        "before it went on."
    )


def learned_words(scores: Scores) -> str:
    """Which encoders learned from labels, and whether the scores may be of these labels, in sentences; "" for none."""
    words = []
    for learned in scores.protocol.get("learned_labels") or ():
        whose = f"The row {learned['row']}" if learned["row"] else "The encoder"
        if learned["scored"] is None:
            words.append(
                f"{whose} has learned from the classifier {learned['source']}, and so from the labels of that one: "
                "images to score on should not be among these."
            )
            continue
        words.append(
            f"{whose} has learned from the {learned['labels']:,} labels of {learned['source']} (in {learned['run']}, "
            f"by the loss {learned['loss']}), whatever number of labels a row has."
        )
        if learned["scored"]:
            words[-1] += (
                " Images to score on may be among them, and its scores too high: score it on images that it has not "
                "learned from, such as those that a column split of --labels holds out of pretraining."
            )
    return " ".join(words)


def seen_words(scores: Scores) -> str:
    """Which encoders may have been pretrained on the images to score on, in sentences; "" for none."""
    words = []
    for seen in scores.protocol.get("seen_unlabeled") or ():
        whose = f"the row {seen['row']}" if seen["row"] else "the encoder"
        words.append(
            f"Pretraining of {whose} may have seen the {scored_images(scores)} without their labels ({seen['run']}, on "
            f"{seen['source']}): images that are new to it may score lower."
        )
    return " ".join(words)


def holdout_words(scores: Scores) -> str:
    """What was held out of train to score on, in a sentence; "" where nothing was."""
    drawn = scores.protocol.get("holdout")
    if not drawn:
        return ""
    scored = sum(drawn["test"].values())
    coarse = f" ({coarse_words(scored)})" if 0 < scored < FEW else ""
    words = (
        f"Held out: {100 * drawn['share']:g} % of each class (seed {drawn['seed']}), {scored:,} "
        f"images to score on{coarse}; {sum(drawn['train'].values()):,} are left to learn from"
    )
    groups = drawn["groups_kept_together"]
    if groups:
        together = f"{groups:,} group{'s' * (groups > 1)} of {drawn['images_in_groups']:,} images"
        words += f". Versions of one image are on one side: {together}"
    return f"{words}."


def small_test_words(scores: Scores) -> str:
    """How coarse scores on a test set of few images are, in a sentence; "" where there are enough."""
    count = sum(test_counts(scores).values())
    if scores.protocol.get("holdout") or not 0 < count < FEW:
        return ""
    return f"There {'is' if count == 1 else 'are'} only {count:,} test image{'s' * (count > 1)}: {coarse_words(count)}."


def unbalanced_words(scores: Scores) -> str:
    """How the classes of the test images differ in size, in a sentence; "" where they hardly do."""
    counts = test_counts(scores)
    if not is_unbalanced(counts.values()):
        return ""
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    missing = scores.protocol.get("classes_not_in_test")
    without = f", and leave out the classes without test images ({', '.join(missing)})" if missing else ""
    return (
        f"The {scored_images(scores)} are unbalanced: {counts[least]:,} ({least}) to {counts[most]:,} ({most}) a class."
        f" Balanced accuracy and macro F1 count every class alike{without}; top-1 counts every image."
    )


def overlap_words(scores: Scores) -> str:
    """How many test images are in train too, in a sentence; "" where there are none, or no test."""
    overlap = scores.protocol.get("test_images_in_train")
    if not overlap or not scores.protocol["test"]:
        return ""
    near, clean, total = overlap.get("near_identical"), overlap["clean"], scores.protocol["test"]["images"]
    if total == clean:
        return "" if near is not None else "Versions of test images in train were not looked for: too many pairs."
    versions = "versions not looked for" if near is None else f"{near:,} nearly identical"
    example = f", such as {overlap['examples'][0]}" if overlap["examples"] else ""
    return (
        f"{total - clean:,} of the {total:,} test images are in train too ({overlap['identical']:,} identical, "
        f"{versions}){example}; the clean scores are those on the other {clean:,}."
    )


def scored_images(scores: Scores) -> str:
    """What the images are that the scores are on."""
    return "images held out" if scores.protocol.get("holdout") else "test images"


def test_counts(scores: Scores) -> dict[str, int]:
    """The number of test images of each class that has any."""
    counts = (scores.protocol.get("images_per_class") or {}).get("test", {})
    return {name: count for name, count in counts.items() if count}


def is_unbalanced(counts: Iterable[int]) -> bool:
    """Whether the numbers of images of the classes differ so much that top-1 alone misleads."""
    sizes = list(counts)
    return bool(sizes) and max(sizes) - ROUNDED >= UNBALANCED * (min(sizes) + ROUNDED)
