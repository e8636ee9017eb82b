"""The health of a run in plain words: planted runs get their diagnosis, and no log, however thin, breaks it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stepclr
from stepclr.config import RunConfig
from stepclr.evaluation.results import Score, Scores
from stepclr.pretraining.loop import Diverged
from stepclr.tools.report.health import DIAGNOSES, Verdict, health

PLANTED: dict[str, dict[str, Any]] = {
    "healthy": {"strength": 1.0, "blur": 0.5},
    "collapsed": {"strength": 1.0, "blur": 0.5, "weight_decay": 30.0, "monitor": "sample:train"},  # one h for all
    "rate too high": {"strength": 1.0, "blur": 0.5, "lr": 1000.0},
    "views too easy": {"policy": "crop"},
}
SEEDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


def planted(kind: str, out: Path, **options: Any) -> list[Verdict]:
    settings: dict[str, Any] = {
        "encoder": "test_resnet",
        "stem": "small-stride2",
        "epochs": 4,
        "batch_size": 64,
        "lr": 0.3,
        "temperature": 0.2,
        "head": "128-64",
        "min_area": 0.4,
        "limit": 1000,
        "progress": False,
    }
    run = stepclr.Run(out)
    try:
        stepclr.pretrain("sample:unlabeled", out, **{**settings, **PLANTED[kind], **options})
    except Diverged:
        assert kind == "rate too high"
    return health(run.config, run.metrics)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_run_gets_its_diagnosis(kind: str, seed: int, tmp_path: Path) -> None:
    overall, *others = planted(kind, tmp_path / "run", seed=seed)
    assert overall.name == kind, others
    assert overall.level == ("good" if kind == "healthy" else "bad")
    assert overall.words
    assert any(digit in overall.figure for digit in "0123456789")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_that_diverged_had_a_rate_too_high(seed: int, tmp_path: Path) -> None:
    overall, *_ = planted("rate too high", tmp_path / "run", seed=seed, lr=1e5, epochs=2)
    assert overall.name == "rate too high"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_too_short_is_not_judged(seed: int, tmp_path: Path) -> None:
    overall, *_ = planted("healthy", tmp_path / "run", seed=seed, epochs=2, limit=200)
    assert (overall.name, overall.level) == ("too short to judge", "watch")


CONFIG = RunConfig(
    encoder="resnet18",
    size=32,
    min_area=0.2,
    interpolation="bicubic",
    lr=0.12,
    weight_decay=5e-4,
    warmup=1.0,
    precision="fp32",
    temperature=0.5,
    batch_size=256,
    epochs=20,
    steps_per_epoch=10,
    features=512,
    source="photos/",
    classes=[],
    labeled=0,
    limit=None,
    images=2560,
    skipped=0,
    names_checksum="",
    renderer="numba",
    threads=1,
    ranks=1,
    device="cpu",
)


def log_of(lines: int = 20, **changed: Any) -> list[dict[str, Any]]:
    """A healthy log, a line every ten steps; a field may be changed, to a number or a function of the line's place."""
    fields = {
        "loss": lambda at: 5.1 + 0.9 * 0.5 ** (12 * at),
        "lr": lambda at: 0.12 * (1 - at),
        "images_per_second": 1000.0,
        "waiting": 0.01,
        "contrastive_top1": lambda at: 0.05 + 0.3 * at,
        "alignment": 0.3,
        "uniformity": -2.5,
        "negatives": 510,
        "knn": lambda at: 0.4 + 0.2 * at,
        "effective_rank": 40.0,
        **changed,
    }
    places = ((step, step / lines) for step in range(1, lines + 1))
    return [
        {
            "step": 10 * step,
            "epoch": step,
            **{name: of(at) if callable(of) else of for name, of in fields.items() if of is not None},
        }
        for step, at in places
    ]


def judged(config: dict[str, Any] | None = None, scores: Any = None, **changed: Any) -> dict[str, Verdict]:
    """Verdicts by name, the overall one as "overall"."""
    overall, *others = health(replace(CONFIG, **(config or {})), log_of(**changed), scores)
    return {"overall": overall, **{verdict.name: verdict for verdict in others}}


def test_a_healthy_log_is_good_all_through() -> None:
    verdicts = judged()
    assert verdicts["overall"].name == "healthy"
    assert {verdict.level for verdict in verdicts.values()} == {"good"}, verdicts
    assert {"spread", "rate", "loss", "views", "contrast", "knn", "trend", "schedule", "data"} <= verdicts.keys()
    assert "5.10 (chance: 6.24)" in verdicts["loss"].figure


