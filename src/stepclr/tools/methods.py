"""The methods of evaluation.json: how each is described, drawn and compared."""

from typing import NamedTuple

from stepclr.evaluation.baselines import START
from stepclr.evaluation.results import Scores

TONES = 10
# The colors --c0 to --c9 of style.css on white. Matplotlib's markers make the methods distinct once more.
COLORS = (
    "#1d4ed8", "#b8440c", "#0f766e", "#a21caf", "#8a5a00", "#0e7490", "#5f6670", "#be123c", "#4b7a0e", "#6d28d9",
)  # fmt: skip


class Method(NamedTuple):
    """How a method of evaluation.json is described and drawn."""

    words: str
    tone: int
    """Which of COLORS."""
    marker: str
    ours: bool = False
    """Whether the run's own encoder earned the score; the baselines are the same for every run."""
    baselines: tuple[str, ...] = ()
    """The methods that it is compared with, draw by draw."""

    @property
    def color(self) -> str:
        return COLORS[self.tone]


METHODS = {
    "pixels": Method("raw pixels, linear layer", 6, "s"),
    "random": Method("the same encoder, not trained, linear layer", 4, "^"),
    START: Method("the encoder as training began, linear layer", 5, "<"),
    "scratch": Method("the same encoder, trained on these labels alone", 1, "v"),
    "simclr": Method("pretrained, frozen, linear layer", 0, "o", True, ("pixels", "random", START, "scratch")),
    "sgd": Method(
        "pretrained, frozen, linear layer trained on crops", 8, "p", True, ("pixels", "random", START, "scratch")
    ),
    "finetuned": Method("pretrained, then trained on these labels", 2, "D", True, ("scratch",)),
    "knn": Method("pretrained, frozen, weighted kNN", 3, "P", True),
}
OTHERS = ((7, "*"), (9, "X"))  # tone and marker of other encoders, in turn


def method_of(name: str, scores: Scores) -> Method | None:
    """How a row of these scores is described and drawn; None for one that sums up other rows.

    A method that METHODS lacks is another encoder, frozen, or the encoder of timm that the scores are of.
    """
    if name in METHODS:
        return METHODS[name]
    others = [method for method in scores.protocol.get("methods") or {} if method not in METHODS]
    if name not in others:
        return None
    if name == scores.protocol.get("run"):
        return METHODS["simclr"]._replace(words="off the shelf, frozen, linear layer")
    return Method("another encoder, frozen, linear layer", *OTHERS[others.index(name) % len(OTHERS)])


def tone_of(name: str, scores: Scores) -> int:
    """The color of a row of these scores; that of the first of OTHERS where nothing is known of its method."""
    method = method_of(name, scores)
    return OTHERS[0][0] if method is None else method.tone


def baselines_of(name: str, scores: Scores) -> list[str]:
    """The methods that a method of these scores is compared with; linear evaluation with other encoders too."""
    method = method_of(name, scores)
    if method is None:
        return []
    named = list(method.baselines)
    if name in ("simclr", scores.protocol.get("run")):
        named += [other for other in scores.protocol.get("methods") or {} if other not in (*METHODS, name)]
    return named


def lambda_words(scores: Scores) -> str:
    """Which methods have the smallest lambda that linear evaluation tries, in a sentence; "" where none has."""
    smallest = (scores.protocol.get("linear_evaluation") or {}).get("l2_smallest")
    at_smallest = []
    for name, facts in (scores.protocol.get("methods") or {}).items():
        if any(smallest in chosen for chosen in (facts.get("l2") or {}).values()):
            at_smallest.append(name)
    if not at_smallest:
        return ""
    return (
        f"Linear evaluation of {', '.join(at_smallest)} chose the smallest lambda that it tries, {smallest:g}, for "
        "some labels: their classes are so well apart that lambda hardly matters."
    )
