"""The page of a run: true numbers, in any browser window, harmed by no file name, and asking for nothing."""

import base64
import hashlib
import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import call
from window import Window

import stepclr
from stepclr.evaluation.results import Score, Scores, confusion
from stepclr.model.files import load_classifier, save_classifier, state_checksum
from stepclr.tools.gains import paired
from stepclr.tools.images import INK, RULE
from stepclr.tools.methods import COLORS, METHODS
from stepclr.tools.pages import asset, breakable, lines_of
from stepclr.tools.report import contrast as step_5
from stepclr.tools.report.classifier import classifier
from stepclr.tools.report.context import Context, open_context
from stepclr.tools.report.evaluation import evaluation
from stepclr.tools.report.health import Verdict
from stepclr.tools.report.plots import confusion as confusion_plot
from stepclr.tools.report.plots import label_budget, line
from stepclr.tools.report.training import training
from stepclr.tools.report.verdict import verdict

pytestmark = pytest.mark.usefixtures("few_strengths")
EVIL = "<img src=x onerror=window.harmed=1>"
CLASSES = ("a<b>&c", "shoe", "</script><script>window.harmed=1</script>".replace("/", "\u2215"))
STEPS = ("data", "views", "encoder", "head", "loss", "training", "evaluation", "use")
OPTIONS: dict[str, Any] = {
    "encoder": "test_resnet", "size": 32, "epochs": 2, "batch_size": 16, "head": "32-16", "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of colored images of several sizes, whose names are hostile; one of them is broken."""
    folder = tmp_path_factory.mktemp("photos")
    images = torch.stack(list(stepclr.open_images("sample:train").read(range(90)))).numpy()
    for i, grey in enumerate(images[:, 0]):
        home = folder / CLASSES[i % 3]
        home.mkdir(exist_ok=True)
        tint = np.array([1.0, 0.6, 0.3])[[i % 3, (i + 1) % 3, (i + 2) % 3]]
        image = Image.fromarray((grey[..., None] * tint).astype(np.uint8))
        image.resize((40 + i % 7, 36)).save(home / f"{EVIL}{i}.jpg")
    (folder / "shoe" / f"broken {EVIL}.jpg").write_bytes(b"no image")
    (folder / "shoe" / f"raw {EVIL}.CR2").write_bytes(b"II*")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> stepclr.Run:
    """A scored run on these, with its page."""
    run = stepclr.pretrain(photos, tmp_path_factory.mktemp("runs") / f"r {EVIL}".replace("/", ""), **OPTIONS)
    images = stepclr.open_images(photos)
    train, test = images.take(range(0, len(images), 2)), images.take([0, *range(1, len(images), 2)])
    stepclr.evaluate(run, train, test, labels_per_class="2,all", draws=2, baselines="pixels")
    stepclr.report(run)
    return run


def turned(photos: Path, home: Path) -> Path:
    """A folder of the photos, upside down: other images of the same classes."""
    for path in photos.rglob("*.jpg"):
        if "broken" not in path.name:
            copy = home / "turned" / path.relative_to(photos)
            copy.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).rotate(180).save(copy)
    return home / "turned"


@pytest.fixture(scope="module")
def context(run: stepclr.Run) -> Context:
    return open_context(run, None)


@pytest.fixture(scope="module")
def page(run: stepclr.Run) -> str:
    return (run.folder / "report.html").read_text()


def test_it_is_one_small_file_with_eight_steps_and_words_for_every_image_and_plot(page: str) -> None:
    assert len(page.encode()) < 3 * 2**20
    markup = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.S)
    for step in STEPS:
        assert re.search(rf'<h2 id="{step}">', markup)
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', markup) == []
    images = re.findall(r"<img [^>]*>", markup)
    assert len(images) > 100
    assert all(re.search(r'alt="[^"]+"', image) for image in images)
    plots = re.findall(r'<(?:svg|img) class="plot[^>]*(?:aria-label|alt)="([^"]{40,})"', markup)
    assert len(plots) >= 10
    assert "<title>" in markup
    assert "undefined" not in markup
    assert "jinja" not in markup


def test_names_of_files_classes_and_runs_are_text(page: str) -> None:
    assert EVIL not in page
    assert CLASSES[2] not in page
    assert "&lt;img src=x onerror" in page
    assert page.count("<script") == page.count("</script>")
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    styles = re.findall(r"<style>(.*?)</style>", page, flags=re.S)
    for name, texts in (("script-src", scripts), ("style-src", styles)):
        checksum = base64.b64encode(hashlib.sha256("".join(texts).encode()).digest()).decode()
        assert len(texts) == 1
        assert f"{name} 'sha256-{checksum}'" in policy


def test_test_images_that_are_in_train_are_counted(page: str) -> None:
    assert "1 of the 46 test images are in train too (1 identical, 0 nearly identical)" in page
    assert "all labels, clean" in page


def test_what_was_skipped_is_named(page: str) -> None:
    assert "1 images could not be read" in page
    assert "broken &lt;img" in page
    assert "1 files and folders were ignored" in page
    assert re.search(r"raw &lt;img .*: \.cr2 \(raw data of cameras", page)


def test_the_numbers_of_step_5_fit_together(context: Context) -> None:
    told = step_5.contrast(context)
    anchor = told["anchor"]
    assert anchor["log_sum"] - anchor["logit"] == pytest.approx(anchor["loss"], abs=1e-4)
    assert anchor["mean"] == pytest.approx(told["losses"]["after"], abs=1e-4)
    before, after = (np.array(plot.hover["values"]) / 1000 for plot in told["matrices"])
    assert before.shape == after.shape == (2 * told["images"],) * 2
    assert np.allclose(np.diag(after), 1, atol=1e-3)
    assert not np.allclose(before, after, atol=0.1)
    hardest = [one["cosine"] for one in anchor["ranked"] if not one["positive"]]
    assert hardest == sorted(hardest, reverse=True)
    for one in anchor["ranked"]:
        assert one["share"] == pytest.approx(
            math.exp(one["cosine"] / told["temperature"] - anchor["log_sum"]), rel=1e-3
        )


