"""The methods of evaluation.json: how each is described, drawn and compared."""

from typing import NamedTuple

from stepclr.evaluation.baselines import START
from stepclr.evaluation.results import Scores


class Method(NamedTuple):
    """How a method of evaluation.json is described and drawn."""

    words: str
    color: str
    marker: str
    ours: bool = False
    """Whether the run's own encoder earned the score; the baselines are the same for every run."""
    baselines: tuple[str, ...] = ()
    """The methods that it is compared with, draw by draw."""


# Okabe and Ito's colors, which color-blind readers can tell apart; Matplotlib's markers make them distinct once more.
METHODS = {
    "pixels": Method("raw pixels, linear layer", "#999999", "s"),
    "random": Method("the same encoder, not trained, linear layer", "#E69F00", "^"),
    START: Method("the encoder as training began, linear layer", "#56B4E9", "<"),
    "scratch": Method("the same encoder, trained on these labels alone", "#D55E00", "v"),
    "simclr": Method("pretrained, frozen, linear layer", "#0072B2", "o", True, ("pixels", "random", START, "scratch")),
    "finetuned": Method("pretrained, then trained on these labels", "#009E73", "D", True, ("scratch",)),
    "knn": Method("pretrained, frozen, weighted kNN", "#CC79A7", "P", True),
}
OTHERS = (("#000000", "*"), ("#8B4513", "X"), ("#56B4E9", "h"), ("#999999", "p"))  # other encoders, in turn


def method_of(name: str, scores: Scores) -> Method | None:
    """How a row of these scores is described and drawn; None for one that sums up other rows.

    A method that METHODS lacks is another encoder, frozen, or the encoder of timm that the scores are of.
    """
    if name in METHODS:
        return METHODS[name]
    others = [method for method in scores.protocol.get("methods", {}) if method not in METHODS]
    if name not in others:
        return None
    if name == scores.protocol["run"]:
        return METHODS["simclr"]._replace(words="off the shelf, frozen, linear layer")
    color, marker = OTHERS[others.index(name) % len(OTHERS)]
    return Method("another encoder, frozen, linear layer", color, marker)


def baselines_of(name: str, scores: Scores) -> list[str]:
    """The methods that a method of these scores is compared with; linear evaluation with other encoders too."""
    method = method_of(name, scores)
    if method is None:
        return []
    named = list(method.baselines)
    if name in ("simclr", scores.protocol["run"]):
        named += [other for other in scores.protocol.get("methods", {}) if other not in (*METHODS, name)]
    return named
