"""Several sources as one set: unique names, classes joined by name, and whatever a set can do."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import SETTINGS, same, succeed

import stepclr
from stepclr.data.labels import heading
from stepclr.data.memory import open_array
from stepclr.data.shards.packing import pack
from stepclr.errors import StepclrError
from stepclr.pretraining.checkpoint import checkpoints
from stepclr.tools.doctor.scan import scan

TINY: dict[str, Any] = {**SETTINGS, "limit": None, "epochs": 2, "batch_size": 8}
WORDS = [word for name, value in TINY.items() if value for word in (f"--{name.replace('_', '-')}", str(value))]


def drawn(root: Path, *paths: str) -> Path:
    """Noise, of which no two are alike."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(list(root.parent.rglob("*")))).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(root / path)
    return root


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a/train, b/train, more.zip and shards: each with dogs, and another class."""
    here = tmp_path_factory.mktemp("joined")
    drawn(here / "a" / "train", "cat/0.png", "cat/1.png", "dog/2.png", "loose.png")
    drawn(here / "b" / "train", "dog/0.png", "emu/1.png", "emu/2.png")
    drawn(here / "zipped", "dog/0.png", "ant/1.png")
    shutil.make_archive(str(here / "more"), "zip", here / "zipped")
    pack(stepclr.open_images(drawn(here / "packed", "dog/7.png", "bee/8.png")), here / "shards")
    return here


def sources(here: Path) -> list[Any]:
    gray = np.arange(2 * 16 * 16, dtype=np.uint8).reshape(2, 16, 16)
    return [here / "a" / "train", here / "more.zip", here / "shards", (gray, np.array([0, -1])), here / "b" / "train"]


def test_names_stay_unique_and_classes_are_joined(here: Path) -> None:
    images = stepclr.open_images(sources(here))
    assert len(images) == len(set(images.names)) == 13
    assert images.names[:2] == ["a/train/cat/0.png", "a/train/cat/1.png"]
    assert images.names[-1] == "b/train/emu/2.png"
    assert images.names[8:10] == ["array/00000", "array/00001"]
    assert images.classes == ["0", "ant", "bee", "cat", "dog", "emu"]
    parts = [stepclr.open_images(source) for source in sources(here)]
    assert [images.class_name(i) for i in range(13)] == [part.class_name(i) for part in parts for i in range(len(part))]
    whole = images.read(range(13))
    assert torch.equal(torch.stack(list(whole)), torch.cat([torch.stack(list(p.read(range(len(p))))) for p in parts]))
    assert torch.equal(torch.as_tensor(images.read([12, 0])), torch.stack([whole[12], whole[0]]))
    assert images.sizes().tolist() == [[16, 16]] * 13
    # Whatever a set can do: choose, be decoded, be pickled, be scanned, be packed.
    dogs = images.keep("dog")
    assert (len(dogs), dogs.decoded(8).read([0]).shape[-1]) == (4, 8)  # type: ignore[union-attr]
    assert list(pickle.loads(pickle.dumps(images)).names) == images.names
    assert len(scan(images).readable) == 13
    pack(dogs, here / "dogs")
    assert list(stepclr.open_images(here / "dogs").names) == dogs.names
    # A name depends on the sources' paths alone, and is that of a single source where there is one.
    two = stepclr.open_images([here / "a" / "train", here / "more.zip"])
    assert (two.names[0], two.names[-1]) == ("train/cat/0.png", "more.zip/dog/0.png")
    assert stepclr.open_images([here / "a" / "train"]).names[0] == "cat/0.png"
    assert stepclr.open_images(["sample:train", "sample:test"], limit=50).classes[0] == "T-shirt/top"


def test_the_heading_counts_the_images_of_each_source(here: Path) -> None:
    (here / "a" / "train" / "notes.txt").write_text("")
    images = stepclr.open_images([here / "a" / "train", here / "more.zip"])
    assert heading(images).split("\n") == [
        f"{here}/a/train, {here}/more.zip: 6 images, 3 classes: cat 2, dog 2, ant 1; 1 image without a label",
        f"images: {here}/a/train 4, {here}/more.zip 2",
        "ignored 1 file or folder: 1 .txt",
    ]
    assert list(images.ledger.ignored) == ["train/notes.txt"]
    (here / "a" / "train" / "notes.txt").unlink()


def named(source: str) -> stepclr.ImageSet:
    """Stands for a named data set, which would have to be downloaded."""
    return open_array(np.zeros((3, 16, 16), np.uint8), source=source)


def test_a_folder_in_a_folder_of_its_name_is_one_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As unzipping makes them: cats/cats."""
    cats, dogs = drawn(tmp_path / "cats", "cats/tabby/0.png"), drawn(tmp_path / "dogs", "dogs/0.png")
    monkeypatch.chdir(tmp_path)
    assert stepclr.open_images(["cats", "dogs"]).names == ["cats/cats/tabby/0.png", "dogs/dogs/0.png"]
    assert stepclr.open_images([cats, dogs]).names == stepclr.open_images(["cats", "dogs"]).names
    drawn(cats, "a/0.png")
    assert "cats/cats/tabby/0.png" in stepclr.open_images(["cats", "dogs"]).names
    with pytest.raises(StepclrError, match="would count twice"):
        stepclr.open_images(["cats", "cats/cats/tabby"])


