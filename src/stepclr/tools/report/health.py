"""A run's health in plain words, judged from its settings and its log: each verdict with the figure behind it.

The thresholds separate planted runs (benchmarks/health.py: test_resnet and a small ViT, SGD and AdamW, batches of 32 to
256, temperatures 0.1 to 5, 90 to 160 steps). Two measures make runs of other sizes comparable:

- the loss as a share of its way from chance, where all M projections are the same, to its least value, where the views
  of an image coincide and are at right angles to all others. Chance is the log of how many projections the loss's
  denominator sums: M - 1, or the negatives alone. The positives of a supervised loss include other images, which are
  far apart at first. Its loss then begins above chance and may stay there while the run learns, so that the way of
  projections that have not drawn together begins at the first loss;
- the uniformity of the projections, which depends little on batch and temperature: about -3 when a run begins.
"""

import math
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepclr.config import OPTIMIZERS, RunConfig
from stepclr.evaluation.baselines import START
from stepclr.evaluation.results import Scores
from stepclr.evaluation.splits import labels_words
from stepclr.loss.objectives import OBJECTIVES
from stepclr.metrics import PercentFormatter, whole_percent
from stepclr.pretraining.optim import scaled_lr
from stepclr.tools.gains import gains_of
from stepclr.tools.report.log import Log, mean
from stepclr.views.ops import AutoAugment, ColorJitter, Equalize, Grayscale, RandAugment, Solarize
from stepclr.views.policies import read_policy

Json = dict[str, Any]
Level = Literal["good", "watch", "bad"]
Facts = SimpleNamespace

MIN_STEPS, MIN_LINES = 50, 4  # healthy runs were still at chance after 15 to 30 steps: fewer are not judged
STUCK = 0.1  # of the way from chance: collapsed runs ended at -0.2 to 0, rates of 1000 0.05 to 0.13, healthy from 0.15
POOR = 0.25  # rates of 100 ended at 0.16 to 0.21; healthy SGD at 0.22 (140 steps of batch 32) to 0.62
ONE_POINT, ONE_DIRECTION = -0.1, 1.5  # uniformity, effective rank (collapsed: 1.0; all others: from 2)
TOGETHER = -0.9  # uniformity of SupCon near chance: decays of 1 and 30, -0.29 and -0.40; healthy, -3.8 to -1.2
CONTRACTED = -1.3  # uniformity at the end: rates of 100 and more, -1.20 to -0.41; healthy, -3.3 to -1.62
SHAKEN = -1.1  # uniformity on the way: rates of 10 and 30, -1.0 to -0.45, and then they recovered; healthy, under -1.6
HIGH_RATE = 30  # times the optimizer's default: nothing was lost at 25, projections contracted at 83, runs ended at 800
FORGETS = 0.1  # of a weight in the optimizer's memory: 0.075 cost a third of the way, 0.22 nearly all; usual: 0.0006
EASY, EARLY, ENOUGH = 0.4, 100, 60  # contrastive top-1, by which step, of how many: crop from 0.57, SimCLR to 0.28
FEW_NEGATIVES = 62  # a batch of 32; SimCLR figure 9 begins at 256 and finds small batches worst in short runs
BARELY = 8  # times chance that contrastive top-1 is at the end: broken runs 1.2 to 7, healthy ones from 9.9
SLUMP = 0.05  # of kNN below its best: broken runs lost up to 0.57, healthy ones at most 0.03; of few images, 2 errors
UNFINISHED = 0.05  # of all that the loss fell, from one part to the next
WAITS = 0.2  # of the time: a quarter faster without

MEMORY = {"sgd": 10, "adamw": 1}  # steps' worth of decay that momentum 0.9 adds up; LARS makes a step relative: none
RECOLORING = ColorJitter | Grayscale | AutoAugment | RandAugment | Solarize | Equalize  # ops that change colors

