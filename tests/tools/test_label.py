"""The page to label images on: answers by keys and clicks, kept over a reload, saved exactly, harmed by no name."""

import base64
import csv
import io
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_files import file_of, fill
from PIL import Image
from small import SETTINGS, call, photos_in
from window import Window

import stepclr
from stepclr.recipes import recipe_config
from stepclr.tools.images import jpeg_thumbnail
from stepclr.tools.label import writing
from stepclr.tools.label.writing import index_for
from stepclr.tools.search.index import open_index

Capture = pytest.CaptureFixture[str]
EVIL = "<img src=x onerror=window.harmed=1>.png"
NAMES = [
    EVIL, "</script><script>window.harmed=1</script>.png", "../up.png", 'two\nlines, "quoted".png', "byte \udcff.png",
    "=cmd|' /C calc'!A0.png", " spaces .png", "\u2028 \U0001f600.png", "a,b;c\td.png", "\rreturn.png", "plain.png",
    "__proto__",
]  # fmt: skip
CLASSES = ["cat", "=1+1", "</script><b>window.harmed", 'a "b", c', "\U0001f600"]


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def data_of(page: Path) -> Any:
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)


@pytest.fixture(scope="module")
def images() -> stepclr.ImageSet:
    """Twelve garments with hostile names, without labels."""
    garments = stepclr.open_images("sample:train").take(range(len(NAMES)))
    return replace(garments, names=NAMES, labels=np.full(len(NAMES), -1), classes=[], source="garments")


@pytest.fixture(scope="module")
def index(images: stepclr.ImageSet) -> stepclr.EmbeddingIndex:
    """Their index: h are the pixels of a small version."""
    h = np.stack([image.float().mean(0)[::4, ::4].flatten().numpy() for image in images.read(range(len(images)))])
    thumbnails = [jpeg_thumbnail(image) for image in images.read(range(len(images)))]
    return stepclr.EmbeddingIndex(h, NAMES, images.labels, [], thumbnails, "gone/away")