@pytest.mark.parametrize(
    ("name", "level", "config", "changed", "figure"),
    [
        ("spread", "bad", {}, {"uniformity": -0.01, "loss": 6.236}, "uniformity -0.01"),
        ("spread", "bad", {}, {"effective_rank": 1.0, "loss": 6.3}, "effective rank 1.0"),
        ("spread", "watch", {}, {"uniformity": -1.2}, "uniformity -1.20"),
        ("decay", "bad", {"weight_decay": 1.0}, {"loss": 6.3}, "1.2 of a weight"),
        ("decay", "watch", {"weight_decay": 0.2}, {}, "0.24 of a weight"),
        ("negatives", "bad", {"loss": "supcon"}, {"negatives": 0}, "0 negatives"),
        ("negatives", "watch", {}, {"negatives": 14, "loss": 2.0}, "14 negatives"),
        ("rate", "bad", {"lr": 50.0}, {"uniformity": -0.6, "loss": 6.1}, "4.2e+02 times"),
        ("rate", "watch", {}, {"uniformity": lambda at: -0.8 if at < 0.4 else -2.2}, "up to -0.80"),
        ("rate", "watch", {"lr": 10.0}, {}, "83 times"),
        ("loss", "bad", {}, {"loss": 6.3}, "6.30 (chance: 6.24)"),
        ("loss", "watch", {}, {"loss": 6.2}, "2 % of the way"),
        ("views", "bad", {"policy": "crop"}, {"contrastive_top1": 0.7}, "70 % by step 100"),
        ("views", "bad", {"policy": "Blur(p=0.5)"}, {"contrastive_top1": 0.7}, "70 % by step 100"),
        ("views", "watch", {"policy": "crop"}, {"contrastive_top1": 0.2}, "20 % by step 100"),
        ("views", "watch", {}, {"contrastive_top1": 0.7}, "70 % by step 100"),
        ("views", "good", {"policy": "ColorJitter(strength=0.5)+Blur(p=0.5)"}, {}, "by step 100"),
        ("views", "good", {"weights": "timm"}, {"contrastive_top1": 0.7}, "70 %"),
        ("contrast", "watch", {}, {"contrastive_top1": 0.004}, "2.0 times chance"),
        ("knn", "watch", {}, {"knn": lambda at: 0.6 - 0.3 * at}, "30.0 % at the end"),
        ("trend", "watch", {}, {"loss": lambda at: 6.0 - at}, "in the last quarter"),
        # From 75% of the steps on, the views of a progressive run are larger: what they change is no trend.
        ("trend", "good", {"progressive": True}, {"loss": lambda at: 5.6 if at <= 0.75 else 5.0}, "last eighth"),
        ("trend", "watch", {"progressive": True}, {"loss": lambda at: 6.0 - at}, "in the last eighth"),
        ("schedule", "watch", {"epochs": 40}, {}, "step 200 of 400"),
        ("data", "watch", {}, {"waiting": 0.6}, "60 % of the time"),
        ("skipped", "watch", {"skipped": 7, "images": 93}, {}, "7 of 100"),
    ],
)
def test_each_verdict(name: str, level: str, config: dict[str, Any], changed: dict[str, Any], figure: str) -> None:
    verdicts = judged(config, **changed)
    verdict = verdicts[name]
    assert verdict.level == level
    assert figure in verdict.figure
    overall = verdicts["overall"]
    if level == "bad":
        assert (overall.name, overall.level) == (DIAGNOSES[name], "bad")
    elif level == "watch":
        assert (overall.name, name in overall.words) == ("healthy", True)


def test_the_rate_and_not_the_decay_is_to_blame_where_only_the_rate_is_unusual() -> None:
    verdicts = judged({"lr": 500.0}, uniformity=-0.5, loss=6.2)
    assert (verdicts["overall"].name, verdicts["decay"].level) == ("rate too high", "watch")
    verdicts = judged({"weight_decay": 10.0}, uniformity=-0.5, loss=6.2)
    assert verdicts["overall"].name == "weight decay too high"
    assert "rate" not in verdicts


def test_kNN_that_falls_while_the_loss_falls_is_reported() -> None:
    assert "while the loss falls" in judged(knn=lambda at: 0.6 - 0.3 * at)["knn"].words


@pytest.mark.parametrize(("images", "words"), [(9, "no better"), (1000, "worse while the loss falls")])
def test_a_kNN_score_of_few_images_is_not_judged_by_one_of_them(images: int, words: str) -> None:
    assert words in judged(knn=lambda at: 2 / 9 if at < 1 else 1 / 9, knn_images=images)["knn"].words


def test_scores_stand_beside_their_baselines() -> None:
    def scores(noise: float = 0.0, **means: float) -> Scores:
        rows = []
        for k, (method, mean) in enumerate(means.items()):
            draws = mean + noise * np.roll([-1.0, 0.0, 1.0], k)
            rows.append(Score(method, 10, mean, noise, draws.tolist()))
        return Scores(rows, {"run": "simclr"})

    assert judged(scores=scores(simclr=0.7, pixels=0.5, random=0.4))["baselines"].level == "good"
    assert judged(scores=scores(simclr=0.45, pixels=0.5, random=0.4))["baselines"].level == "watch"
    verdicts = judged(scores=scores(simclr=0.35, pixels=0.5, random=0.4))
    assert verdicts["overall"].name == "no better than its baselines"
    assert "-15.0 points against pixels with 10 labels per class" in verdicts["baselines"].figure
    assert "baselines" not in judged(scores=scores(simclr=0.5))

    # A difference that the draws of the labels may have made is no verdict, neither a good nor a bad one.
    for above in (0.51, 0.49):
        within = judged(scores=scores(noise=0.1, simclr=above, pixels=0.5, random=0.5))["baselines"]
        assert (within.level, within.words) == ("watch", "within the noise of its baselines")
    mixed = judged(scores=scores(noise=0.1, simclr=0.51, pixels=0.5, random=0.2))["baselines"]
    assert (mixed.level, mixed.words) == ("watch", "not clearly better than every baseline")