def test_step_5_of_a_decoupled_loss_leaves_the_positives_out_of_its_sum(run: stepclr.Run, tmp_path: Path) -> None:
    copy = stepclr.Run(Path(shutil.copytree(run.folder, tmp_path / "copy")))
    replace(copy.config, loss="dcl").write(copy.folder)
    told = step_5.contrast(open_context(copy, None))
    anchor, pairs = told["anchor"], np.array(told["matrices"][1].hover["values"]) / 1000 / told["temperature"]
    assert told["chance"] == pytest.approx(math.log(2 * told["images"] - 2))
    losses = []
    for i in range(len(pairs)):
        negatives = [pairs[i, k] for k in range(len(pairs)) if k // 2 != i // 2]  # an image's views are neighbors
        losses.append(np.log(np.exp(negatives).sum()) - pairs[i, i ^ 1])
    assert told["losses"]["after"] == pytest.approx(np.mean(losses), abs=2e-3)
    assert anchor["mean"] == pytest.approx(told["losses"]["after"], abs=1e-4)
    assert anchor["log_sum"] - anchor["logit"] == pytest.approx(anchor["loss"], abs=1e-4)
    assert anchor["summed"] == 2 * told["images"] - 2
    assert [one["share"] is None for one in anchor["ranked"]] == [one["positive"] for one in anchor["ranked"]]


def test_without_the_weights_it_began_with_step_5_shows_what_it_is_now(run: stepclr.Run, tmp_path: Path) -> None:
    copy = stepclr.Run(Path(shutil.copytree(run.folder, tmp_path / "copy")))
    replace(copy.config, weights=str(tmp_path / "gone.pt")).write(copy.folder)
    text = stepclr.report(copy.folder).read_text()
    section = text[text.index('<h2 id="loss">') : text.index('<h2 id="training">')]
    assert re.search(r'<p class="note">Not shown before training: [^<]*gone.pt, are not at hand.</p>', section)
    assert "After training" in section
    assert "Before training" not in section
    assert "The loss of one anchor" in section


def test_step_5_normalizes_as_training_did(run: stepclr.Run, tmp_path: Path) -> None:
    """Weights that were adapted with frozen statistics make nothing of those of a batch."""
    copy = stepclr.Run(Path(shutil.copytree(run.folder, tmp_path / "copy")))
    replace(copy.config, batchnorm="frozen").write(copy.folder)
    for batchnorm, of_run in (("batch", run), ("frozen", copy)):
        encoder = open_context(of_run, None).trained.train().encoder
        layers = [layer for layer in encoder.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
        assert {layer.training for layer in layers} == {batchnorm == "batch"}


def test_looking_at_a_run_leaves_its_encoder_as_it_was(run: stepclr.Run) -> None:
    context = open_context(run, None)
    before = {name: value.clone() for name, value in run.encoder().state_dict().items()}
    step_5.contrast(context)
    assert all(torch.equal(value, before[name]) for name, value in context.encoder.state_dict().items())
    assert not context.encoder.training


def test_before_training_is_the_runs_own_beginning(photos: Path, tmp_path: Path) -> None:
    run = stepclr.pretrain(photos, tmp_path / "still", lr=1e-30, weight_decay=0.0, **OPTIONS)
    context = open_context(run, None)
    begun = dict(context.untrained.named_parameters())
    for name, weight in context.trained.named_parameters():
        assert torch.allclose(weight, begun[name], atol=1e-12), name


def test_the_confusion_matrix_is_that_of_the_scores(run: stepclr.Run, photos: Path) -> None:
    scores = json.loads((run.folder / "evaluation.json").read_text())
    told = scores["protocol"]["confusion"]
    [row] = [row for row in scores["rows"] if (row["method"], row["labels_per_class"]) == ("simclr", "all")]
    matrix = np.array(told["matrix"])
    assert matrix.sum() == 46 * len(row["values"])
    assert np.trace(matrix) / matrix.sum() == pytest.approx(row["mean"])
    assert matrix.sum(1).tolist() == [16 * len(row["values"]), 15 * len(row["values"]), 15 * len(row["values"])]
    off = sorted((matrix[i, j] for i in range(3) for j in range(3) if i != j and matrix[i, j]), reverse=True)
    assert [pair["times"] for pair in told["pairs"]] == off[:5]
    names = stepclr.open_images(photos).names
    for pair in told["pairs"]:
        assert matrix[told["classes"].index(pair["is"]), told["classes"].index(pair["taken_for"])] == pair["times"]
        assert all(name in names and name.startswith(pair["is"]) for name in pair["names"])


def test_the_confusion_counts_rows_that_are_and_columns_that_they_are_taken_for() -> None:
    truth = np.array([0, 0, 1, 1, 2])
    draws = [np.array([0, 1, 1, 1, 0]), np.array([1, 1, 1, 2, 0])]
    told = confusion("simclr", 10, draws, truth, ["a", "b", "c"], ["p", "q", "r", "s", "t"])
    counted = [[sum(int(((truth == i) & (d == j)).sum()) for d in draws) for j in range(3)] for i in range(3)]
    assert told["matrix"] == counted == [[1, 3, 0], [0, 3, 1], [2, 0, 0]]
    assert told["pairs"] == [
        {"is": "a", "taken_for": "b", "times": 3, "names": ["q", "p"]},  # q twice, p once
        {"is": "c", "taken_for": "a", "times": 2, "names": ["t"]},
        {"is": "b", "taken_for": "c", "times": 1, "names": ["s"]},
    ]


def test_a_class_without_a_test_image_is_not_the_worst() -> None:
    words = confusion_plot("", ["a", "b", "c"], np.array([[3, 1, 0], [1, 1, 0], [0, 0, 0]])).words
    assert words.endswith("Of 2 classes, a is recognized best (75 %) and b worst (50 %).")


def test_with_all_labels_no_draw_is_claimed(run: stepclr.Run, tmp_path: Path) -> None:
    told(run, tmp_path, lambda scores: scores["protocol"].update(labels_per_class=["all"]))
    sentences = " ".join(evaluation(open_context(stepclr.Run(tmp_path / "copy"), None))["protocol"])
    assert "All labels were used" in sentences
    assert "were drawn" not in sentences


def test_the_page_says_what_computed_the_scores(run: stepclr.Run, tmp_path: Path) -> None:
    def sentences(**changed: Any) -> str:
        home = tmp_path / str(changed)
        told(run, home, lambda scores: scores["protocol"].update(changed))
        return " ".join(evaluation(open_context(stepclr.Run(home / "copy"), None))["protocol"])

    made = {"stepclr": "0.1", "torch": "2.9"}
    assert "Computed by stepclr 0.1, torch 2.9, threads: 2." in sentences(versions=made, threads=2)
    assert "Computed by stepclr 0.1, torch 2.9." in sentences(versions=made, threads=None)
    assert "Computed" not in sentences(versions=None, threads=None)  # as in a file of an earlier version


def test_the_commands_write_it(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["--encoder", "test_resnet", "--size", 32, "--epochs", 1, "--batch-size", 16]
    assert call("pretrain", photos, "--out", run, *words) == 0
    out, notes = capsys.readouterr()
    assert "report.html\ntoo short to judge: health is judged from 50 steps on\n" in out
    assert " % of 90, " in notes  # of how many images kNN is the score
    command = out.splitlines()[-1].strip()
    assert command.startswith(f"stepclr evaluate {run} --train ")
    unscored = (run / "report.html").read_text()
    assert "Not evaluated yet" in unscored
    parts = ["--train", photos, "--test", turned(photos, tmp_path)]
    few = [*parts, "--labels-per-class", "2", "--draws", 1, "--baselines", "none"]
    assert call("evaluate", run, *few) == 0
    scored = (run / "report.html").read_text()
    assert "Not evaluated yet" not in scored
    assert "Label budget" in scored
    (run / "report.html").unlink()
    assert call("report", run) == 0
    assert (run / "report.html").exists()


def test_a_run_whose_images_are_gone_has_a_page_that_says_so(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(photos, tmp_path / "here")
    run = stepclr.pretrain(tmp_path / "here", tmp_path / "run", **OPTIONS)
    (tmp_path / "here").rename(moved)
    assert call("report", run.folder) == 0
    text = (run.folder / "report.html").read_text()
    assert "cannot be shown" in text
    assert "Nearest neighbors" not in text
    assert call("report", run.folder, "--source", moved) == 0
    text = (run.folder / "report.html").read_text()
    assert "cannot be shown" not in text
    assert "Nearest neighbors" in text
    capsys.readouterr()


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "supcon", "policy": "simaugment"},
        {"loss": "cross-entropy"},
        {"policy": "RandAugment(12,9)+VerticalFlip+QuarterTurns+Rotate+Equalize+RandomErasing+HorizontalFlip(0)"},
        {"views": 3, "strength": (1.0, 0.5, 0.2)},
        {"policy": "crop", "loss": "dcl"},
    ],
    ids=["supcon", "cross-entropy", "many ops", "3 views", "crop, dcl"],
)
def test_every_kind_of_run_has_a_page(options: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    run = stepclr.pretrain(photos, tmp_path / "run", **{**OPTIONS, "epochs": 1, **options})
    text = stepclr.report(run).read_text()
    assert ("worked out" in text) == (options.get("loss") != "cross-entropy")
    assert ("guessing costs" in text) == (options.get("loss") in (None, "dcl"))
    assert "One change at a time" in text
    if "RandomErasing" in str(options):
        for words in ("upside down", "turned by ", "rotated by ", "equalize", "px erased at"):
            assert words in text


def test_umap_is_beside_pca_where_it_is_installed(run: stepclr.Run) -> None:
    pytest.importorskip("umap", reason="needs umap-learn, of the extra umap")
    assert "UMAP of h" in stepclr.report(run).read_text()


def test_without_checkpoints_there_is_no_head_to_show(run: stepclr.Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    shutil.rmtree(copy / "checkpoint")
    text = stepclr.report(copy).read_text()
    assert "has no checkpoint" in text
    assert "Nearest neighbors" in text


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": [{}]}', '{"rows": [], "protocol": {"classes": ["a"]}}'])
def test_a_corrupt_evaluation_is_named(
    content: str, run: stepclr.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    (copy / "evaluation.json").write_text(content)
    before = (copy / "report.html").read_bytes()
    assert call("report", copy) == 2
    assert "evaluation.json is corrupt" in capsys.readouterr().err
    assert (copy / "report.html").read_bytes() == before


def test_what_is_not_a_run_has_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", tmp_path) == 2
    assert "is not a run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- the verdict ---


def told(run: stepclr.Run, home: Path, change: Any = None, **config: Any) -> dict[str, Any]:
    """The verdict of a copy of the run, whose evaluation.json was changed (None: removed)."""
    copy = Path(shutil.copytree(run.folder, home / "copy"))
    replace(stepclr.Run(copy).config, **config).write(copy)
    path = copy / "evaluation.json"
    if change is None:
        path.unlink()
    else:
        scores = json.loads(path.read_text())
        change(scores)
        path.write_text(json.dumps(scores))
    context = open_context(stepclr.Run(copy), None)
    return verdict(context, {"training": training(context), "usage": {}, "classifier": {}})


def row(method: str, labels: int | str, *values: float) -> dict[str, Any]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"method": method, "labels_per_class": labels, "mean": float(np.mean(values)), "std": std, "values": values}


def test_the_verdict_is_the_score_and_what_it_beats(run: stepclr.Run, tmp_path: Path) -> None:
    rows = [row("pixels", 2, 0.5, 0.5), row("random", 2, 0.7, 0.72), row("simclr", 2, 0.7, 0.8), row("knn", "all", 0.9)]
    page = told(run, tmp_path, lambda scores: scores.update(rows=[*rows, row("simclr", "all", 0.85)]))
    assert (page["score"], page["words"]) == (
        "75.0 ± 7.1 %",
        "of the 46 test images classified correctly, with 2 labels per class",
    )
    assert "Only 46 test images: each is 2.2 points." in page["cautions"]
    assert [tuple(gain) for gain in page["gains"]] == [
        ("+4.0", "the untrained encoder", "even"),
        ("+25.0", "raw pixels", "good"),
    ]
    assert page["method"] == "pretrained, frozen, linear layer"
    assert page["cautions"][0] == (
        "Neither clearly better nor worse than the untrained encoder: the difference is within the noise of the draws."
    )
    facts = {name: value for name, value, _ in page["facts"]}
    assert (facts["kNN"], facts["With all labels"], facts["Images"]) == ("90.0 %", "85.0 %", "90")
    assert page["next"][1].startswith("stepclr finetune ")


def test_only_a_score_with_all_labels_is_called_that(run: stepclr.Run, tmp_path: Path) -> None:
    rows = [row("simclr", 1, 0.5, 0.6), row("simclr", 2, 0.7, 0.8)]
    page = told(run, tmp_path, lambda scores: scores.update(rows=rows))
    assert "With all labels" not in {name for name, _, _ in page["facts"]}


def test_scores_with_all_labels_alone_need_no_number_of_them(run: stepclr.Run, tmp_path: Path) -> None:
    """As in an evaluation.json of an earlier version, which did not count labels."""
    page = told(run, tmp_path, lambda scores: scores.update(rows=[row("simclr", "all", 0.85), row("knn", "all", 0.9)]))
    assert (page["score"], page["words"].endswith("with all labels")) == ("85.0 %", True)


def test_a_held_out_share_is_that_of_the_seed_in_the_next_command(run: stepclr.Run, tmp_path: Path) -> None:
    drawn = {"share": 0.25, "seed": 3, "names_checksum": "0"}
    page = told(run, tmp_path, lambda scores: scores["protocol"].update(holdout=drawn))
    assert page["next"][1].endswith("--holdout 0.25 --seed 3")


@pytest.mark.parametrize("y", [[1e-14, 4e-14, 2e-14], [0.0, -1e-13], [1.0, 1 + 1e-13], [1e6, 1e6 + 1e-4], [0.0, 0.0]])
def test_a_chart_of_hardly_different_numbers_is_drawn(y: list[float]) -> None:
    """Such as those of a run whose representations collapsed."""
    svg = line("Alignment", [float(k) for k in range(len(y))], y, "").svg
    places = [float(place) for place in re.findall(r'y1="([-.\d]+)%"', svg)]
    assert (min(places), max(places)) == (0, 100)
    assert len(places) > 2


def test_a_run_below_its_baselines_says_so(run: stepclr.Run, tmp_path: Path) -> None:
    rows = [row("start", 2, 0.8, 0.82), row("simclr", 2, 0.7, 0.7)]
    page = told(run, tmp_path, lambda scores: scores.update(rows=rows))
    assert [tuple(gain) for gain in page["gains"]] == [("-11.0", "the weights it began with", "bad")]
    assert page["cautions"][0] == "The pretrained encoder scores below the weights it began with."
    text = stepclr.report(tmp_path / "copy").read_text()
    assert "<b>11.0</b> below the weights it began with" in text


@pytest.mark.parametrize(
    ("better", "command"),
    [
        ((), "stepclr finetune COPY --train "),
        (("scratch",), "stepclr finetune COPY --train "),  # fine-tuned, it may be above
        (("pixels",), "stepclr pretrain PHOTOS --out COPY --resume --epochs 4"),
        (("random", "scratch"), "stepclr pretrain PHOTOS --out COPY --resume --epochs 4"),
        (("pixels", "timm:other"), "stepclr finetune timm:other --train "),
        (("start",), "stepclr pretrain PHOTOS --encoder"),  # again
    ],
)
def test_the_next_step_agrees_with_the_verdict(
    better: tuple[str, ...], command: str, run: stepclr.Run, photos: Path, tmp_path: Path
) -> None:
    def change(scores: dict[str, Any]) -> None:
        scores["rows"] = [row("simclr", 2, 0.7, 0.7), *(row(name, 2, 0.8, 0.82) for name in better)]
        scores["protocol"]["methods"] |= {name: {} for name in better}

    [words, next] = told(run, tmp_path, change)["next"]
    assert next.replace(str(tmp_path / "copy"), "COPY").replace(str(photos), "PHOTOS").startswith(command)
    if "timm:other" in better:
        assert words == "Turn timm:other, which scores better, into a classifier:"
        assert next.endswith("--out classifier.safetensors")
    if better == ("start",):
        assert f"--lr {run.config.lr / 10:.2g}" in next


@pytest.mark.parametrize(
    ("diagnosis", "settings", "proposed"),
    [
        ("nothing learned", {"lr": 9.0}, "pretrain --lr 0.3"),
        ("nothing learned", {"lr": 0.3}, "doctor"),  # what it had: it would learn nothing again
        ("nothing learned", {"lr": 0.3, "weights": "timm:resnet18"}, "pretrain --lr 0.01875"),  # for given weights
        ("nothing learned", {"lr": 0.01875, "weights": "timm:resnet18"}, "doctor"),
        ("rate too high", {"lr": 0.3}, "pretrain --lr 0.03"),
        ("weight decay too high", {"weight_decay": 1.0}, "pretrain --weight-decay 1e-06"),
        ("weight decay too high", {"weight_decay": 1e-6}, "doctor"),
        ("views too easy", {"policy": "crop"}, "pretrain --policy simclr"),
        ("views too easy", {"policy": "simclr"}, "doctor"),
        ("no negatives", {"batch_size": 16}, "pretrain --batch-size 256"),
        ("no negatives", {"batch_size": 256}, "doctor"),
        ("collapsed", {}, "doctor"),
    ],
)
def test_what_is_to_mend_a_run_is_not_what_it_already_had(
    diagnosis: str, settings: dict[str, Any], proposed: str, run: stepclr.Run, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    replace(run.config, optimizer="lars", **settings).write(copy)
    context = open_context(stepclr.Run(copy), None)
    sections = {"training": training(context), "usage": {}, "classifier": {}}
    sections["training"]["health"] = Verdict(diagnosis, "bad", "", "")
    command, _, options = proposed.partition(" ")
    _, next = verdict(context, sections)["next"]
    assert next.startswith(f"stepclr {command} ")
    assert options in next


def test_the_score_of_a_classifier_is_beside_that_of_the_encoder(run: stepclr.Run) -> None:
    context = open_context(run, None)
    scored = {"top1": 0.815, "labels": "2 labels per class"}
    page = verdict(context, {"training": training(context), "usage": {}, "classifier": scored})
    assert ("Classifier", "81.5 %", "2 labels per class") in page["facts"]


@pytest.mark.parametrize(
    ("own", "teachers", "level", "caution"),
    [
        (range(60), range(20), "good", ""),
        (range(60), range(80), "bad", "The student scores below the teacher."),
        (range(51), range(1, 51), "even", "Neither clearly better nor worse than the teacher: the difference is "),
        (range(60), range(60), "even", "Neither clearly better nor worse than the teacher: the difference is "),
    ],
)
def test_a_student_is_judged_by_the_images_that_one_of_the_two_gets_right(
    own: range, teachers: range, level: str, caution: str, run: stepclr.Run, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    (copy / "evaluation.json").unlink()
    context = open_context(stepclr.Run(copy), None)
    hits, of_teacher = (np.isin(np.arange(100), right) for right in (own, teachers))
    classifier = {"top1": 0.6, "file": copy / "c", "test": "", "gain": paired("the teacher", hits, of_teacher, 1)}
    page = verdict(context, {"training": training(context), "usage": {}, "classifier": classifier})
    assert [gain.level for gain in page["gains"]] == [level]
    assert "".join(page["cautions"]).startswith(caution)
    assert bool(page["cautions"]) == bool(caution)
    assert page["next"][1].endswith("--resume --epochs 4") == (level == "bad")


def test_without_scores_the_verdict_claims_none(run: stepclr.Run, tmp_path: Path) -> None:
    page = told(run, tmp_path)
    assert page["words"].startswith("of 90 labeled images ")
    assert "not a score" in page["words"]
    assert page["cautions"] == ["Only 90 labeled images: each is 1.1 points."]
    assert page["gains"] == []
    assert page["next"][1].split()[:2] == ["stepclr", "evaluate"]
    assert page["next"][1].endswith("--holdout 0.2")


def test_the_command_that_scores_a_run_has_its_labels(
    run: stepclr.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "my labels.csv"):
        Path(name).touch()
    page = told(run, tmp_path, labels=["a.csv", "my labels.csv"], source="photos")
    assert page["next"][1].endswith("--train photos --labels a.csv 'my labels.csv' --holdout 0.2")
    shutil.rmtree(tmp_path / "copy")
    page = told(run, tmp_path, labels=["a.csv"], source="photos", split="train")  # the table says what is for testing
    assert page["next"][1].endswith("--train photos --labels a.csv")
    shutil.rmtree(tmp_path / "copy")
    page = told(run, tmp_path, labels=["a.csv"], source="photos", split="train", monitor="watched")
    assert page["next"][1].endswith("--train watched --holdout 0.2")  # which the table does not divide


def test_labels_from_no_file_are_in_the_run(run: stepclr.Run, tmp_path: Path) -> None:
    page = told(run, tmp_path, labels=["the mapping"], source="photos")
    assert page["next"][1].endswith(f"--train photos --labels {tmp_path}/copy/labels.csv --holdout 0.2")


def test_an_encoder_that_learned_from_the_labels_is_scored_on_others(run: stepclr.Run, tmp_path: Path) -> None:
    page = told(run, tmp_path, loss="supcon", source="photos")
    assert page["cautions"][-1] == "Training learned from these very labels: other images may score lower."
    words, command = page["next"]
    assert words == "Score it on labeled images that it has not learned from:"
    assert command.endswith("--train photos --test OTHER_IMAGES")


def test_the_classifier_has_the_test_images_of_the_scores(run: stepclr.Run, tmp_path: Path) -> None:
    for split, test, end in ((None, "others", " --test others"), ("train", "photos", ""), ("train", "x", " --test x")):
        train = {"source": "photos", "labels": ["a.csv"], "split": split}

        def change(scores: dict[str, Any], train: dict[str, Any] = train, test: str = test) -> None:
            scores["rows"] = [row("simclr", 2, 0.7)]
            scores["protocol"]["train"] |= train
            scores["protocol"]["test"] |= train | {"source": test}

        page = told(run, tmp_path, change)
        assert page["next"][1].endswith(f"--train photos --labels a.csv{end}")
        shutil.rmtree(tmp_path / "copy")


def test_the_next_command_has_the_images_where_they_are_now(photos: Path, tmp_path: Path) -> None:
    """Where `source` says that they have moved, for the run and for the scores of the same images."""
    here, moved = tmp_path / "here", tmp_path / "moved"
    shutil.copytree(photos, here)
    run = stepclr.pretrain(here, tmp_path / "run", **OPTIONS)
    for scored, command in ((False, "evaluate"), (True, "finetune")):
        if scored:
            stepclr.evaluate(run, here, holdout=0.3, baselines=())
        here.rename(moved)
        context = open_context(run, moved)
        page = verdict(context, {"training": training(context), "usage": {}, "classifier": {}})
        words = shlex.split(page["next"][1])
        assert words[:3] == ["stepclr", command, str(run.folder)]
        assert words[words.index("--train") + 1] == str(moved)
        assert str(here) not in words
        if context.scores:
            assert context.opened(context.scores.protocol["train"]) is not None
        moved.rename(here)


def test_a_run_without_an_encoder_is_to_be_finished(run: stepclr.Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    for name in ("encoder.safetensors", "evaluation.json"):
        (copy / name).unlink()
    context = open_context(stepclr.Run(copy), None)
    page = verdict(context, {"training": training(context), "usage": {}, "classifier": {}})
    assert page["next"][0] == "Finish the run:"
    assert page["next"][1].endswith(f"--out {copy} --resume")


def test_the_classifier_of_pretraining_is_not_to_be_replaced(run: stepclr.Run, tmp_path: Path) -> None:
    """`finetune` refuses to: the command names another file."""
    rows = [row("simclr", 2, 0.7)]
    page = told(run, tmp_path, lambda scores: scores.update(rows=rows), loss="supcon", linear_epochs=3)
    assert page["next"][1].endswith(" --out classifier.safetensors")


def test_the_ticks_of_a_small_range_differ() -> None:
    svg = line("kNN", [0.0, 1.0], [0.017, 0.035], "share", share=True).svg
    names = re.findall(r'class="left"[^>]*>([^<]+)<', svg)
    assert names == ["1.5 %", "2.0 %", "2.5 %", "3.0 %", "3.5 %"]


def test_scores_of_an_earlier_encoder_are_not_the_verdict(run: stepclr.Run, tmp_path: Path) -> None:
    page = told(run, tmp_path, lambda scores: scores["protocol"]["encoder_sha256"].update(after="0"))
    assert page["gains"] == []
    assert "earlier encoder" in page["cautions"][0]


def test_unbalanced_classes_have_the_balanced_accuracy_beside_the_score(run: stepclr.Run, tmp_path: Path) -> None:
    def change(scores: dict[str, Any]) -> None:
        scores["protocol"]["images_per_class"]["test"] = dict(
            zip(scores["protocol"]["classes"], (40, 5, 1), strict=True)
        )
        balanced = {"mean": 0.4, "std": None, "values": [0.4]}
        per_class = {name: {"images": 2, "mean": 0.25, "std": None} for name in scores["protocol"]["classes"]}
        scores["rows"] = [row("simclr", 2, 0.9) | {"balanced_accuracy": balanced, "per_class": per_class}]

    page = told(run, tmp_path, change)
    assert page["facts"][0] == ("Balanced accuracy", "40.0 %", "every class counts alike")
    section = evaluation(open_context(stepclr.Run(tmp_path / "copy"), None))
    assert [name for name, _ in section["measures"]] == ["balanced accuracy"]
    assert "unbalanced" in section["unbalanced"]
    assert [bar.text for bar in section["per_class"]["bars"]] == ["25.0 % of 2 images"] * 3


def test_a_method_that_nobody_knows_has_a_color(run: stepclr.Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    scores = json.loads((copy / "evaluation.json").read_text())
    scores["rows"] = [row("later", 2, 0.5), row("timm:x", 2, 0.5), row("simclr", 2, 0.6), row("simclr", "all", 0.7)]
    scores["protocol"]["methods"]["timm:x"] = {}
    (copy / "evaluation.json").write_text(json.dumps(scores))
    text = stepclr.report(copy).read_text()
    assert ">timm:x 50.0 %<" in text
    # Charts, tables and sentences write a share in one way; what is left are sizes in CSS.
    assert not re.findall(r">[^<>{}]*\d%[^<>{}]*</(?!style|script)", text)


def test_long_names_are_whole_and_break_where_a_reader_would_break_them() -> None:
    name = "timm:tf_efficientnet_lite0.in1k"
    assert breakable(f"<{name}> 76.5") == "&lt;timm:<wbr>tf_<wbr>efficientnet_<wbr>lite0.<wbr>in1k&gt; 76.5"
    assert lines_of(f"{name} 97.2 %", 21) == ["timm:tf_efficientnet_", "lite0.in1k 97.2 %"]
    assert lines_of("a" * 30, 21) == ["a" * 21, "a" * 9]
    rows = [Score(method, n, 0.5, None, [0.5]) for method in (name, "simclr") for n in (1, 10)]
    rows.append(Score("knn", "all", 0.5, None, [0.5]))
    protocol = {"run": "r", "train": {"images": 90}, "classes": ["a", "b", "c"], "methods": {name: {}}}
    svg = label_budget(Scores(rows, protocol)).svg
    names = ["".join(re.findall("<tspan[^>]*>([^<]*)", text)) for text in re.findall("<text[^>]*led.*?</text>", svg)]
    assert names == [f"{name} 50.0 %", "simclr 50.0 %", "knn 50.0 %"]
    # Three names of one height are apart, whether their lines end at the edge of the chart or before.
    heights = sorted(float(y) for y in re.findall(r'<text x="[^"]*" y="([\d.]+)%" class="end led"', svg))
    assert heights[1] - heights[0] > 5
    assert heights[2] - heights[1] > 5


def test_a_run_that_has_not_ended_has_a_page_without_an_encoder(run: stepclr.Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    (copy / "encoder.safetensors").unlink()
    (copy / "evaluation.json").unlink()
    (copy / "metrics.jsonl").write_text((copy / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    text = stepclr.report(copy).read_text()
    assert "No encoder" in text
    assert "--resume" in text
    assert "Class" not in text.split('id="use"')[1].split("<details")[0]


def test_every_page_and_sheet_has_the_same_colors() -> None:
    style = asset("style.css")
    light = style[: style.index("@media")]
    assert [light.split(f"--c{tone}: ")[1][:7] for tone in range(len(COLORS))] == list(COLORS)
    assert (light.split("--ink: ")[1][:7], light.split("--line: ")[1][:7]) == (INK, RULE)
    assert len({method.tone for method in METHODS.values()}) == len(METHODS)


# --- classifiers ---


@pytest.fixture(scope="module")
def classified(run: stepclr.Run, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the run with a classifier, and the images on which it was scored."""
    home = tmp_path_factory.mktemp("classified")
    copy, test = Path(shutil.copytree(run.folder, home / "copy")), turned(photos, home)
    assert call("finetune", copy, "--train", photos, "--test", test, "--epochs", 1, "--batch-size", 16) == 0
    return copy, test


def test_a_classifier_of_an_earlier_encoder_is_not_the_next_step(classified: tuple[Path, Path], tmp_path: Path) -> None:
    """And of one that is no better than guessing, that is said."""
    copy = Path(shutil.copytree(classified[0], tmp_path / "copy"))
    path = copy / "finetune.json"
    stored = json.loads(path.read_text())

    def next_step(top1: float, of_encoder: str) -> tuple[str, str]:
        protocol = stored["protocol"] | {"of_encoder": of_encoder}
        protocol["classifier"] |= {"top1": top1}
        path.write_text(json.dumps(stored | {"protocol": protocol}))
        context = open_context(stepclr.Run(copy), None)
        page = verdict(context, {"training": training(context), "usage": {}, "classifier": classifier(context)})
        return page["next"][1].split()[1], " ".join(page["cautions"])

    encoder = stored["protocol"]["of_encoder"]
    assert encoder == state_checksum(stepclr.Run(copy).encoder().state_dict())
    assert next_step(1.0, encoder)[0] == "predict"
    command, cautions = next_step(1.0, "another")
    assert command != "predict"
    assert "The classifier is of an earlier encoder" in cautions
    command, cautions = next_step(0.1, encoder)
    assert "no better than always naming the most frequent class" in cautions


def test_a_classifier_is_on_the_page_with_its_mistakes_and_doubts(classified: tuple[Path, Path]) -> None:
    scores = json.loads((classified[0] / "finetune.json").read_text())
    protocol = scores["protocol"]
    counts = np.array(protocol["confusion"]["matrix"])
    assert np.trace(counts) / counts.sum() == pytest.approx(protocol["classifier"]["top1"])
    margins = [one["best"][1] - one["second"][1] for one in protocol["unsure"]]
    assert margins == sorted(margins)
    text = (classified[0] / "report.html").read_text()
    section = text[text.index('<h2 id="classifier">') :]
    assert f"{100 * protocol['classifier']['top1']:.1f} %" in section
    assert "What it is unsure of" in section
    assert section.count("<img") >= len(protocol["unsure"])
    assert "stepclr predict" in section
    assert "stepclr predict" in text[: text.index('<h2 id="data">')]
    assert EVIL not in text


def test_a_classifier_keeps_its_scores_where_its_run_is_moved(classified: tuple[Path, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(classified[0], tmp_path / "moved"))
    assert "top1" in classifier(open_context(stepclr.Run(copy), None))
    made = load_classifier(copy)
    made.linear.bias.data.add_(0.01)
    save_classifier(made, copy / "classifier.safetensors")
    assert "top1" not in classifier(open_context(stepclr.Run(copy), None))


def test_a_student_stands_beside_its_teacher(classified: tuple[Path, Path], photos: Path, tmp_path: Path) -> None:
    teacher, test = classified
    words = ["--student", "test_resnet", "--epochs", 1, "--batch-size", 32]
    assert call("distill", teacher, photos, "--out", tmp_path / "student", *words) == 0
    text = (tmp_path / "student" / "report.html").read_text()
    section = text[text.index('<h2 id="classifier">') :].replace("<wbr>", "")
    predicted = stepclr.predict(tmp_path / "student", test)
    truth = stepclr.open_images(test, classes=predicted.classes).labels
    assert f"<td>{100 * (predicted.probabilities.argmax(1) == truth).mean():.1f} %</td>" in section
    top1 = json.loads((teacher / "finetune.json").read_text())["protocol"]["classifier"]["top1"]
    assert re.search("</b> (over|below) the teacher</li>", text[: text.index('<h2 id="data">')])
    assert section.index("student, test_resnet") < section.index("teacher, test_resnet")
    assert f"<td>{100 * top1:.1f} %</td>" in section


def test_a_classifier_of_an_encoder_without_a_run_has_a_page_beside_its_file(
    run: stepclr.Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shoes.safetensors"
    words = ["--train", photos, "--holdout", 0.3, "--epochs", 1, "--batch-size", 16, "--out", out]
    assert call("finetune", run.folder / "encoder.safetensors", *words) == 0
    assert f"report written to {tmp_path / 'shoes.html'}" in capsys.readouterr().out
    text = (tmp_path / "shoes.html").read_text()
    assert "What it is unsure of" in text
    assert EVIL not in text


# --- in a browser ---


CONTRAST = """() => {
  const rgb = (color) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const lightness = (color) => [0.2126, 0.7152, 0.0722].reduce((sum, part, k) => {
    const v = color[k] / 255;
    return sum + part * (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  }, 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgb(getComputedStyle(node).backgroundColor);
      if (color[3] === 255) return color;
    }
  };
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  const poor = new Set();
  for (const node of document.querySelectorAll("body *")) {
    const words = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!words || !node.checkVisibility() || ["SCRIPT", "STYLE", "title"].includes(node.tagName)) continue;
    const style = getComputedStyle(node);
    const ink = rgb(node instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [lightness(ink), lightness(behind(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.add(`${node.tagName}.${node.className.baseVal ?? node.className}`);
  }
  return [...poor];
}"""


@pytest.mark.parametrize(
    ("width", "scheme"), [(1440, "light"), (1440, "dark"), (390, "dark")], ids=["desktop", "dark", "phone, dark"]
)
def test_in_a_browser(browser: Any, run: stepclr.Run, width: int, scheme: str) -> None:
    window = Window(browser, run.folder / "report.html", width, scheme)
    page = window.page
    assert page.evaluate(CONTRAST) == []
    assert window.complaints == []
    assert [url for url in window.asked if not url.startswith("data:")] == [page.url]
    assert page.evaluate("window.harmed") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for step in STEPS:
        assert page.locator(f"h2#{step}").is_visible()
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    light = [np.mean([int(part) for part in re.findall(r"\d+", color)]) for color in (ink, paper)]
    assert (light[0] > light[1]) == (scheme == "dark")


def test_paper_has_all_that_is_folded_away_but_no_numbers_of_charts(browser: Any, run: stepclr.Run) -> None:
    page = Window(browser, run.folder / "report.html", 720).page
    page.emulate_media(media="print")
    for event, shown in (("beforeprint", True), ("afterprint", False)):
        page.evaluate(f"dispatchEvent(new Event('{event}'))")
        assert page.locator(".passed .health").is_visible() == shown
        assert page.locator(".numbers:visible").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 720


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)], ids=["desktop", "phone"])
def test_the_verdict_is_on_the_first_screen(browser: Any, run: stepclr.Run, width: int, height: int) -> None:
    window = Window(browser, run.folder / "report.html", width)
    window.page.set_viewport_size({"width": width, "height": height})
    for part in (".big", ".gains", ".facts", ".health-fact", ".proof .strip", ".glance .plot", ".next pre"):
        box = window.page.locator(part).first.bounding_box()
        assert box["y"] + box["height"] <= height, part


def test_the_contents_lead_to_each_step_and_say_where_one_is(browser: Any, run: stepclr.Run) -> None:
    page = Window(browser, run.folder / "report.html", 1440).page
    page.emulate_media(reduced_motion="reduce")
    assert page.locator("nav [aria-current]").inner_text() == "Verdict"
    for step in STEPS[:-1]:
        page.locator(f"nav a[href='#{step}']").click()
        page.locator(f"nav [aria-current][href='#{step}']").wait_for()
        assert 0 <= page.locator(f"h2#{step}").bounding_box()["y"] < 300
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement !== document.body")


def test_pointing_at_the_matrix_shows_its_two_images(browser: Any, run: stepclr.Run) -> None:
    window = Window(browser, run.folder / "report.html", 1280)
    figure = window.page.locator("figure.matrix", has_text="After training").first
    figure.locator(".plot").hover()
    beside = figure.locator(".beside")
    assert beside.locator("img").count() == 2
    assert "cosine" in beside.inner_text()
    assert EVIL in beside.inner_text()
    assert window.page.evaluate("window.harmed") is None
    assert window.complaints == []


def test_the_map_and_the_slider_work_by_keyboard(browser: Any, run: stepclr.Run) -> None:
    window = Window(browser, run.folder / "report.html", 1280)
    figure = window.page.locator("figure.map", has_text="PCA of h").first
    assert figure.locator(".tile image").count() > 20
    figure.locator(".plot").focus()
    window.page.keyboard.press("ArrowRight")
    first = figure.locator(".beside").inner_text()
    window.page.keyboard.press("ArrowRight")
    assert figure.locator(".beside img").count() == 1
    second = figure.locator(".beside").inner_text()
    assert second != first
    window.page.keyboard.press("ArrowLeft")
    assert figure.locator(".beside").inner_text() == first
    slider = window.page.locator("#strength")
    slider.focus()
    window.page.keyboard.press("Home")
    assert window.page.locator("#strength-now").inner_text() == "0.0"
    assert window.page.locator(".strength:visible").count() == 1
    assert window.page.locator(".strength:visible").get_attribute("data-strength") == "0.0"
    window.page.keyboard.press("ArrowRight")
    assert window.page.locator(".strength:visible").get_attribute("data-strength") == "0.25"
    assert window.complaints == []