SAME = "all images get the same {}: look for a rate or decay that is too high, or for images that all look alike"
LOWER = "try a lower --lr, or a longer --warmup"
COLORS = "the views keep their colors, which may suffice to tell images apart: use --policy simclr"

DIAGNOSES = {  # what a bad verdict makes of the run; the most severe first, because one cause has several symptoms
    "spread": "collapsed",
    "decay": "weight decay too high",
    "negatives": "no negatives",
    "rate": "rate too high",
    "loss": "nothing learned",
    "views": "views too easy",
    "baselines": "no better than its baselines",
}


class Verdict(NamedTuple):
    """What is judged (for the overall verdict: what the run is), how it is, in words, and the figure behind them."""

    name: str
    level: Level
    words: str
    figure: str


def health(config: RunConfig, metrics: list[Json], scores: Scores | None = None) -> list[Verdict]:
    """The overall verdict, then one for everything that this log is long enough to judge.

    Args: metrics: the lines of metrics.jsonl; none needs all fields.
    The first verdict's name is "healthy", "too short to judge" or one of DIAGNOSES.
    """
    facts = facts_of(config, Log([line for line in metrics if isinstance(line.get("step"), int)]), scores)
    verdicts = []
    for name, figure, *outcomes in RULES:
        for level, condition, words in outcomes:
            if condition(facts):
                verdicts.append(Verdict(name, level, words, PercentFormatter().format(figure, **vars(facts))))
                break
    return [_overall({verdict.name: verdict for verdict in verdicts}), *verdicts]


def _overall(verdicts: dict[str, Verdict]) -> Verdict:
    for name, diagnosis in DIAGNOSES.items():
        if name in verdicts and verdicts[name].level == "bad":
            return verdicts[name]._replace(name=diagnosis)
    if "loss" not in verdicts:
        return Verdict("too short to judge", "watch", f"health is judged from {MIN_STEPS} steps on", "")
    watched = ", ".join(verdict.name for verdict in verdicts.values() if verdict.level == "watch")
    words = f"learning normally, but watch {watched}" if watched else "learning normally"
    return Verdict("healthy", "good", words, verdicts["loss"].figure)


def facts_of(config: RunConfig, log: Log, scores: Scores | None = None) -> Facts:
    """All that the rules ask of a run. A number that is not known is NaN: no comparison with it holds."""
    f = Facts(config=config, early=EARLY)
    objective = OBJECTIVES[config.loss]
    f.self_supervised = objective.contrastive and not objective.needs_labels  # all other images are negatives

    # How far the run has come.
    f.step, f.steps = log.last("step"), config.steps
    f.stopped = not f.step >= f.steps
    f.long_enough = len(log.of("loss")) >= MIN_LINES and f.step >= MIN_STEPS
    peak = max(log.of("lr"), default=0.0)
    f.lr_left = log.last("lr") / peak if peak else math.nan

    f.uniformity, f.rank = log.end("uniformity"), log.last("effective_rank")
    _loss_facts(f, log)
    _trend_facts(f, log.of("loss"))
    _rate_facts(f, log)
    _views_facts(f, log)

    knn, waiting = log.of("knn"), log.of("waiting")[1:]  # the first line includes the start of the loader
    f.first_knn, f.best_knn, f.last_knn, f.knn_words = math.nan, math.nan, math.nan, ""
    if len(knn) > 1:
        f.first_knn, f.best_knn, f.last_knn = knn[0], knn.max(), knn[-1]
        f.knn_words = f", kNN {whole_percent(f.first_knn)} to {whole_percent(f.last_knn)}"
    images = log.last("knn_images")  # NaN in logs of earlier versions
    f.slump = f.best_knn - f.last_knn > np.fmax(SLUMP, 2 * math.sqrt(f.best_knn * (1 - f.best_knn) / images))
    f.waiting = float(np.median(waiting)) if len(waiting) else math.nan
    f.all_images = config.images + config.skipped

    # How far linear evaluation of the run is above that of the baselines, which have learned nothing from these images.
    scores = scores or Scores([], {})
    ours = [row for row in scores.rows if row.method == "simclr"]
    gains = [(gain, row) for row in ours for gain in gains_of(row, scores) if gain.over in ("pixels", "random", START)]
    f.gain_levels = {gain.level for gain, _ in gains}  # what is within the noise is neither good nor bad
    if gains:
        least, row = min(gains, key=lambda one: one[0].mean)
        f.least_gain, f.worst_baseline = least.mean, f"{least.over} with {labels_words(row.labels_per_class)}"
    return f