def test_an_image_is_in_a_set_once(here: Path) -> None:
    a = here / "a" / "train"
    for given, said in (
        ([here / "a", a], r"a/train is in .*/a, so that its images would count twice: leave one out"),
        ([a / "cat", here / "a"], r"cat is in .*/a, so"),
        ([a, a], "would count twice"),
        ([a / "loose.png", a], "loose.png is in"),
        (["sample:train", "sample:train"], "sample:train is given twice"),
        ([named("stl10:train+unlabeled"), named("stl10:train")], "both have the images of stl10:train: leave one out"),
        ([], "there is no source of images; give one or more"),
        ([a, here / "nothing"], "nothing does not exist"),
        ([a, 7], "cannot open images from a int"),
    ):
        with pytest.raises(StepclrError, match=said):
            stepclr.open_images(given)


def test_a_table_gives_labels_to_the_sources_that_it_names(here: Path) -> None:
    a, b = here / "a" / "train", here / "b" / "train"
    for paths in (["loose.png"], ["a/train/loose.png"], [str(a / "loose.png")]):
        images = stepclr.open_images([a, b], labels=dict.fromkeys(paths, "dog"))
        assert (images.classes, images.labels.tolist()) == (["dog", "emu"], [-1, -1, -1, 0, 0, 1, 1])
    (a / "dog" / "0.png").write_bytes((a / "loose.png").read_bytes())
    with pytest.raises(StepclrError, match="several images that could be"):
        stepclr.open_images([a, b], labels={"dog/0.png": "dog"})
    (a / "dog" / "0.png").unlink()


def test_a_run_on_shards_and_a_folder_is_read_with_its_value_range(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for i in range(8):
            Image.fromarray(np.full((16, 16), 400 * i, np.uint16)).save(tmp_path / folder / f"{i}.png")
    value_range = (0, 4095)
    pack(stepclr.open_images(tmp_path / "a", value_range=value_range), tmp_path / "shards")
    given, table = [str(tmp_path / "shards"), str(tmp_path / "b")], tmp_path / "labels.csv"
    table.write_text("path,label\nb/0.png,dark\n")
    for name, words in (("plain", []), ("labeled", ["--labels", table])):
        succeed("pretrain", *given, "--value-range", "0,4095", *words, "--out", tmp_path / name, *WORDS)
        images = stepclr.Run(tmp_path / name).images()
        assert (len(images), images.value_range) == (16, value_range)
        assert int(images.read([15])[0].max()) == round(255 * 2800 / 4095)


def test_a_run_on_several_sources_resumes_and_reports(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    out = tmp_path / "run"
    given = ["a/train", "b/train", "more.zip", "shards"]
    succeed("pretrain", *given, "--out", out, *WORDS)
    run = stepclr.Run(out)
    assert run.config.source == [str(here / source) for source in given]
    said = capsys.readouterr()
    assert "images: a/train 4, b/train 3, more.zip 2, shards 2" in said.err
    assert "report written" in said.out
    # From another folder, after an interruption, with the same bits.
    monkeypatch.chdir(tmp_path)
    assert list(run.images().names) == list(stepclr.open_images([here / source for source in given]).names)
    again = stepclr.Run(shutil.copytree(out, tmp_path / "again"))
    checkpoints(again.folder / "checkpoint")[-1].unlink()
    (again.folder / "encoder.safetensors").unlink()
    stepclr.pretrain([here / source for source in given], again, resume=True, progress=False)
    assert same(again, run)
    # The other commands take several sources too.
    monkeypatch.chdir(here)
    succeed("embed", out, *given, "--out", tmp_path / "h.npz")
    assert list(np.load(tmp_path / "h.npz")["paths"]) == list(run.images().names)
    classifier = tmp_path / "c.safetensors"
    succeed("finetune", out, "--train", "a/train", "b/train", "--epochs", 1, "--out", classifier)
    succeed("predict", classifier, "more.zip", "a/train/loose.png", "--out", tmp_path / "p.csv")
    rows = (tmp_path / "p.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["more.zip/ant/1.png", "more.zip/dog/0.png", "a/train/loose.png"]


def test_files_given_by_themselves_keep_their_labels_and_their_run_from_any_folder(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, elsewhere, out = here / "labels.csv", here / "elsewhere", tmp_path / "run"
    table.write_text("path,label\nb/train/emu/1.png,bird\nb/train/emu/2.png,bird\n")
    absolute = tmp_path / "absolute.tsv"
    absolute.write_text("path\tlabel\n" + "".join(f"{here}/b/train/emu/{i}.png\tbird\n" for i in (1, 2)))
    elsewhere.mkdir()
    monkeypatch.chdir(here)
    given = ["a/train", "b/train/emu/1.png", "b/train/emu/2.png"]
    succeed("pretrain", *given, "--labels", "labels.csv", "--out", out, *WORDS)
    images = stepclr.Run(out).images()
    assert images.labels.tolist() == [1, 1, 2, -1, 0, 0]
    assert stepclr.Run(out).config.labels == [str(table)]
    # The commands that a run prints name its sources absolutely, and a person types them from here.
    monkeypatch.chdir(elsewhere)
    for sources in ([str(here / source) for source in given], [f"../{source}" for source in given]):
        for labels in (table, absolute, Path("../labels.csv")):
            again = stepclr.open_images(sources, labels=labels)
            assert again.labels.tolist() == images.labels.tolist()
            assert again.names_checksum() == images.names_checksum()
        succeed("pretrain", *sources, "--resume", "--out", out, *WORDS)


def test_the_heading_tells_of_folders_only_where_their_names_do_not_count(here: Path, tmp_path: Path) -> None:
    loose = drawn(tmp_path / "loose", "1.png", "2.png")
    for named, said in (("1.png", False), ("dog/2.png", True)):
        images = stepclr.open_images([here / "a" / "train", loose], labels={named: "cat"})
        assert ("the names of folders do not count" in heading(images)) == said
