"""A run's health in plain words, from its log alone: each verdict with the figure behind it. No torch.

The thresholds stand between what planted runs logged (benchmarks/health.py: test_resnet and a small ViT, SGD and AdamW,
batches of 32 to 256, temperatures 0.1 to 5, 90 to 160 steps). Two measures make runs of other sizes comparable:

- the loss as a share of its way from chance, log(M - 1), all M projections being the same, to the least it can be, the
  views of an image being the same and all others at right angles;
- the uniformity of the projections, which the batch and the temperature change little: about -3 when a run begins.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Fields = dict[str, Any]
Level = Literal["good", "watch", "bad"]
Judged = tuple[Level, str, str] | None  # words and figure; None: not enough log


class Verdict(NamedTuple):
    """What is judged (of the overall one: what the run is), how it is, in words, and the figure behind them."""

    name: str
    level: Level
    words: str
    figure: str


FEW_STEPS, FEW_LINES = 50, 4  # healthy runs were still at chance after 15 to 30 steps: less is not enough to judge
STUCK = 0.1  # of the way from chance: collapsed runs ended at -0.2 to 0, rates of 1000 0.05 to 0.13, healthy from 0.15
POOR = 0.25  # rates of 100 ended at 0.16 to 0.21; healthy SGD at 0.22 (140 steps of batch 32) to 0.62
ONE_POINT, ONE_DIRECTION = -0.1, 1.5  # uniformity, effective rank (collapsed: 1.0; all others: from 2)
CONTRACTED = -1.3  # uniformity at the end: rates of 100 and more, -1.20 to -0.41; healthy, -3.3 to -1.62
SHAKEN = -1.1  # uniformity on the way: rates of 10 and 30, -1.0 to -0.45, and then they recovered; healthy, under -1.6
HIGH_RATE = 30  # times the optimizer's default: nothing was lost at 25, projections contracted at 83, runs ended at 800
FORGETS = 0.1  # of a weight in the optimizer's memory: 0.075 cost a third of the way, 0.22 nearly all; usual: 0.0006
EASY, SOON, ENOUGH = 0.4, 100, 60  # contrastive top-1, by which step, of how many: crop 0.57 up, SimCLR to 0.28
FEW_NEGATIVES = 62  # a batch of 32; SimCLR figure 9 begins at 256 and finds small batches worst in short runs
BARELY = 8  # times chance that contrastive top-1 is at the end: broken runs 1.2 to 7, healthy ones from 9.9
SLUMP = 0.05  # of kNN below its best: broken runs lost up to 0.57, healthy ones at most 0.03
UNFINISHED = 0.05  # of all that the loss fell, in the last quarter
WAITS = 0.2  # of the time: a quarter faster without

DEFAULTS = {"sgd": (0.12, 5e-4), "lars": (0.3, 1e-6), "adamw": (1e-3, 0.05)}  # pretrain.optimizer's, without torch
MEMORY = {"sgd": 10, "adamw": 1}  # steps' worth of decay that momentum 0.9 adds up; LARS makes a step relative: none

DIAGNOSES = {  # what a bad verdict makes of the run; gravest first, for one cause has several symptoms
    "spread": "collapsed",
    "decay": "weight decay too high",
    "negatives": "no negatives",
    "rate": "rate too high",
    "loss": "nothing learnt",
    "views": "views too easy",
    "baselines": "no better than its baselines",
}


def health(config: Fields, metrics: list[Fields], scores: Fields | None = None) -> list[Verdict]:
    """The overall verdict, then one for each thing that this log has enough to judge.

    Args: config: config.json. metrics: the lines of metrics.jsonl; none needs all fields. scores: evaluation.json.
    The first verdict's name is "healthy", "not enough log" or one of DIAGNOSES.
    """
    log = Log(config, [line for line in metrics if isinstance(line.get("step"), int)])
    found = {name: judge(log) for name, judge in JUDGES.items()} | {"baselines": _baselines(scores or {})}
    verdicts = [Verdict(name, *judged) for name, judged in found.items() if judged]
    return [_overall(verdicts), *verdicts]


def _overall(found: list[Verdict]) -> Verdict:
    by_name = {verdict.name: verdict for verdict in found}
    for name, diagnosis in DIAGNOSES.items():
        if name in by_name and by_name[name].level == "bad":
            return by_name[name]._replace(name=diagnosis)
    if "loss" not in by_name:
        return Verdict("not enough log", "watch", "not enough log to judge: a few dozen steps would do", "")
    minded = ", ".join(verdict.name for verdict in found if verdict.level == "watch")
    words = "it learns as it should" + (f"; but mind {minded}" if minded else "")
    return Verdict("healthy", "good", words, by_name["loss"].figure)


@dataclass(frozen=True)
class Log:
    """The settings and the log's columns; what a line lacks, or has as no finite number, is left out."""

    config: Fields
    lines: list[Fields]

    def of(self, name: str, until: int | None = None) -> NDArray[np.float64]:
        """A column, up to a step."""
        values = (line.get(name) for line in self.lines if until is None or line["step"] <= until)
        return np.array([v for v in values if isinstance(v, int | float) and math.isfinite(v)], np.float64)

    def end(self, name: str) -> float | None:
        """Mean of a column's last quarter, of two lines at least where there are: one batch alone is noisy."""
        values = self.of(name)
        return float(values[-max(2, len(values) // 4) :].mean()) if len(values) else None

    def last(self, name: str) -> float | None:
        values = self.of(name)
        return float(values[-1]) if len(values) else None

    def number(self, name: str) -> float | None:
        """A setting, if it is there and a number."""
        value = self.config.get(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    @property
    def loss(self) -> str:
        return str(self.config.get("loss", "nt-xent"))

    @property
    def long_enough(self) -> bool:
        return len(self.of("loss")) >= FEW_LINES and bool(self.lines[-1]["step"] >= FEW_STEPS)

    @property
    def steps(self) -> float | None:
        return (self.number("epochs") or 0) * (self.number("steps_per_epoch") or 0) or None

    @property
    def stopped(self) -> bool:
        return self.steps is not None and (self.last("step") or 0) < self.steps

    def times(self, name: str) -> float | None:
        """`lr` or `weight_decay`, as a multiple of the optimizer's default."""
        set_to, usual = self.number(name), DEFAULTS.get(str(self.config.get("optimizer")))
        return set_to / usual[name == "weight_decay"] if set_to and usual else None

    @property
    def others(self) -> float | None:
        """M - 1: the projections that an anchor is compared with; those of one class are no negatives in SupCon."""
        views, negatives, batch = self.number("views") or 2.0, self.last("negatives"), self.number("batch_size")
        if self.loss == "nt-xent" and negatives is not None:
            return negatives + views - 1
        return views * min(batch, self.number("images") or batch) - 1 if batch else None

    @property
    def chance(self) -> float | None:
        """The loss of an encoder to which all images are the same."""
        if self.loss in ("nt-xent", "supcon"):
            return math.log(self.others) if self.others and self.others > 1 else None
        classes = self.config.get("classes")
        return math.log(len(classes)) if self.loss == "cross-entropy" and classes and len(classes) > 1 else None

    @property
    def way(self) -> float | None:
        """How far the loss has come from chance (0) to its least (1); below 0 it is worse than chance."""
        loss, tau, chance, others = self.end("loss"), self.number("temperature"), self.chance, self.others
        if loss is None or chance is None:
            return None
        if self.loss == "cross-entropy":
            return 1 - loss / chance
        negatives = self.last("negatives") if len(self.of("negatives")) else (others or 1.0) - 1  # an old log has none
        if not tau or not others or not negatives:
            return None
        return (chance - loss) / (chance - math.log(others - negatives + negatives * math.exp(-1 / tau)))

    @property
    def stuck(self) -> bool:
        return self.way is not None and self.way < STUCK


def _watch(minded: bool, watch: str, good: str, figure: str) -> Judged:
    return ("watch", watch, figure) if minded else ("good", good, figure)


def _spread(log: Log) -> Judged:
    uniformity, rank = log.end("uniformity"), log.last("effective_rank")
    figures = [] if uniformity is None else [f"uniformity {uniformity:.2f} (0: one point, -4: spread out)"]
    figures += [] if rank is None else [f"effective rank {rank:.1f}"]
    words = "the encoder gives all images the same {}: look for a rate or decay too high, or images all alike"
    # A few watched images span few directions, and SupCon of two classes few clusters: only if the loss agrees.
    if log.stuck and rank is not None and rank < ONE_DIRECTION:
        return "bad", words.format("representation"), ", ".join(figures)
    if log.stuck and uniformity is not None and uniformity > ONE_POINT:
        return "bad", words.format("projection"), ", ".join(figures)
    close = log.loss == "nt-xent" and uniformity is not None and uniformity > CONTRACTED
    if not figures or not (close or log.long_enough):
        return None
    return _watch(close, "the projections lie close together", "the images are spread out", ", ".join(figures))


def _forgotten(log: Log) -> float | None:
    """How much of a weight its decay takes away within the optimizer's memory, at the peak rate."""
    rate, decay, share = log.number("lr"), log.number("weight_decay"), (log.number("batch_size") or 0.0) / 256
    memory = MEMORY.get(str(log.config.get("optimizer")))
    if rate is None or decay is None or memory is None:
        return None
    return memory * decay * rate * (math.sqrt(share) if log.config.get("lr_scaling") == "sqrt" else share)


def _decay(log: Log) -> Judged:
    share = _forgotten(log)
    if share is None or share <= FORGETS:
        return None
    figure = f"{share:.2g} of a weight forgotten within {MEMORY[log.config['optimizer']]} steps"
    if _decay_to_blame(log):
        return "bad", "the weight decay wipes out what is learnt: try a lower --weight-decay", figure
    return "watch", "the weight decay is high for this rate", figure


def _decay_to_blame(log: Log) -> bool:
    """Whether the run suffers, and the decay more than the rate is what makes the two together so high."""
    share, rate, decay = _forgotten(log) or 0.0, log.times("lr") or 0.0, log.times("weight_decay") or 0.0
    return share > FORGETS and decay > rate and (log.stuck or (log.stopped and share > 1))


def _negatives(log: Log) -> Judged:
    if (negatives := log.end("negatives")) is None:
        return None
    figure = f"{negatives:.0f} negatives an anchor"
    if not negatives:
        return "bad", "nothing to tell apart: every batch is of one class, or of one image", figure
    return _watch(negatives < FEW_NEGATIVES, "few: try a larger --batch-size, or more epochs", "enough", figure)


def _rate(log: Log) -> Judged:
    times, loss, path, end = log.times("lr"), log.last("loss"), log.of("uniformity"), log.end("uniformity")
    if _decay_to_blame(log):
        return None
    lower = "try a lower --lr, or a longer --warmup"
    high = times is not None and times > HIGH_RATE
    said = f"--lr {log.number('lr'):.3g}, {times:.2g} times the default" if times else "the rate is not known"
    lost = not log.long_enough and (loss is None or loss > (log.chance or math.inf))
    if high and log.stopped and lost:  # `Diverged` leaves no line behind
        return "bad", f"the run stopped early, at a very high rate: {lower}", f"{said}, {_told(log)}"
    if log.loss != "nt-xent" or len(path) < 3 or end is None:
        return ("watch", f"a very high rate: {lower} if the run stops early", said) if high else None
    if end > CONTRACTED and log.way is not None and log.way < POOR:
        words = f"large steps have drawn the projections together, and little is learnt: {lower}"
        return "bad", words, f"{said}, uniformity {end:.2f}, {_told(log)}"
    highest = float(np.convolve(path, np.ones(3) / 3, "valid").max())
    words, figure = f"high, though the run has got over it: {lower}", f"{said}, uniformity up to {highest:.2f}"
    return _watch(high or highest > SHAKEN, words, "the rate does no harm", figure)


def _told(log: Log) -> str:
    loss, chance = log.end("loss"), "" if log.chance is None else f" (chance: {log.chance:.2f})"
    return "no loss logged" if loss is None else f"loss {loss:.2f}{chance}"


def _loss(log: Log) -> Judged:
    way, first, end = log.way, log.of("loss")[:1], log.end("loss")
    if not log.long_enough or end is None:
        return None
    if way is None:
        figure = f"{_told(log)}, {first[0]:.2f} at first"
        return ("good", "the loss falls", figure) if end < first[0] else ("bad", "the loss has not fallen", figure)
    figure = f"{_told(log)}, {max(0, way):.0%} of the way to its least"
    if way <= 0:
        return "bad", "no better than chance: try another --lr, or milder views", figure
    return _watch(
        way < STUCK, "hardly better than chance: train longer, or try another --lr", "well below chance", figure
    )


def _views(log: Log) -> Judged:
    early, negatives, watched = log.of("contrastive_top1", until=SOON)[-3:], log.last("negatives"), log.of("knn")
    if log.loss != "nt-xent" or not len(early) or not negatives:
        return None
    easy = bool(early.mean() > EASY) and not log.config.get("weights")  # such a start finds any view easy
    figure = f"contrastive top-1 {early.mean():.2f} by step {SOON} (chance: {1 / (negatives + 1):.2g})"
    figure += f", kNN {watched[0]:.2f} to {watched[-1]:.2f}" if len(watched) > 1 else ""
    if _keeps_colors(log.config):
        words = "the views keep their colors, and these alone may tell images apart: use --policy simclr"
        return "bad" if easy else "watch", words, figure
    if not easy and not log.long_enough:
        return None
    soon = easy and negatives >= ENOUGH
    return _watch(soon, "soon told apart: try a higher --strength or lower --min-area", "hard enough", figure)


def _keeps_colors(config: Fields) -> bool:
    """Whether neither the policy, nor any op of one put together, changes colors."""
    policy = str(config.get("policy", "simclr"))
    changes = any(op in policy for op in ("ColorJitter(", "Grayscale(", "Grey(", "AutoAugment(", "RandAugment("))
    return policy == "crop" or ("(" in policy and not changes)


def _contrast(log: Log) -> Judged:
    top1, negatives = log.end("contrastive_top1"), log.last("negatives")
    if top1 is None or not negatives or not log.long_enough or log.loss != "nt-xent":
        return None
    times = top1 * (negatives + 1)
    figure = f"contrastive top-1 {top1:.3f}, {times:.1f} times chance"
    return _watch(times < BARELY, "an anchor hardly finds its positive", "an anchor finds its positive", figure)


def _knn(log: Log) -> Judged:
    watched, losses = log.of("knn"), log.of("loss")
    if len(watched) < 2:
        return None
    first, best, last = float(watched[0]), float(watched.max()), float(watched[-1])
    figure = f"kNN {first:.3f} at first, {best:.3f} at best, {last:.3f} at the end"
    if last < best - SLUMP:
        falls = ", while the loss falls" if len(losses) and losses[-1] < losses[0] else ""
        return "watch", f"the representation gets worse{falls}", figure
    return _watch(last <= first, "the representation gets no better", "it gets better", figure)


def _trend(log: Log) -> Judged:
    losses = log.of("loss")
    quarter = len(losses) // 4
    if quarter < 2 or log.stopped or log.stuck:
        return None
    before, after = losses[-2 * quarter : -quarter], losses[-quarter:]
    noise = 2 * math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / quarter)
    falls = bool(before.mean() - after.mean() > max(noise, UNFINISHED * (losses[0] - after.mean())))
    figure = f"loss {before.mean():.3f}, and {after.mean():.3f} in the last quarter"
    return _watch(falls, "still improving: --resume with more --epochs", "the loss has levelled off", figure)


def _schedule(log: Log) -> Judged:
    step, rate, peak = log.last("step"), log.last("lr"), max(log.of("lr"), default=0.0)
    if step is None or rate is None or not peak or log.steps is None:
        return None
    figure = f"step {step:.0f} of {log.steps:.0f}, rate at {rate / peak:.0%} of its peak"
    return _watch(log.stopped, "the run has not ended: --resume goes on", "the run has ended as planned", figure)


def _data(log: Log) -> Judged:
    waiting = log.of("waiting")[1:]  # the first line has the start of the feed in it
    if not len(waiting):
        return None
    share = float(np.median(waiting))
    figure = f"{share:.0%} of the time waiting for data"
    return _watch(share > WAITS, "slow: a larger --cache-gib, or smaller files", "the images come fast enough", figure)


def _skipped(log: Log) -> Judged:
    skipped, images = log.number("skipped"), log.number("images")
    if skipped is None or not images:
        return None
    figure = f"{skipped:.0f} of {skipped + images:.0f} images"
    return _watch(skipped > 0, "some cannot be read: skipped.csv lists them", "every image can be read", figure)


def _baselines(scores: Fields) -> Judged:
    rows = [row for row in scores.get("rows", []) if row.get("mean") is not None]
    means = {(row.get("method"), row.get("labels_per_class")): row["mean"] for row in rows}
    ours = {budget: mean for (method, budget), mean in means.items() if method == "simclr"}
    others = [key for key in means if key[0] in ("pixels", "random") and key[1] in ours]
    gains = [ours[budget] - means[other, budget] for other, budget in others]
    if not gains:
        return None
    other, budget = others[gains.index(min(gains))]
    figure = f"{min(gains):+.3f} against {other} at {budget} labels" + (" a class" if budget != "all" else "")
    if max(gains) <= 0:
        return "bad", "no better than a baseline at any number of labels", figure
    return _watch(bool(min(gains) <= 0), "not better than every baseline", "better than its baselines", figure)


LEARNING = (_spread, _decay, _negatives, _rate, _loss, _views, _contrast, _knn, _trend)
JUDGES: dict[str, Callable[[Log], Judged]] = {j.__name__[1:]: j for j in (*LEARNING, _schedule, _data, _skipped)}