def _loss_facts(f: Facts, log: Log) -> None:
    config, objective = f.config, OBJECTIVES[f.config.loss]
    f.loss, f.first_loss, f.last_loss = log.end("loss"), log.first("loss"), log.last("loss")
    f.negatives, f.mean_negatives = log.last("negatives"), log.end("negatives")

    # M - 1, the projections that an anchor is compared with; in SupCon those of its class are not negatives.
    others = config.views * min(config.batch_size, config.images) - 1
    if f.self_supervised and f.negatives >= 0:
        others = f.negatives + config.views - 1
    chance, least, apart = math.nan, math.nan, False
    if objective.contrastive and others > 1:
        negatives = f.negatives if f.negatives >= 0 else others - 1
        positives = others - negatives if objective.positives_in_denominator else 0
        if negatives > 0:
            chance = math.log(positives + negatives)
            least = math.log(positives + negatives * math.exp(-1 / config.temperature))
        apart = not f.self_supervised and f.uniformity < TOGETHER and not f.rank < ONE_DIRECTION
    elif objective.needs_labels and len(config.classes) > 1:
        chance, least = math.log(len(config.classes)), 0.0
    by_chance = not math.isnan(chance) and not (apart and f.first_loss > chance)
    f.to_chance = f.long_enough and by_chance
    f.start, start = (chance, "chance") if by_chance else (f.first_loss, "at first")
    f.way = (f.start - f.loss) / (f.start - least)
    f.stuck = f.way < STUCK

    f.loss_words = "no loss logged"
    if not math.isnan(f.loss):
        f.loss_words = f"loss {f.loss:.2f} ({start}: {f.start:.2f})"
    f.way_words = f.loss_words
    if not math.isnan(f.way):
        f.way_words += f", {whole_percent(min(1, max(0, f.way)))} of the way to its least value"


def _trend_facts(f: Facts, losses: NDArray[np.float64]) -> None:
    """Mean loss of the last part and of the one before it, of views of the same size, and what of it may be noise."""
    f.before, f.after, f.noise = math.nan, math.nan, math.nan
    parts, f.part = (8, "eighth") if f.config.progressive else (4, "quarter")  # full views in its last quarter
    length = len(losses) // parts
    if length < 2 or f.stopped or f.stuck:
        return
    before, after = losses[-2 * length : -length], losses[-length:]
    f.before, f.after = mean(before), mean(after)
    noise = 2 * math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / length)
    f.noise = max(noise, UNFINISHED * (losses[0] - f.after))