@pytest.fixture(scope="module")
def page(index: stepclr.EmbeddingIndex, images: stepclr.ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All twelve of them, to be labeled."""
    path = tmp_path_factory.mktemp("page") / "label.html"
    written = stepclr.write_label_page(index, images, CLASSES, out=path)
    assert (written.images, written.known, written.total, written.notes) == (12, 0, 12, [])
    return path


class LabelWindow(Window):
    """The page to label on."""

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def text(self, id: str) -> str:
        return str(self.page.locator(f"#{id}").text_content())

    def shown(self) -> str:
        """The path of the present image, where undecodable bytes are as the page has them."""
        return str(self.page.evaluate("JSON.stringify(data.images[state.at].path)"))

    def save(self, path: Path) -> list[list[str]]:
        with self.page.expect_download() as download:
            self.press("s")
        assert download.value.suggested_filename == "labels.csv"
        download.value.save_as(path)
        return rows_of(path)

    def unharmed(self) -> bool:
        nothing = self.page.evaluate("window.harmed") is None
        own = [url for url in self.asked if not url.startswith(("data:", "blob:"))]
        return nothing and self.complaints == [] and set(own) <= {self.page.url.split("#")[0]}


# --- what is written ---


def test_names_are_data_and_nothing_else_may_run(page: Path) -> None:
    text = page.read_text()
    assert text.count("<script") == text.count("</script>") == 2
    assert EVIL not in text
    assert CLASSES[2] not in text
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', text) == []
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    data = data_of(page)
    assert sorted(image["path"] for image in data["images"]) == sorted(NAMES)
    assert all(image["src"].startswith("data:image/png;base64,") for image in data["images"])  # small ones lose nothing
    for image in data["images"]:
        near = [data["thumbnails"][place]["path"] for place in image["neighbors"]]
        assert len(set(near)) == 6
        assert image["path"] not in near


def test_the_page_of_the_next_round_has_the_labels_so_far(
    index: stepclr.EmbeddingIndex, images: stepclr.ImageSet, tmp_path: Path
) -> None:
    first = [
        image["path"]
        for image in data_of(stepclr.write_label_page(index, images, "x,y", out=tmp_path / "1.html").path)["images"]
    ]
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([["path", "label"], [first[0], "x"], [first[1], "z"], [first[2], ""]])
    written = stepclr.write_label_page(index, images, "x,y", 5, [labels], tmp_path / "2.html")
    data = data_of(written.path)
    asked = [image["path"] for image in data["images"]]
    assert (written.images, written.known) == (5, 2)
    assert not set(asked) & set(first[:3])
    assert written.notes == ["images that are not asked again, because nobody was sure about them: 1"]
    with (tmp_path / "later.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([["path", "label"], [first[2], "y"]])
    later = stepclr.write_label_page(index, images, "x,y", 5, [labels, tmp_path / "later.csv"], tmp_path / "3.html")
    assert (later.known, later.notes) == (3, [])
    assert data["classes"] == ["x", "y", "z"]
    assert sorted(map(tuple, data["known"])) == sorted([(first[0], "x"), (first[1], "z"), (first[2], "")])
    near = {thumbnail["path"]: thumbnail["label"] for thumbnail in data["thumbnails"]}
    assert near.get(first[0], "x") == "x"
    # In a table of another program an empty label means that nobody looked yet.
    labels.write_text("path,label,rank\nplain.png,,1\n")
    data = data_of(stepclr.write_label_page(index, images, "x", 12, [labels], tmp_path / "3.html").path)
    assert len(data["images"]) == 12


def test_labels_of_the_index_itself_count_where_they_are_of_these_classes(
    index: stepclr.EmbeddingIndex, images: stepclr.ImageSet, tmp_path: Path
) -> None:
    out = tmp_path / "x.html"
    labeled = replace(index, labels=np.array([0, 1] * 6), classes=["2023", "cat"])
    written = stepclr.write_label_page(labeled, images, "cat,dog", out=out)
    assert (written.images, written.known) == (6, 6)
    assert written.notes == ["labels of the index that do not count, because they are of other classes: 6"]
    assert data_of(out)["classes"] == ["cat", "dog"]
    with pytest.raises(stepclr.StepclrError, match="nothing to label: all 12 images have a label of 2023, cat"):
        stepclr.write_label_page(labeled, images, out=out)
    some = replace(labeled, labels=np.array([0, 1] + [-1] * 10))
    assert data_of(stepclr.write_label_page(some, images, out=out).path)["classes"] == ["2023", "cat"]


def test_without_the_images_there_are_thumbnails(
    index: stepclr.EmbeddingIndex, images: stepclr.ImageSet, tmp_path: Path
) -> None:
    out = tmp_path / "x.html"
    [note] = stepclr.write_label_page(index, classes="x", out=out).notes
    assert "shows thumbnails: the images of 'gone/away' cannot be opened" in note
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in data_of(out)["images"])
    [note] = stepclr.write_label_page(index, images.take(range(11)), "x", out=out).notes
    assert note == "images that cannot be read from garments, whose thumbnails are shown: 1"
    with pytest.raises(stepclr.StepclrError, match="garments has none of the images to label, such as"):
        stepclr.write_label_page(index, replace(images, names=[f"x{name}" for name in NAMES]), "x", out=out)
    bare = replace(index, thumbnails=[])
    with pytest.raises(stepclr.StepclrError, match="gone/away cannot be shown: pass the source"):
        stepclr.write_label_page(bare, classes="x", out=out)
    assert stepclr.write_label_page(bare, images, "x", out=out).images == 12
    assert len(data_of(out)["thumbnails"]) >= 7


def test_many_large_images_are_made_smaller(
    index: stepclr.EmbeddingIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 300, 700, 3), dtype=np.uint8)
    large = replace(stepclr.open_images(noise), names=NAMES)
    assert stepclr.write_label_page(index, large, "x", out=tmp_path / "x.html").notes == []
    assert set(sizes(tmp_path / "x.html")) == {(512, 219)}
    monkeypatch.setattr(writing, "IMAGE_BYTES", 2**20)
    [note] = stepclr.write_label_page(index, large, "x", out=tmp_path / "x.html").notes
    assert re.match(r"images are shown at up to (256|160) px, so that the page stays below 1 MB", note)
    assert max(sizes(tmp_path / "x.html")) < (257, 0)


def sizes(page: Path) -> list[tuple[int, int]]:
    """(width, height) of each image of a page."""
    contents = [base64.b64decode(image["src"].split(",")[1]) for image in data_of(page)["images"]]
    return [Image.open(io.BytesIO(content)).size for content in contents]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no class has a name yet: name them with classes=cat,dog,other"),
        ({"classes": " , "}, "no class has a name yet"),
        ({"classes": "x", "n": 0}, "n must be at least 1"),
        ({"classes": "x", "out": "page.csv"}, "out must end in .html"),
        ({"classes": "x", "labels": ["none.csv"]}, "none.csv"),
    ],
)
def test_what_cannot_be_done_is_said(
    given: dict[str, Any], message: str, index: stepclr.EmbeddingIndex, tmp_path: Path
) -> None:
    with pytest.raises(stepclr.StepclrError, match=message):
        stepclr.write_label_page(index, **{"out": tmp_path / "x.html", **given})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of 48 photos, which is next to it."""
    pytest.importorskip("lancedb", reason="needs lancedb, of the extra search")
    home = tmp_path_factory.mktemp("home")
    stepclr.pretrain(
        photos_in(home / "photos"), home / "run", progress=False, **{**SETTINGS, "epochs": 1, "limit": None}
    )
    return home / "run"


def test_the_command_takes_a_run_an_encoder_or_an_index(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    assert call("label", "run", "photos", "--classes", "top,shoe", "-n", 7) == 0
    screen, notes = capsys.readouterr()
    assert "photos: 48 images\n" in notes  # the labels are not the source's: it does not say that there are none
    assert (
        "run/index: 48 images, 48 of them new\nlabel.html: 7 images to label, of 48; 0 have a label already." in screen
    )
    commands = re.findall("^    (stepclr .*)$", screen, re.MULTILINE)
    assert commands == [
        "stepclr finetune run --train photos --labels labels.csv --holdout 0.2",
        "stepclr predict run photos --out predictions.csv",
        "stepclr label run/index photos --labels labels.csv --classes top,shoe --n 7",
    ]
    page = Path("label.html").read_text()
    assert all(line in page for line in commands)

    # The encoder alone has no place for an index and for a classifier; an index knows where its images are.
    encoder = "run/encoder.safetensors"
    assert call("label", encoder, "--classes", "x") == 2
    assert "run/encoder.safetensors is an encoder: pass a source of images, or an index" in capsys.readouterr().err
    options = ["--classes", "x", "--n", 7, "--seed", 1, "--out", "other.html", "--max-pixels", 10000]
    assert call("label", encoder, "photos", *options) == 0
    screen = capsys.readouterr().out
    repeated = " ".join(map(str, options))  # the next round forgets none of them
    assert f"stepclr label other-index photos --labels labels.csv {repeated}" in screen
    assert "--labels labels.csv --max-pixels 10000 --holdout 0.2 --out classifier.safetensors" in screen
    assert "other-index: 48 images, 48 of them new" in screen
    assert "stepclr predict classifier.safetensors photos" in screen
    first = data_of(Path("label.html"))["images"]
    assert [image["path"] for image in data_of(Path("other.html"))["images"]] == [image["path"] for image in first]
    labels = [f"{image['path']},{('top', 'shoe')[i % 2]}\n" for i, image in enumerate(first)]
    Path("labels.csv").write_text("path,label\n" + "".join(labels))
    for line in commands[:2]:  # the commands work as they are printed
        words = shlex.split(line)[1:]
        assert call(*words, *["--epochs", 1] * (words[0] == "finetune")) == 0
    assert len(rows_of(Path("predictions.csv"))) == 1 + 48
    capsys.readouterr()
    assert (
        call("label", "run/index", "--classes", "top,shoe", "--labels", "labels.csv", "-n", 3, "--out", "2.html") == 0
    )
    assert "2.html: 3 images to label, of 48; 7 have a label already." in capsys.readouterr().out
    assert "note" not in screen
    assert call("label", "run/index", "--out", "x.csv") == 2
    assert "out must end in .html" in capsys.readouterr().err
    assert call("label", "run/index") == 2
    assert "seed must be at least 0" not in capsys.readouterr().err
    assert call("label", "run/index", "--classes", "x", "--seed", -1) == 2
    assert "seed must be at least 0, not -1" in capsys.readouterr().err
    assert call("label", "run/index") == 2
    assert "name them with --classes cat,dog,other" in capsys.readouterr().err


def test_a_classifier_that_pretraining_trained_is_not_to_be_replaced(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`finetune` refuses to: the commands name a file of its own, and work as they are printed."""
    pytest.importorskip("lancedb", reason="needs lancedb, of the extra search")
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "few.csv"
    names = sorted(path.name for path in photos_in(tmp_path / "photos").iterdir())
    table.write_text("path,label\n" + "".join(f"{name},{'xy'[i % 2]}\n" for i, name in enumerate(names[:8])))
    options = {**SETTINGS, "epochs": 1, "limit": None, "loss": "supcon", "linear_epochs": 1}
    stepclr.pretrain(stepclr.open_images("photos", labels=table), "run", progress=False, **options)
    trained = Path("run", "classifier.safetensors").read_bytes()
    assert call("label", "run", "photos", "--labels", table, "-n", 4) == 0
    commands = re.findall("^    (stepclr .*)$", capsys.readouterr().out, re.MULTILINE)
    assert commands[0].endswith(" --out classifier.safetensors")
    assert commands[1].startswith("stepclr predict classifier.safetensors photos ")
    shutil.copy(table, "labels.csv")
    assert call(*shlex.split(commands[0])[1:], "--epochs", 1) == 0
    assert call(*shlex.split(commands[1])[1:]) == 0
    assert Path("run", "classifier.safetensors").read_bytes() == trained


def test_a_run_has_no_index_of_images_that_it_left_out_or_reads_otherwise(run: Path, tmp_path: Path) -> None:
    """Those that its table holds out, or that are read with other options, are in an index of their own."""
    photos = run.parent / "photos"
    names = sorted(path.name for path in photos.iterdir())
    table = tmp_path / "labels.csv"
    rows = [f"{photos / name},a,{'test' if i % 4 == 0 else 'train'}\n" for i, name in enumerate(names)]
    table.write_text("path,label,split\n" + "".join(rows))
    options: dict[str, Any] = {"encoder": "test_resnet", "epochs": 1, "batch_size": 16, "progress": False}
    part = stepclr.pretrain(stepclr.open_images(photos, labels=table), tmp_path / "part", **options).folder
    other = tmp_path / "other"
    whole = stepclr.open_images(photos)
    assert index_for(part, whole, other)[0] == other
    assert len(open_index(other)) == len(names)
    assert index_for(run, whole, other)[0] == run / "index"
    assert index_for(run, stepclr.open_images(photos, max_pixels=10_000), tmp_path / "third")[0] == tmp_path / "third"


def test_a_run_of_several_sources_is_labeled_as_it_reads_them(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 12 bits: without the run's range, the images could not be shown."""
    pytest.importorskip("lancedb", reason="needs lancedb, of the extra search")
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        levels = [np.random.default_rng(i).integers(0, 4096, (16, 16)).astype(np.uint16) for i in range(8)]
        fill(tmp_path / name, {f"{i}.png": file_of(Image.fromarray(each)) for i, each in enumerate(levels)})
    options = {**SETTINGS, "epochs": 1, "limit": None}
    stepclr.pretrain(["a", "b"], "run", progress=False, value_range=(0, 4095), **options)
    assert call("label", "run", "--classes", "x,y", "-n", 4) == 0
    screen = capsys.readouterr().out
    assert "note:" not in screen
    assert all(image["src"].startswith("data:image/png") for image in data_of(Path("label.html"))["images"])
    *_, again = commands = re.findall("^    (stepclr .*)$", screen, re.MULTILINE)
    assert commands[0] == "stepclr finetune run --train a b --labels labels.csv --holdout 0.2"
    assert again == "stepclr label run/index a b --labels labels.csv --classes x,y --n 4"
    Path("labels.csv").write_text("path,label\na/0.png,x\n")
    assert call(*shlex.split(again)[1:]) == 0
    assert "note:" not in capsys.readouterr().out

    # The index knows its sources too, and so does a table of one file.
    assert call("embed", "run", "a", "b", "--value-range", "0,4095", "--out", "both.parquet") == 0
    capsys.readouterr()
    for index in ("run/index", "both.parquet"):
        assert call("label", index, "--classes", "x,y", "-n", 4) == 0
        screen = capsys.readouterr().out
        assert "note:" not in screen
        assert "stepclr predict run a b --out predictions.csv" in screen
        assert all(image["src"].startswith("data:image/png") for image in data_of(Path("label.html"))["images"])


# --- in a browser ---


def test_answers_by_keys_survive_a_reload_and_are_saved_exactly(
    browser: Any, page: Path, index: stepclr.EmbeddingIndex, tmp_path: Path
) -> None:
    window = LabelWindow(browser, page)
    order = [image["path"] for image in data_of(page)["images"]]
    window.press("1", "2", "3", "4", "5", "0")
    assert window.text("counts") == "6 of 12 answered · 1 not sure · 6 not saved yet, but kept in this browser"
    window.press("u")
    assert window.shown() == json.dumps(order[5], ensure_ascii=False).replace("\udcff", "\\udcff")
    window.press("Backspace", "Backspace", "1", "2")  # the fourth is a cat, the fifth is of the second class
    window.press("Space", "0")  # the sixth is skipped, of the seventh nobody is sure
    window.page.reload()
    assert window.text("counts").startswith("6 of 12 answered · 1 not sure")
    assert window.text("label-heading") == "Image 8 of 12"
    window.press("z", "Shift+Tab", "Control+1", "ArrowLeft", "ArrowRight")  # none of these is an answer
    assert window.text("counts").startswith("6 of 12 answered")
    window.press("1", "1", "1", "1", "1")
    assert window.text("label-heading") == "Image 6 of 12"  # the skipped one comes again
    window.press("5")
    assert window.text("finish-heading") == "All images are answered"
    rows = window.save(tmp_path / "labels.csv")
    given = ["cat", "=1+1", CLASSES[2], "cat", "=1+1", CLASSES[4], "", *["cat"] * 5]
    assert rows[0] == ["path", "label"]
    assert rows[1:] == [list(pair) for pair in zip(order, given, strict=True)]
    assert window.text("counts") == "12 of 12 answered · 1 not sure"
    assert window.text("status") == "labels.csv is among this browser's downloads."
    assert window.unharmed()
    labeled = stepclr.suggest_labels(index, labels=[tmp_path / "labels.csv"]).index  # every reader of labels takes it
    assert [labeled.class_name(NAMES.index(path)) or "" for path in order] == given


def test_the_review_corrects_and_a_class_can_be_added(browser: Any, page: Path, tmp_path: Path) -> None:
    window = LabelWindow(browser, page)
    order = [image["path"] for image in data_of(page)["images"]]
    window.page.locator("#classes button").nth(3).click()
    window.page.locator("#unsure").click()
    window.press("Space")  # not a press of the button that was clicked
    assert window.text("counts").startswith("2 of 12 answered")
    window.page.locator("#name").fill("  new u ")
    window.press("Enter")
    window.page.locator("#name").fill("cat")
    window.press("Enter")
    assert window.text("status") == "There is a class cat already."
    assert window.page.locator("#classes button").count() == 6
    window.press("Escape", "6", "r")  # out of the field, then the key of the new class
    headings = window.page.locator("#groups h3").all_text_contents()
    assert headings == [f"{CLASSES[3]} (1)", "new u (1)", "not sure (1)", "no answer yet (9)"]
    window.page.locator("#groups .tile").nth(0).click()
    assert window.text("label-heading") == "Image 1 of 12"
    assert window.page.locator("#classes [aria-pressed=true]").text_content() == f"4{CLASSES[3]}"
    window.press("1")
    assert window.page.locator("#groups h3").first.text_content() == "cat (1)"
    assert window.page.evaluate("document.activeElement.dataset.item") == "0"
    window.page.reload()
    assert window.page.locator("#classes button").count() == 6
    assert [row for row in window.save(tmp_path / "x.csv") if row[0] != "path"] == [
        [order[0], "cat"], [order[1], ""], [order[3], "new u"],
    ]  # fmt: skip
    near = data_of(page)
    item = next(
        i for i, image in enumerate(near["images"]) if 0 in [near["thumbnails"][p]["item"] for p in image["neighbors"]]
    )
    window.page.evaluate("item => go(item)", item)
    assert "cat" in window.page.locator("#neighbors .known").all_text_contents()
    assert window.unharmed()


def test_the_keyboard_alone_is_enough(browser: Any, page: Path) -> None:
    window = LabelWindow(browser, page)
    window.press("Tab", "Enter")  # the link to the image
    window.press("Tab")
    assert window.page.evaluate("document.activeElement.dataset.label") == "cat"
    assert window.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    window.press("Space")
    assert window.text("status").endswith(": cat; 1 of 12 answered")
    assert window.page.evaluate("document.activeElement.dataset.label") == "cat"  # the focus stays for the next image
    window.press("Tab", "Enter")
    assert window.text("counts").startswith("2 of 12 answered")
    window.press("r", "Tab", "Enter", "0")  # the first tile of the review is not sure now
    assert window.page.evaluate("view()") == "review"
    assert window.text("counts").startswith("2 of 12 answered · 1 not sure")
    window.press("Escape")
    window.page.locator("#name").focus()
    window.page.keyboard.type("1rsu0")
    assert window.text("counts").startswith("2 of 12 answered")
    window.page.locator("summary").press("Enter")
    window.page.locator("#keys").press("Space")
    window.press("1")
    assert window.text("counts").startswith("2 of 12 answered")  # the keys are switched off
    assert window.page.evaluate(f"[...document.querySelectorAll('button, input')].every({NAMED})")
    assert window.unharmed()


NAMED = "(e) => e.textContent.trim() || e.ariaLabel || e.labels?.length || e.querySelector('img[alt]')"
LOW = "(e) => e.checkVisibility() && e.getBoundingClientRect().height < 44"
CONTRASTS = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map((c) => linear(c / 255)).reduce((sum, c, i) =>
    sum + c * [.2126, .7152, .0722][i], 0);
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!text || !element.checkVisibility() || element.disabled) continue;
    let [back, opacity] = [null, 1];
    for (let e = element; e; e = e.parentElement) {
      const own = parts(getComputedStyle(e).backgroundColor);
      if (!back && own[3] !== 0) back = own;
      if (!back || e === element) opacity *= getComputedStyle(e).opacity;
    }
    const ink = parts(getComputedStyle(element).color).slice(0, 3).map((c, i) => c * opacity + back[i] * (1 - opacity));
    const [a, b] = [light(ink), light(back)];
    found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), element.outerHTML.slice(0, 80)]);
  }
  return found;
}"""


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (390, "dark")], ids=["desktop", "phone, dark"])
def test_every_view_fits_and_can_be_read(browser: Any, page: Path, width: int, scheme: str) -> None:
    window = LabelWindow(browser, page, width, scheme)
    window.press("1", "2", "0")
    for view in ("label", "review", "finish"):
        window.page.locator(f"[data-view={view}]").click()
        assert window.page.evaluate("document.documentElement.scrollWidth") <= width
        assert [one for one in window.page.evaluate(CONTRASTS) if one[0] < 4.5] == []
        assert not window.page.evaluate(f"[...document.querySelectorAll('button')].some({LOW})")
    paper = window.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (np.mean([int(part) for part in re.findall(r"\d+", paper)]) < 128) == (scheme == "dark")
    assert window.unharmed()


def test_two_pages_do_not_mix_and_two_tabs_agree(
    browser: Any, page: Path, index: stepclr.EmbeddingIndex, images: stepclr.ImageSet, tmp_path: Path
) -> None:
    other = stepclr.write_label_page(index, images, ["cat", "dog"], out=tmp_path / "other.html").path
    window = LabelWindow(browser, page)
    tab = window.context.new_page()
    tab.goto(page.as_uri())
    window.press("1", "2")
    tab.wait_for_function("Object.keys(state.answers).length === 2")
    assert str(tab.locator("#counts").text_content()).startswith("2 of 12")
    tab.goto(other.as_uri())
    assert tab.locator("#counts").text_content() == "0 of 12 answered"


def test_a_browser_that_keeps_nothing_says_so(browser: Any, page: Path, tmp_path: Path) -> None:
    script = "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }"
    window = LabelWindow(browser, page, script=script)
    window.press("1")
    assert window.page.locator("#unkept").is_visible()
    assert "kept" not in window.text("counts")
    assert len(window.save(tmp_path / "x.csv")) == 2


@pytest.mark.slow
def test_sixty_chosen_labels_are_better_than_sixty_random_ones(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From loose photos to a classifier, by commands and in the browser; benchmarks/label.py has more seeds."""
    monkeypatch.chdir(tmp_path)
    train, test = stepclr.open_images("sample:train"), stepclr.open_images("sample:test")
    Path("photos").mkdir()
    truth: dict[str, str] = {}
    for i in np.random.default_rng(0).permutation(len(train)).tolist():
        name = f"{len(truth):04}.png"
        Image.fromarray(train.read([i])[0].permute(1, 2, 0).numpy()).save(Path("photos") / name)
        truth[name] = str(train.class_name(i))
    stepclr.pretrain("sample:unlabeled", "run", config=recipe_config("sample"), epochs=8, limit=3000, progress=False)
    assert call("label", "run", "photos", "--classes", ",".join(train.classes)) == 0
    window = LabelWindow(browser, Path("label.html").absolute())
    for _ in range(60):
        label = truth[str(window.page.evaluate("data.images[state.at].path"))]
        window.press([*"123456789a"][train.classes.index(label)])
    assert window.text("finish-heading") == "All images are answered"
    saved = window.save(Path("labels.csv"))
    assert len(saved) == 61
    assert all(truth[path] == label for path, label in saved[1:])
    assert window.unharmed()

    scores = {"labels.csv": 0.0}
    for draw in range(2):
        drawn = np.random.default_rng(draw).permutation(sorted(truth))[:60]
        Path(f"random-{draw}.csv").write_text("path,label\n" + "".join(f"{path},{truth[path]}\n" for path in drawn))
        scores[f"random-{draw}.csv"] = 0.0
    for labels in scores:
        assert call("finetune", "run", "--train", "photos", "--labels", labels) == 0
        assert call("predict", "run", "sample:test", "--out", "predictions.csv") == 0
        predicted = dict(row[:2] for row in rows_of(Path("predictions.csv"))[1:])
        correct = [predicted[name] == test.class_name(i) for i, name in enumerate(test.names)]
        scores[labels] = float(np.mean(correct))
    chosen = scores.pop("labels.csv")
    assert chosen > np.mean(list(scores.values())), (chosen, scores)
