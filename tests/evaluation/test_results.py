"""The measures of a score against scikit-learn's, and what people and programs are shown of them."""

import io
import warnings
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score, top_k_accuracy_score

from stepclr.evaluation.results import ClassScore, Score, Scores, Summary, measures, ranking, score, summarize
from stepclr.evaluation.seeds import over_seeds
from stepclr.tools.gains import gains_of
from stepclr.tools.notes import is_unbalanced, notes
from stepclr.tools.scores import class_table, measures_for, paired_lines, score_table

CLASSES = ["ant", "bee", "cat", "dog"]
COUNTS = {"ant": 60, "bee": 20, "cat": 0, "dog": 4}


def drawn(seed: int, n: int = 84, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Scores of n rows, and their true classes: unbalanced, without class 2."""
    generator = np.random.default_rng(seed)
    shares = 0.5 ** np.arange(classes)
    shares[2] = 0
    truth = generator.choice(classes, n, p=shares / shares.sum())
    return generator.normal(size=(n, classes)) + 1.5 * np.eye(classes)[truth], truth


@pytest.mark.parametrize("seed", range(3))
def test_measures_are_scikit_learn_s_on_the_classes_that_test_has(seed: int) -> None:
    scores, truth = drawn(seed)
    ranked = ranking(scores)
    present = np.unique(truth)
    assert 2 in ranked
    assert 2 not in present
    found = measures(ranked, truth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class that is predicted and is not there
        balanced = balanced_accuracy_score(truth, ranked[:, 0])
    assert found == {
        "top1": pytest.approx((scores.argmax(1) == truth).mean()),
        "balanced_accuracy": pytest.approx(balanced),
        "macro_f1": pytest.approx(f1_score(truth, ranked[:, 0], labels=present, average="macro")),
    }


def test_a_class_that_is_never_predicted_scores_0_and_not_nan() -> None:
    truth = np.array([0, 0, 0, 1])
    assert measures(np.zeros((4, 1), int), truth) == {"top1": 0.75, "balanced_accuracy": 0.5, "macro_f1": 3 / 7}
    assert measures(np.ones((4, 1), int), np.zeros(4, int)) == {"top1": 0, "balanced_accuracy": 0, "macro_f1": 0}


def test_a_class_that_is_only_predicted_lowers_macro_f1_by_its_mistakes_alone() -> None:
    truth, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])
    assert measures(predicted[:, None], truth)["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert f1_score(truth, predicted, labels=[0, 1], average="macro") == pytest.approx((1 + 2 / 3) / 2)
    assert f1_score(truth, predicted, average="macro") == pytest.approx((1 + 2 / 3) / 3)  # as the page says


def test_top5_is_scored_from_20_classes_up() -> None:
    scores, truth = drawn(0, 200, 20)
    expected = top_k_accuracy_score(truth, scores, k=5, labels=range(20))
    assert measures(ranking(scores), truth)["top5"] == pytest.approx(expected)
    assert ranking(scores)[:, 0].tolist() == scores.argmax(1).tolist()
    assert "top5" not in measures(ranking(scores[:, :19]), truth)


def test_of_equal_scores_the_lower_class_is_first_and_what_got_no_vote_is_no_prediction() -> None:
    scores = np.full((1, 20), -np.inf)
    scores[0, [7, 3]] = 1.0
    assert ranking(scores).tolist() == [[3, 7, -1, -1, -1]]
    assert measures(ranking(scores), np.array([0]))["top5"] == 0


def test_a_score_has_every_measure_with_its_spread_and_each_class_with_its_count() -> None:
    scores, truth = drawn(0)
    ranked = [ranking(scores), ranking(scores[:, ::-1])]
    clean = np.arange(84) % 2 == 0
    row = score("knn", 10, 40, ranked, truth, clean, CLASSES)
    values = [measures(of_split, truth)["balanced_accuracy"] for of_split in ranked]
    assert row.balanced_accuracy == Summary(float(np.mean(values)), float(np.std(values, ddof=1)), values)
    assert row.clean_macro_f1
    assert row.clean_macro_f1.values == [measures(of_split[clean], truth[clean])["macro_f1"] for of_split in ranked]
    assert (row.labels, row.top5, row.clean_top5) == (40, None, None)
    assert row.per_class
    assert list(row.per_class) == ["ant", "bee", "dog"]
    for name, of_class in row.per_class.items():
        label = CLASSES.index(name)
        each = [recall_score(truth, one[:, 0], labels=[label], average=None)[0] for one in ranked]
        assert of_class == ClassScore(int((truth == label).sum()), np.mean(each), np.std(each, ddof=1))
    whole = score("knn", 10, 40, ranked[:1], truth, np.ones(84, bool), CLASSES)
    assert (whole.std, whole.clean_mean, whole.clean_balanced_accuracy) == (None, None, None)
    for one in (row, whole):
        assert Scores.from_dict(Scores([one], {}).to_dict()) == Scores([one], {})


def shown(*parts: Any) -> str:
    text = io.StringIO()
    Console(width=200, file=text).print(*parts)
    return text.getvalue()


def scores_of(counts: dict[str, int], in_train: dict[str, int]) -> Scores:
    """Scores of one method, on so many test images of each class."""
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    rows = [score("simclr", "all", 99, [np.zeros((len(labels), 1), int)], labels, labels >= 0, list(counts))]
    protocol = {"run": "runs/a", "images_per_class": {"train": in_train, "test": counts}}
    return Scores(rows, protocol | {"classes_not_in_test": [name for name, count in counts.items() if not count]})


def test_unbalanced_classes_bring_their_measures_into_the_table() -> None:
    scores = scores_of(COUNTS, COUNTS | {"cat": 9})
    text = shown(score_table(scores))
    for words in ("71.4 %", "balanced accuracy", "33.3 %", "macro F1", "27.8 %"):
        assert words in text
    few, words = notes(scores)
    assert few == "There are only 84 test images: each is 1.2 points."
    assert "4 (dog) to 60 (ant) a class" in words
    assert "leave out the classes without test images (cat)" in words
    lines = [line.split("│")[1:5] for line in shown(class_table(scores)).splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["bee", "20", "20", "0.0 %"], ["dog", "4", "4", "0.0 %"], ["ant", "60", "60", "100.0 %"],
    ]  # fmt: skip


def test_a_choice_at_the_end_of_the_grid_of_lambda_is_said() -> None:
    same = dict.fromkeys("ab", 50)
    scores = scores_of(same, same)
    scores.protocol["linear_evaluation"] = {"l2_smallest": 1e-6}
    methods = {"pixels": {"l2": {"1": [10.0], "all": [0.01]}}, "simclr": {"l2": {"all": [0.1, 1e-6]}}, "knn": {}}
    scores.protocol["methods"] = methods
    (words,) = notes(scores)
    assert words.startswith(
        "Linear evaluation of simclr chose the smallest lambda that it tries, 1e-06, for some labels"
    )
    methods["simclr"] = methods["pixels"]
    assert not notes(scores)


@pytest.mark.parametrize(
    ("counts", "unbalanced"),
    [((4, 6, 5), False), ((1, 2), False), ((22, 30), False), ((1, 3), True), ((4, 8), True), ((40, 62, 50), True)],
)
def test_counts_that_rounding_can_make_are_not_unbalanced(counts: tuple[int, ...], unbalanced: bool) -> None:
    assert is_unbalanced(counts) == unbalanced
    assert ("macro_f1" in measures_for(counts)) == unbalanced


@pytest.mark.parametrize(
    ("mean", "images", "level"),
    [(0.505, 2000, "even"), (0.505, 200_000, "good"), (0.55, 2000, "good"), (0.45, 2000, "bad"), (0.5, 2000, "even")],
)
def test_one_draw_is_judged_by_the_number_of_test_images(mean: float, images: int, level: str) -> None:
    rows = [Score("pixels", "all", 0.5, None, [0.5]), Score("simclr", "all", mean, None, [mean])]
    counts = {"test": {"a": images // 2, "b": images // 2}}
    (gain,) = gains_of(rows[1], Scores(rows, {"run": "runs/a", "images_per_class": counts}))
    assert (gain.over, gain.error, gain.level) == ("pixels", None, level)


def test_where_test_images_are_in_train_a_gain_is_that_on_the_clean_ones() -> None:
    def row(method: str, clean: list[float], whole: list[float]) -> Score:
        return Score(method, 5, 0.0, None, whole, clean_mean=0.0, clean_values=clean)

    rows = [row("pixels", [0.5, 0.6], [0.2, 0.2]), row("simclr", [0.4, 0.4], [0.9, 0.9])]
    protocol = {"run": "runs/a", "test_images_in_train": {"clean": 40}}
    assert next(iter(paired_lines(Scores(rows, protocol)))) == (
        "simclr - pixels with 5 labels per class, on clean images: -15.0 points, standard error 5.0, above in 0 of 2 "
        "draws"
    )


def test_unbalanced_classes_have_the_paired_difference_of_balanced_accuracy_too() -> None:
    def row(method: str, top1: list[float], balanced: list[float]) -> Score:
        return Score(method, 5, 0.0, None, top1, balanced_accuracy=summarize(balanced))

    rows = [row("pixels", [0.8, 0.8], [0.5, 0.4]), row("simclr", [0.8, 0.9], [0.7, 0.6])]
    counts = {"train": COUNTS, "test": COUNTS}
    lines = list(paired_lines(Scores(rows, {"run": "runs/a", "images_per_class": counts})))
    assert lines[:-1] == [
        "simclr - pixels with 5 labels per class: +5.0 points, standard error 5.0, above in 1 of 2 draws",
        "simclr - pixels with 5 labels per class, balanced accuracy: +20.0 points, standard error 0.0, above in 2 of "
        "2 draws",
    ]


def test_balanced_classes_do_not() -> None:
    same = dict.fromkeys("ab", 50)
    scores = scores_of(same, same)
    assert "balanced" not in shown(score_table(scores))
    assert "F1" not in shown(score_table(scores))
    assert class_table(scores) is None
    assert not notes(scores)
    # The rare class of an unbalanced train is neglected even where test has as many images of it.
    assert class_table(scores_of(same, {"a": 10, "b": 100}))


def test_scores_of_an_earlier_version_are_still_read() -> None:
    row = {"method": "simclr", "labels_per_class": 10, "mean": 0.5, "std": None, "values": [0.5]}
    scores = Scores.from_dict({"rows": [row], "protocol": {"run": "runs/a"}})
    assert scores.rows == [Score("simclr", 10, 0.5, None, [0.5])]
    assert "50.0 %" in shown(score_table(scores))
    assert class_table(scores) is None


def test_seeds_have_the_spread_of_the_clean_scores_too() -> None:
    truth, clean = np.array([0, 0, 1]), np.array([True, False, True])
    of_seeds = [
        score("knn", 1, 2, [np.array(predicted)[:, None]], truth, clean, ["a", "b"])
        for predicted in ([0, 1, 1], [1, 0, 1])
    ]
    (row,) = over_seeds([Scores([of_seed], {}) for of_seed in of_seeds])
    assert (row.values, row.clean_values) == ([2 / 3, 2 / 3], [1.0, 0.5])
    assert row.clean_std == pytest.approx(np.std([1.0, 0.5], ddof=1))
    assert row.clean_balanced_accuracy is not None
    assert row.clean_balanced_accuracy.values == [1.0, 0.5]
    assert row.labels == 2