def _rate_facts(f: Facts, log: Log) -> None:
    """The rate and the decay, and the projections and representations that suffer where these are too high."""
    config = f.config
    uniformity = "" if math.isnan(f.uniformity) else f"uniformity {f.uniformity:.2f} (0: one point, -4: spread out)"
    images = log.last("effective_rank_images")
    rank = "" if math.isnan(f.rank) else f"effective rank {f.rank:.1f}"
    if not math.isnan(images):
        rank += f" of {images:.0f} images"
    f.spread_words = ", ".join(filter(None, (uniformity, rank)))
    f.contracted = f.self_supervised and f.uniformity > CONTRACTED  # SupCon may draw a class together

    default_lr, default_decay = OPTIMIZERS[config.optimizer]
    lr_times, decay_times = config.lr / default_lr, config.weight_decay / default_decay
    # How much of a weight its decay takes away within the optimizer's memory, at the peak rate.
    f.memory = MEMORY.get(config.optimizer, 0)
    f.forgotten = f.memory * config.weight_decay * scaled_lr(config.lr, config.batch_size, config.lr_scaling)
    suffers = f.stuck or (f.stopped and f.forgotten > 1)
    f.decay_to_blame = suffers and f.forgotten > FORGETS and decay_times > lr_times

    # The rate is judged where the decay is not to blame: by itself, and by the uniformity of three lines in a row.
    path = log.of("uniformity")
    f.high_rate = lr_times > HIGH_RATE and not f.decay_to_blame
    f.path_known = f.self_supervised and len(path) >= 3 and not f.decay_to_blame
    f.highest_uniformity = np.convolve(path, np.ones(3) / 3, "valid").max() if f.path_known else math.nan
    f.pulled_together = f.path_known and f.contracted and f.way < POOR
    f.rate_words = f"--lr {config.lr:.3g}, {lr_times:.2g} times the default, {f.loss_words}"
    if f.path_known:
        f.rate_words += f", uniformity up to {f.highest_uniformity:.2f}"
    # A run that diverged logs no line of it.
    f.lost = f.stopped and not f.long_enough and (math.isnan(f.last_loss) or f.last_loss > f.start)


def _views_facts(f: Facts, log: Log) -> None:
    """How soon and how well an anchor finds its positive, and whether the views keep the colors of the images."""
    f.top1, f.top1_times, f.early_top1 = log.end("contrastive_top1"), math.nan, math.nan
    if f.self_supervised and f.negatives > 0:
        f.early_top1 = mean(log.of("contrastive_top1", until=EARLY)[-3:])
        f.top1_chance = 1 / (f.negatives + 1)
        if f.long_enough:
            f.top1_times = f.top1 * (f.negatives + 1)
    f.easy = f.early_top1 > EASY and not f.config.weights  # pretrained weights find any view easy
    policy = read_policy(f.config.policy)
    recolors = any(isinstance(op, RECOLORING) for op in policy.ops)
    # A domain's policy keeps colors where its images have none.
    f.keeps_colors = not recolors and not policy.name.startswith("domain:") and f.early_top1 >= 0