@pytest.mark.parametrize("loss", ["cross-entropy", "distill"])
def test_other_losses_are_judged_by_what_they_log(loss: str) -> None:
    bare = dict.fromkeys(("contrastive_top1", "alignment", "uniformity", "negatives"))
    config = {"loss": loss, "classes": ["a", "b", "c"]}
    good = judged(config, **bare, loss=lambda at: 1.1 - at)
    assert good["overall"].name == "healthy"
    assert not {"rate", "views", "contrast", "negatives"} & good.keys()
    assert judged(config, **bare, loss=lambda at: 1.2 + at)["overall"].name == "nothing learned"


@pytest.mark.parametrize(("negatives", "views", "chance"), [(510, 2, "6.23"), (1020, 4, "6.93")])
def test_chance_of_a_decoupled_loss_is_the_log_of_its_negatives(negatives: int, views: int, chance: str) -> None:
    loss = math.log(negatives) - 1 / 0.5  # its least value: positives coincide, at right angles to all others
    verdicts = judged({"loss": "dcl", "views": views}, negatives=negatives, loss=loss)
    assert f"(chance: {chance}), 100 % of the way" in verdicts["loss"].figure


def test_supcon_may_draw_its_classes_together() -> None:
    verdicts = judged({"loss": "supcon"}, negatives=255, uniformity=-0.7, loss=lambda at: 6.0 - 0.3 * at)
    assert verdicts["overall"].name == "healthy"
    assert (verdicts["spread"].level, "rate" in verdicts) == ("good", False)


@pytest.mark.parametrize(
    ("last", "uniformity", "rank", "name", "figure"),
    [
        # Four classes of CIFAR-10 in batches of 64: kNN of unseen images rose from 44 to 57%, far above chance (4.84).
        (5.78, -3.8, 96.0, "healthy", "5.78 (at first: 7.76), 46 % of the way"),
        (7.60, -3.5, 20.0, "healthy", "7.60 (at first: 7.76), 4 % of the way"),
        (7.80, -3.2, 20.0, "nothing learned", "7.80 (at first: 7.76), 0 % of the way"),
        # These fell from a wild start to the loss of one point: weight decays of 30 and 1 on the sample.
        (4.81, -0.40, 1.0, "collapsed", "4.81 (chance: 4.84)"),
        (4.85, -1.20, 1.0, "collapsed", "4.85 (chance: 4.84)"),
        (4.86, -0.29, 6.9, "nothing learned", "4.86 (chance: 4.84), 0 % of the way"),
    ],
)
def test_supcon_may_learn_far_above_the_loss_of_one_point(
    last: float, uniformity: float, rank: float, name: str, figure: str
) -> None:
    verdicts = judged(
        {"loss": "supcon", "temperature": 0.1, "batch_size": 64, "images": 240},
        negatives=96,
        loss=lambda at: 7.76 if at < 0.1 else last,
        uniformity=uniformity,
        effective_rank=rank,
    )
    assert verdicts["overall"].name == name, verdicts
    assert figure in verdicts["loss"].figure
    hardly = "watch" if last == 7.60 else "good"
    assert verdicts["loss"].level == hardly or name != "healthy"


def test_supcon_that_stops_above_the_loss_of_one_point_is_not_lost() -> None:
    config: dict[str, Any] = {"loss": "supcon", "temperature": 0.1, "batch_size": 64, "images": 240, "lr": 10.0}
    fell, *_ = health(replace(CONFIG, **config), log_of(negatives=96, loss=lambda at: 7.76 - at)[:3])
    rose, *_ = health(replace(CONFIG, **config), log_of(negatives=96, loss=lambda at: 7.76 + at)[:3])
    assert (fell.name, rose.name) == ("too short to judge", "rate too high")


@pytest.mark.parametrize("missing", log_of(1)[0])
def test_a_missing_field_is_no_error(missing: str) -> None:
    lines = [{name: value for name, value in line.items() if name != missing} for line in log_of()]
    overall, *others = health(CONFIG, lines)
    assert overall.name == ("too short to judge" if missing in ("step", "loss") else "healthy"), others


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("name", log_of(1)[0])
def test_a_field_without_a_number_counts_as_missing(name: str, value: Any) -> None:
    lines = log_of()
    with_gaps = [{**line, name: value} for line in lines]
    without = [{field: v for field, v in line.items() if field != name} for line in lines]
    assert health(CONFIG, with_gaps) == health(CONFIG, without)


@pytest.mark.parametrize("count", range(4))
def test_next_to_nothing_is_not_enough_log(count: int) -> None:
    logs: list[list[dict[str, Any]]] = [log_of()[:count], [{}] * count]
    for lines in logs:
        overall, *_ = health(CONFIG, lines)
        assert (overall.name, overall.level) == ("too short to judge", "watch")
