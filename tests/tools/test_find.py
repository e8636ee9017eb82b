"""What find reports of an index: planted duplicates, planted outliers, one image to label per planted cluster."""

import csv
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from small import call
from torch import nn

import stepclr
from stepclr.data.details import gray_thumbnail, groups
from stepclr.model.files import save_encoder
from stepclr.tools.curate import outliers, suggest
from stepclr.tools.curate.duplicates import duplicate_pairs

Capture = pytest.CaptureFixture[str]
Array = NDArray[np.float32]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def write_npz(path: Path, h: Array, labels: list[int] | None = None, classes: tuple[str, ...] = ()) -> Path:
    """An index of images p0, p1, ..., without thumbnails."""
    names = np.array([f"p{i}" for i in range(len(h))])
    given = np.array(labels if labels else [-1] * len(h), np.int64)
    np.savez(path, embeddings=h, paths=names, labels=given, classes=np.array(classes, np.str_))
    return path


def clusters(count: int, each: int, spread: float = 0.1, seed: int = 0) -> Array:
    """Rows around `count` directions, cluster after cluster: row i is of cluster i // each."""
    generator = np.random.default_rng(seed)
    rows = np.repeat(3 * np.eye(count, 16), each, 0) + spread * generator.normal(size=(count * each, 16))
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained encoder that distinguishes images: with new BatchNorms its blocks would be the identity."""
    torch.manual_seed(0)
    made = stepclr.build_encoder("test_resnet", stem="small-stride2", size=28)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
    path = tmp_path_factory.mktemp("run") / "encoder.safetensors"
    save_encoder(made, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 garments, copies of the first four (the last one mirrored), and two images that are not garments."""
    folder = tmp_path_factory.mktemp("images")
    garments = [
        Image.fromarray(image.permute(1, 2, 0).numpy()) for image in stepclr.open_images("sample:train").read(range(60))
    ]
    for i, image in enumerate(garments):
        image.save(folder / f"{i:02}.png")
    for name, image in zip(TWINS, garments, strict=False):
        image.save(os.fsencode(folder / name), "JPEG", quality=90)
    ImageOps.mirror(garments[3]).save(folder / "mirrored.png")
    for color in ("white", "red"):
        Image.new("RGB", (28, 28), color).save(folder / f"{color}.png")
    return folder


TWINS = ("two\nlines, [bold]\r.jpg", "byte \udcff.jpg", "z.jpg")