# Name, figure (a format string of the facts) and possible verdicts: level, condition, words. The first condition that
# holds makes the verdict; where none holds there is none.
RULES: tuple[tuple[Any, ...], ...] = (
    # A few images span few directions, and SupCon of two classes few clusters: bad only if the loss agrees.
    (
        "spread",
        "{spread_words}",
        ("bad", lambda f: f.stuck and f.rank < ONE_DIRECTION, SAME.format("representation")),
        ("bad", lambda f: f.stuck and f.uniformity > ONE_POINT, SAME.format("projection")),
        ("watch", lambda f: f.contracted, "the projections lie close together"),
        ("good", lambda f: f.spread_words and f.long_enough, "the images are spread out"),
    ),
    (
        "decay",
        "{forgotten:.2g} of a weight forgotten within {memory} steps",
        ("bad", lambda f: f.decay_to_blame, "weight decay wipes out what is learned: try a lower --weight-decay"),
        ("watch", lambda f: f.forgotten > FORGETS, "the weight decay is high for this rate"),
    ),
    (
        "negatives",
        "{mean_negatives:.0f} negatives per anchor",
        ("bad", lambda f: f.mean_negatives == 0, "nothing to contrast: each batch is of one class or one image"),
        ("watch", lambda f: f.mean_negatives < FEW_NEGATIVES, "few: try a larger --batch-size, or more epochs"),
        ("good", lambda f: f.mean_negatives > 0, "enough"),
    ),
    (
        "rate",
        "{rate_words}",
        ("bad", lambda f: f.high_rate and f.lost, f"the run stopped early at a very high rate: {LOWER}"),
        ("watch", lambda f: f.high_rate and not f.path_known, f"a very high rate: if the run stops early, {LOWER}"),
        ("bad", lambda f: f.pulled_together, f"large steps pulled the projections together: {LOWER}"),
        ("watch", lambda f: f.high_rate or f.highest_uniformity > SHAKEN, f"high, but the run recovered: {LOWER}"),
        ("good", lambda f: f.path_known, "the rate does no harm"),
    ),
    (
        "loss",
        "{way_words}",
        ("bad", lambda f: f.to_chance and f.way <= 0, "no better than chance: try another --lr, or milder views"),
        ("watch", lambda f: f.to_chance and f.stuck, "near chance: train longer, or try another --lr"),
        ("good", lambda f: f.to_chance, "well below chance"),
        ("watch", lambda f: f.long_enough and 0 < f.way < STUCK, "hardly fallen: train longer, or try another --lr"),
        ("good", lambda f: f.long_enough and f.loss < f.first_loss, "the loss falls"),
        ("bad", lambda f: f.long_enough, "the loss has not fallen"),
    ),
    (
        "views",
        "contrastive top-1 {early_top1:.0%} by step {early} (chance: {top1_chance:.2g}){knn_words}",
        ("bad", lambda f: f.easy and f.keeps_colors, f"too easy: {COLORS}"),
        ("watch", lambda f: f.early_top1 >= 0 and f.keeps_colors, COLORS),
        ("watch", lambda f: f.easy and f.negatives >= ENOUGH, "too easy: try a higher --strength"),
        ("good", lambda f: f.easy or (f.early_top1 >= 0 and f.long_enough), "hard enough"),
    ),
    (
        "contrast",
        "contrastive top-1 {top1:.1%}, {top1_times:.1f} times chance",
        ("watch", lambda f: f.top1_times < BARELY, "an anchor hardly finds its positive"),
        ("good", lambda f: f.top1_times >= BARELY, "an anchor finds its positive"),
    ),
    (
        "knn",
        "kNN {first_knn:.1%} at first, {best_knn:.1%} at best, {last_knn:.1%} at the end",
        ("watch", lambda f: f.slump and f.last_loss < f.first_loss, "worse while the loss falls"),
        ("watch", lambda f: f.slump, "the representation gets worse"),
        ("watch", lambda f: f.last_knn <= f.first_knn, "the representation gets no better"),
        ("good", lambda f: f.last_knn > f.first_knn, "the representation gets better"),
    ),
    (
        "trend",
        "loss {before:.3f}, then {after:.3f} in the last {part}",
        ("watch", lambda f: f.before - f.after > f.noise, "still improving: --resume with more --epochs"),
        ("good", lambda f: f.before - f.after <= f.noise, "the loss has leveled off"),
    ),
    (
        "schedule",
        "step {step:.0f} of {steps}, rate at {lr_left:.0%} of its peak",
        ("watch", lambda f: f.stopped and f.lr_left >= 0, "the run has not ended: continue it with --resume"),
        ("good", lambda f: f.lr_left >= 0, "the run has ended as planned"),
    ),
    (
        "data",
        "{waiting:.0%} of the time waiting for data",
        ("watch", lambda f: f.waiting > WAITS, "slow: try a larger cache_gib, or smaller files"),
        ("good", lambda f: f.waiting >= 0, "the images come fast enough"),
    ),
    (
        "skipped",
        "{config.skipped} of {all_images} images",
        ("watch", lambda f: f.config.skipped > 0, "some images cannot be read: skipped.csv lists them"),
        ("good", lambda f: f.config.images > 0, "every image can be read"),
    ),
    (
        "baselines",
        "{least_gain:+.1f} points against {worst_baseline}",
        ("good", lambda f: f.gain_levels == {"good"}, "better than its baselines"),
        ("watch", lambda f: f.gain_levels & {"good"}, "not clearly better than every baseline"),
        ("bad", lambda f: f.gain_levels & {"bad"}, "no better than a baseline at any number of labels"),
        ("watch", lambda f: f.gain_levels, "within the noise of its baselines"),
    ),
)