@pytest.fixture(scope="module")
def index(encoder: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index") / "index"
    assert call("embed", encoder, photos, "--out", out) == 0
    return out


def test_planted_duplicates_are_found_first(index: Path, tmp_path: Path, capsys: Capture) -> None:
    assert call("find", "duplicates", index, "--out", tmp_path) == 0
    rows = read(tmp_path / "duplicates.csv")
    planted = [{"00.png", TWINS[0]}, {"01.png", TWINS[1]}, {"02.png", TWINS[2]}, {"03.png", "mirrored.png"}]
    found = [{row["path"], row["other"]} for row in rows]
    assert all(pair in found[:4] for pair in planted)
    assert len(found) <= 6  # 1,770 pairs of garments, and a few trousers that none can tell apart
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert [row["group"] for row in rows] == [str(1 + i) for i in range(len(rows))]
    assert f"{2 * len(rows)} of 66 images are versions of another image: {len(rows)} groups" in capsys.readouterr().out
    with Image.open(tmp_path / "duplicates.png") as sheet:
        assert sheet.height // len(rows) > 96  # a row a group

    assert call("find", "duplicates", index, "-n", "1", "--out", tmp_path / "one.csv") == 0
    assert read(tmp_path / "one.csv") == rows[:1]
    assert "listing the 1 most certain" in capsys.readouterr().out


def test_an_encoder_finds_in_images_without_an_index(
    encoder: Path, index: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    for what in ("duplicates", "outliers"):
        assert call("find", what, index, "-n", "3", "--out", tmp_path / "of-index") == 0
        assert call("find", what, encoder, photos, "-n", "3", "--out", tmp_path) == 0
        assert read(tmp_path / f"{what}.csv") == read(tmp_path / "of-index" / f"{what}.csv")
    assert f"{tmp_path / 'find-index'}: 66 images, 0 of them new" in capsys.readouterr().out  # both share an index
    assert call("find", "outliers", index, photos) == 2
    assert "is an index and has its images: leave out" in capsys.readouterr().err
    assert call("find", "outliers", encoder) == 2
    assert "is an encoder: pass a source of images, or an index" in capsys.readouterr().err


def test_the_functions_find_what_the_command_writes(index: Path, tmp_path: Path) -> None:
    opened = stepclr.open_index(index)
    for what in ("duplicates", "outliers", "next"):
        assert call("find", what, index, "-n", "7", "--out", tmp_path / f"{what}.csv") == 0
    duplicates = stepclr.find_duplicates(index)
    rows = read(tmp_path / "duplicates.csv")
    found = [(opened.paths[i], opened.paths[j]) for i, j in duplicates.pairs.tolist()]
    assert found[: len(rows)] == [(row["path"], row["other"]) for row in rows]
    assert {tuple(pair) for pair in duplicates.pairs.tolist()} == {tuple(group) for group in duplicates.groups}
    outliers, suggestions = stepclr.find_outliers(opened, 7), stepclr.suggest_labels(opened, 7)
    assert [opened.paths[i] for i in outliers.indices] == [row["path"] for row in read(tmp_path / "outliers.csv")]
    assert [opened.paths[i] for i in suggestions.indices] == [row["path"] for row in read(tmp_path / "next.csv")]


def test_doubtful_labels_are_shown_and_are_what_the_function_finds(
    index: Path, tmp_path: Path, capsys: Capture
) -> None:
    images, table = stepclr.open_images("sample:train", limit=60), tmp_path / "labels.csv"
    names = [str(images.class_name(i)).replace(",", "") for i in range(60)]
    table.write_text("path,label\n" + "".join(f"{i:02}.png,{name}\n" for i, name in enumerate(names)))
    assert call("find", "mislabeled", index, "--labels", table, "-n", "6", "--out", tmp_path / "odd.csv") == 0
    found = stepclr.find_mislabeled(index, 6, [table])
    paths = [found.index.paths[i] for i in found.indices]
    assert paths == [row["path"] for row in read(tmp_path / "odd.csv")]
    assert len(paths) == 6
    said = capsys.readouterr().out
    assert f"{found.suspected} of 60 labels are suspected" in said
    assert ("most of these suspicions are wrong" in said) == (found.agreement < 0.7)
    assert (tmp_path / "odd.png").is_file()


def test_planted_outliers_are_on_top(index: Path, tmp_path: Path) -> None:
    assert call("find", "outliers", index, "-n", "4", "--out", tmp_path / "odd.csv") == 0
    rows = read(tmp_path / "odd.csv")
    assert {row["path"] for row in rows[:2]} == {"white.png", "red.png"}
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[1]["score"]) > 1.7
    assert (tmp_path / "odd.png").is_file()


@pytest.mark.parametrize("what", ["duplicates", "outliers", "next"])
def test_the_same_command_writes_the_same_files(what: str, index: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert call("find", what, index, "-n", "1000", "--out", tmp_path / f"{name}.csv") == 0
    for suffix in (".csv", ".png"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    if what != "duplicates":  # more was asked for than there is
        assert len(read(tmp_path / "a.csv")) == 66
        assert {TWINS[0], TWINS[1]} <= {row["path"] for row in read(tmp_path / "a.csv")}


def test_one_image_of_each_cluster_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "x.npz", clusters(5, 30))
    assert call("find", "next", "x.npz", "-n", "10") == 0
    rows = read(tmp_path / "next.csv")
    assert sorted(int(row["path"][1:]) // 30 for row in rows[:5]) == [0, 1, 2, 3, 4]
    assert {row["label"] for row in rows} == {""}
    said = capsys.readouterr().out
    assert "10 of 150 images to label next; none has a label yet" in said
    assert "no contact sheet" in said
    assert not (tmp_path / "next.png").exists()


def test_labels_filled_in_are_asked_for_no_more(tmp_path: Path, capsys: Capture) -> None:
    """The CSV that next wrote is passed back with labels; two of five clusters remain unlabeled."""
    source, first, second = write_npz(tmp_path / "x.npz", clusters(5, 30)), tmp_path / "1.csv", tmp_path / "2.csv"
    assert call("find", "next", source, "-n", "5", "--out", first) == 0
    rows = read(first)
    with first.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(row | {"label": f"kind {i}" if i < 3 else ""} for i, row in enumerate(rows))
    assert call("find", "next", source, "-n", "2", "--labels", first, "--out", second) == 0
    assert "3 have a label, of 3 classes" in capsys.readouterr().out
    left = {int(row["path"][1:]) // 30 for row in rows[3:]}
    assert {int(row["path"][1:]) // 30 for row in read(second)} == left
    assert call("find", "next", source, "--labels", first, "--out", first) == 2
    assert "would be overwritten" in capsys.readouterr().err
    kept = first.read_text()
    assert call("find", "next", source, "--out", first) == 2
    assert "1.csv has labels that are not in the index and would be overwritten: give it as --labels" in (
        capsys.readouterr().err
    )
    assert first.read_text() == kept
    assert call("find", "next", source, "-n", "2", "--labels", first, "--out", second) == 0  # none was filled in


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: [rows[0], ["gone.png", *rows[1][1:]], *rows[2:]],
        lambda rows: [*rows[:-1], [*rows[-1][:1], "kind", " brown", *rows[-1][2:]]],
        lambda rows: [*rows, [rows[1][0], "another", "9", "0.5"]],
        lambda rows: [row[:2] for row in rows],
        lambda rows: [["image", "class"], *(row[:2] for row in rows[1:])],
    ],
    ids=["an image that is gone", "a comma", "two labels", "as a spreadsheet left it", "renamed columns"],
)
def test_typed_labels_are_kept_whatever_is_wrong_in_a_row(change: Any, tmp_path: Path, capsys: Capture) -> None:
    source, out = write_npz(tmp_path / "x.npz", clusters(5, 30)), tmp_path / "next.csv"
    assert call("find", "next", source, "-n", "5", "--out", out) == 0
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    with out.open("w", newline="") as file:
        csv.writer(file).writerows(change([header, *([name, "kind", *rest] for name, _, *rest in rows)]))
    kept = out.read_bytes()
    assert call("find", "next", source, "--out", out) == 2
    assert re.search("would be overwritten|is another table", capsys.readouterr().err)
    assert out.read_bytes() == kept


def test_labels_corrected_where_they_come_from_are_checked_again(tmp_path: Path) -> None:
    """docs/search.md: correct labels.csv, and run the same command once more. The table has nothing that was typed."""
    source, out, labels = write_npz(tmp_path / "x.npz", clusters(3, 20)), tmp_path / "m.csv", tmp_path / "l.csv"
    names = {f"p{i}": ("cat", "dog", "owl")[i // 20] for i in range(60)}

    def find(wrong: dict[str, str]) -> list[dict[str, str]]:
        labels.write_text("path,label\n" + "".join(f"{name},{of}\n" for name, of in (names | wrong).items()))
        assert call("find", "mislabeled", source, "--labels", labels, "--out", out) == 0
        return read(out)

    assert {row["path"] for row in find({"p3": "owl", "p30": "cat"})} == {"p3", "p30"}
    assert [row["path"] for row in find({"p30": "cat"})] == ["p30"]
    assert find({}) == []


def test_a_correction_that_was_typed_into_the_table_is_kept(tmp_path: Path, capsys: Capture) -> None:
    source, out = planted(tmp_path / "x.npz", {3: 2}), tmp_path / "mislabeled.csv"
    assert call("find", "mislabeled", source, "--out", out) == 0
    [row] = read(out)
    out.write_text(out.read_text().replace(f"{row['path']},owl", f"{row['path']},cat"))
    assert call("find", "mislabeled", source, "--out", out) == 2
    assert "would be overwritten: give it as --labels" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["outliers", "duplicates", "mislabeled", "next"])
def test_another_table_is_not_overwritten(what: str, tmp_path: Path, capsys: Capture) -> None:
    source, out = planted(tmp_path / "x.npz", {3: 2}), tmp_path / "labels.csv"
    out.write_text("path,label\np1,cat\n")
    assert call("find", what, source, "--out", out) == 2
    assert f"{out} is another table, with the columns path, label; choose another --out" in capsys.readouterr().err
    assert out.read_text() == "path,label\np1,cat\n"


def test_a_picture_beside_a_new_table_is_not_deleted(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "x.npz", clusters(2, 20))
    (tmp_path / "mine.png").write_bytes(b"mine")
    assert call("find", "duplicates", source, "--out", tmp_path / "mine.csv") == 0
    assert (tmp_path / "mine.png").read_bytes() == b"mine"


def test_one_table_is_given_as_it_is_or_in_a_list(tmp_path: Path) -> None:
    index, table = stepclr.open_index(planted(tmp_path / "x.npz", {3: 2})), tmp_path / "l.csv"
    table.write_text("path,label\np3,cat\n")
    wrong = index.paths.index("p3")
    for labels in (table, str(table), [table]):
        assert len(stepclr.find_mislabeled(index, labels=labels).indices) == 0
        assert stepclr.suggest_labels(index, labels=labels).index.class_name(wrong) == "cat"
    assert stepclr.suggest_labels(index, labels=None).index.class_name(wrong) == "owl"


@pytest.mark.parametrize("labels", [np.full((20, 1), -1), np.full(20, 0.5), np.full(20, "cat")])
def test_an_npz_whose_labels_are_no_row_of_whole_numbers(labels: Any, tmp_path: Path, capsys: Capture) -> None:
    source = write_npz(tmp_path / "x.npz", clusters(2, 10), classes=("cat",))
    stored = dict(np.load(source))
    np.savez(source, **(stored | {"labels": labels}))
    assert call("find", "next", source, "--out", tmp_path / "next.csv") == 2
    assert "its arrays do not match each other" in capsys.readouterr().err


def planted(path: Path, wrong: dict[int, int]) -> Path:
    """An index of 3 clusters of 20 images, each with the label of its cluster but for the `wrong` ones."""
    labels = [wrong.get(i, i // 20) for i in range(60)]
    return write_npz(path, clusters(3, 20), labels, ("cat", "dog", "owl"))


def test_planted_wrong_labels_are_found_and_corrected(tmp_path: Path, capsys: Capture) -> None:
    source, out = planted(tmp_path / "x.npz", {3: 2, 30: 0, 59: 1}), tmp_path / "doubtful.csv"
    assert call("find", "mislabeled", source, "-n", "3", "--out", out) == 0
    rows = read(out)
    found = {row["path"]: (row["label"], row["suggested"]) for row in rows}
    assert found == {"p3": ("owl", "cat"), "p30": ("cat", "dog"), "p59": ("dog", "owl")}
    scores = [(float(row["score"]), float(row["suggested_score"])) for row in rows]
    assert all(score < 0.07 < 0.5 < suggested for score, suggested in scores)
    assert scores == sorted(scores, key=lambda pair: pair[0])
    assert "3 of 60 labels are suspected to be wrong; 95.0 % agree" in capsys.readouterr().out

    # The corrected table is given back. Two of its labels win over the index's own; one remains wrong.
    out.write_text(
        "path,label\n" + "".join(f"{row['path']},{row['suggested']}\n" for row in rows if row["path"] != "p30")
    )
    assert call("find", "mislabeled", source, "--labels", out, "--out", tmp_path / "again.csv") == 0
    assert [row["path"] for row in read(tmp_path / "again.csv")] == ["p30"]
    assert "1 of 60 labels are suspected" in capsys.readouterr().out
    assert call("find", "mislabeled", source, "--labels", out, "--out", out) == 2
    assert "would be overwritten" in capsys.readouterr().err


def test_right_labels_are_not_suspected_and_the_only_label_of_a_class_is_not_checked(tmp_path: Path) -> None:
    right = stepclr.find_mislabeled(planted(tmp_path / "x.npz", {}))
    assert (right.suspected, right.checked, right.agreement, len(right.indices)) == (0, 60, 1.0, 0)
    labels = [0] * 20 + [1] * 20 + [2] + [-1] * 19
    few = write_npz(tmp_path / "few.npz", clusters(3, 20), labels, ("cat", "dog", "owl"))
    assert stepclr.find_mislabeled(few).checked == 40


def test_a_label_is_judged_by_a_classifier_that_has_not_seen_it(tmp_path: Path) -> None:
    """More features than images: a layer fitted to random labels would agree with all of them."""
    generator = np.random.default_rng(0)
    h, labels = generator.normal(size=(60, 80)).astype(np.float32), generator.integers(0, 2, 60).tolist()
    assert stepclr.find_mislabeled(write_npz(tmp_path / "x.npz", h, labels, ("cat", "dog"))).agreement < 0.75


def test_the_uncertain_are_preferred_to_as_many_certain() -> None:
    """Two labeled clusters, and two groups of the same size: one near a labeled cluster, one between both."""
    generator = np.random.default_rng(0)
    a, b, far, between = (np.zeros(16) for _ in range(4))
    a[0], b[1], far[[0, 2]], between[[0, 1, 3]] = 3, 3, 2.2, 1.7
    centers = np.repeat([a, b, far, between], [10, 10, 20, 20], 0)
    h = (centers + 0.05 * generator.normal(size=centers.shape)).astype(np.float32)
    labels = np.full(60, -1)
    assert suggest.choose_images(h, labels, 1)[1].tolist() == [1.0]
    labels[:10], labels[10:20] = 0, 1
    indices, uncertainty = suggest.choose_images(h, labels, 40)
    assert indices[0] >= 40  # of those between
    assert uncertainty[0] > 0.8 > uncertainty[indices < 40].max()
    assert sorted(indices) == list(range(20, 60))


def test_fewer_are_the_beginning_of_more_and_a_large_index_is_looked_at_in_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    h, none = clusters(4, 40, spread=0.5), np.full(160, -1)
    monkeypatch.setattr(suggest, "BLOCK", 7)
    assert suggest.choose_images(h, none, 5)[0].tolist() == suggest.choose_images(h, none, 50)[0][:5].tolist()
    monkeypatch.setattr(suggest, "MAX_CANDIDATES", 20)
    some = [suggest.choose_images(h, none, 200, seed)[0].tolist() for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert sorted(some[0]) == list(range(160))  # the rest comes too, by chance


def test_the_greedy_choice_is_that_of_loops() -> None:
    """Against the formula written as loops in float64, with labels and weights."""
    h = clusters(3, 8, spread=0.4)
    labels = np.full(24, -1)
    labels[[0, 9]] = 0, 1
    x = h.astype(np.float64) / np.linalg.norm(h, axis=1, keepdims=True)
    x -= x.mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    near = np.exp((x @ x.T - 1) / 0.1)
    weights = np.sqrt(suggest.class_uncertainty(h, labels))
    speak, expected = [0, 9], []
    for _ in range(10):
        worth = {
            i: sum(weights[j] * max(near[s, j] for s in [*speak, i]) for j in range(24) if labels[j] < 0)
            for i in range(24)
            if i not in speak
        }
        expected.append(max(worth, key=lambda i: worth[i]))
        speak.append(expected[-1])
    assert suggest.choose_images(h, labels, 10)[0].tolist() == expected


def test_a_distance_is_that_to_the_kth_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """In h whose covariance is the identity: of 60 rows with 16 features, 16/60 of it are a multiple of that."""
    h = clusters(3, 20, spread=0.5)
    monkeypatch.setattr(outliers, "BLOCK", 7)
    covariance = np.cov(h.T.astype(np.float64), bias=True)
    shrunk = (1 - 16 / 60) * covariance + 16 / 60 * np.diag(covariance).mean() * np.eye(16)
    between = h[:, None].astype(np.float64) - h[None]
    far = np.sort(np.sqrt(np.einsum("ijf,fg,ijg->ij", between, np.linalg.inv(shrunk), between)), 1)
    for k, used in ((4, 4), (50, 6)):  # of 60 images the 50th nearest says nothing
        expected = far[:, used] / np.sort(far[:, used])[29]
        np.testing.assert_allclose(outliers.outlier_scores(h, k=k), expected, rtol=1e-3)
    assert outliers.outlier_scores(np.zeros((5, 3), np.float32)).tolist() == [0] * 5
    assert outliers.outlier_scores(np.full((5, 3), 7.3, np.float32)).tolist() == [0] * 5
    assert outliers.outlier_scores(np.ones((1, 3), np.float32)).tolist() == [0]


def test_what_is_odd_in_a_direction_of_little_spread_is_found() -> None:
    """4 directions spread h more than the odd image differs in one of the 12 others."""
    h = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    h *= np.repeat(np.array([5, 0.1], np.float32), [4, 12])
    h[17] = 2 * np.eye(16)[12]
    far = np.sort(np.linalg.norm(h[:, None] - h[None], axis=2), 1)[:, 40]
    assert (far > far[17]).sum() > 300
    assert outliers.outlier_scores(h).argmax() == 17


def test_few_images_with_many_features_are_compared_by_plain_distances() -> None:
    h = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    h[3] *= 4
    far = np.sort(np.linalg.norm(h[:, None].astype(np.float64) - h[None], axis=2), 1)[:, 2]
    np.testing.assert_allclose(outliers.outlier_scores(h), far / np.sort(far)[9], rtol=1e-3)


def test_noise_is_unusual_by_its_pixels_where_it_is_not_by_its_features() -> None:
    """40 smooth images with a trend and 2 of noise, whose h is the most common one."""
    torch.manual_seed(0)
    smooth = [F.interpolate(torch.rand(1, 3, 4, 4), (32, 32), mode="bilinear")[0] for _ in range(40)]
    images = [(255 * image).byte() for image in [*smooth, torch.rand(3, 32, 32), torch.rand(3, 64, 64)]]
    h = clusters(1, 42)
    h[40:] = h[:40].mean(0)
    statistics = outliers.pixel_statistics(images)
    assert outliers.outlier_scores(h)[40:].max() < 1
    scores = outliers.outlier_scores(h, statistics)
    assert set(np.argsort(-scores)[:2]) == {40, 41}
    assert 0.8 < np.median(scores) < 1.3
    # What is unusual by its features remains so.
    h[5] += 10
    assert set(np.argsort(-outliers.outlier_scores(h, statistics))[:3]) == {5, 40, 41}


def test_many_copies_of_one_image_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """More copies than neighbors are compared: nothing but copies surrounds an image."""
    monkeypatch.setattr("stepclr.metrics.ROWS", 7)
    generator = np.random.default_rng(0)
    h = generator.normal(size=(100, 16)).astype(np.float32)
    h[:40] = h[0] + 0.01 * generator.normal(size=(40, 16))
    pairs, scores = duplicate_pairs(h)
    assert groups([(i, j) for i, j in pairs.tolist()]) == [list(range(40))]
    assert (scores > 0.99).all()


def test_neither_h_nor_details_alone_make_a_duplicate() -> None:
    """Two images that look different but have the same h, and two equal images with different h."""
    images = torch.stack([gray_thumbnail(p) for p in stepclr.open_images("sample:train").read(range(40))])
    h = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    h[1] = h[0]
    images[3] = images[2]
    assert duplicate_pairs(h, images)[0].tolist() == []
    assert duplicate_pairs(h)[0].tolist() == [[0, 1]]
    h[3] = h[2]
    assert duplicate_pairs(h, images)[0].tolist() == [[2, 3]]


@pytest.mark.parametrize("what", ["duplicates", "outliers", "next"])
def test_an_index_of_one_image(what: str, tmp_path: Path) -> None:
    source = write_npz(tmp_path / "x.npz", np.ones((1, 4), np.float32))
    assert call("find", what, source, "--out", tmp_path / "found") == 0
    assert len(read(tmp_path / "found" / f"{what}.csv")) == (what != "duplicates")
    labeled = write_npz(tmp_path / "y.npz", np.ones((1, 4), np.float32), [0], ("a",))
    assert call("find", what, labeled, "--out", tmp_path / "found") == 0
    assert len(read(tmp_path / "found" / f"{what}.csv")) == (what == "outliers")


def test_what_cannot_be_used_is_said_in_one_line(tmp_path: Path, capsys: Capture) -> None:
    source = write_npz(tmp_path / "x.npz", clusters(2, 3))
    strange, bare = tmp_path / "strange.csv", tmp_path / "bare.csv"
    strange.write_text("path,label\nq7,cat\n")
    bare.write_text("name,kind\np0,cat\n")
    for words, answer in {
        ("dupes", source): "unknown thing to find 'dupes'. Did you mean 'duplicates'?",
        ("next", source, "-n", "0"): "n must be at least 1, not 0",
        ("next", source, "--seed", "-1"): "seed must be at least 0, not -1",
        ("mislabeled", source, "--seed", "-1"): "seed must be at least 0, not -1",
        ("next", source, "--out", "x.txt"): "out must end in .csv, or be a folder, not 'x.txt'",
        ("duplicates", source, "--seed", "1"): "--seed has no effect here: it is for find next and find mislabeled",
        ("outliers", source, "--labels", bare): "--labels has no effect here: it is for find next and find mislabeled",
        ("mislabeled", source): "the index has 0 labeled images of 0 classes",
        ("next", source, "--labels", strange): "1 of 1 paths are not in the index, such as 'q7'",
        ("next", source, "--labels", bare): "must have a header with the columns path",
        ("next", source, "--labels", tmp_path / "none.csv"): "none.csv cannot be read: No such file or directory",
        ("next", tmp_path / "no.npz"): "does not exist",
    }.items():
        assert call("find", *words) == 2
        said = capsys.readouterr().err
        assert answer in said
        assert len(said.splitlines()) == 1


def test_a_seed_of_any_size_draws_the_folds(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "x.npz", clusters(2, 6), labels=[0, 1] * 6, classes=("a", "b"))
    assert stepclr.find_mislabeled(source, seed=2**32 + 1).checked == 12


def test_no_sheet_of_an_earlier_table_is_left(tmp_path: Path) -> None:
    vectors = np.eye(3, dtype=np.float32)
    np.savez(tmp_path / "h.npz", embeddings=vectors, paths=["a", "b", "c"], labels=[-1] * 3, classes=np.array([], str))
    (tmp_path / "outliers.png").write_bytes(b"of an earlier table")
    assert call("find", "outliers", tmp_path / "h.npz", "--out", tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h.npz", "outliers.csv"]
