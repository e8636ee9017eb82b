"""An index follows its images, and answers queries as a user makes them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small import call
from torch import nn
from touches import Forks

import stepclr
from stepclr.data.decode import upright_rgb
from stepclr.model.files import save_encoder
from stepclr.tools.images import contact_sheet
from stepclr.tools.search import nearest
from stepclr.tools.search.index import EmbeddingIndex, as_text, from_text, open_index
from stepclr.tools.search.queries import Search, search
from stepclr.tools.search.rows import schema_of
from stepclr.tools.search.table import build_index

PHOTOS = 40
Capture = pytest.CaptureFixture[str]


def make_encoder(path: Path, seed: int) -> Path:
    """An untrained encoder that distinguishes images: with new BatchNorms its blocks would be the identity."""
    torch.manual_seed(seed)
    encoder = stepclr.build_encoder("test_resnet", stem="small-stride2", size=28)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
    save_encoder(encoder, path)
    return path


def save_photos(folder: Path, numbers: range) -> None:
    """Images of the sample as JPEG files, in two class folders and loose."""
    for i, image in zip(numbers, stepclr.open_images("sample:train").read(numbers), strict=True):
        path = folder / ("even", "odd", ".")[i % 3] / f"{i:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=95)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("runs") / "a" / "encoder.safetensors", 0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "photos"
    save_photos(folder, range(PHOTOS))
    return folder


@pytest.fixture(scope="module")
def index(encoder: Path, photos: Path) -> Path:
    out = photos.parent / "index"
    assert call("embed", encoder, photos, "--out", out) == 0
    return out


def same(a: EmbeddingIndex, b: EmbeddingIndex) -> bool:
    return (
        (a.paths, a.classes, a.source, a.thumbnails) == (b.paths, b.classes, b.source, b.thumbnails)
        and np.array_equal(a.labels, b.labels)
        and np.allclose(a.vectors, b.vectors, atol=1e-5 * np.abs(b.vectors).max())
    )


def test_an_index_holds_what_embed_computes(index: Path, encoder: Path, photos: Path) -> None:
    images = stepclr.open_images(photos)
    opened = open_index(index)
    assert opened.paths == images.names
    assert opened.classes == images.classes == ["even", "odd"]
    assert np.array_equal(opened.labels, images.labels)
    assert -1 in opened.labels
    assert np.allclose(opened.vectors, stepclr.embed(encoder, images), atol=1e-5)
    assert opened.source == str(photos)
    assert upright_rgb(opened.thumbnails[0]).shape == (3, 28, 28)


def test_the_image_itself_is_found_first(
    index: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("search", index, photos / "odd" / "001.jpg", "-k", "5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{index}: {PHOTOS} images, every one compared"
    rows = [line.replace("│", " ").split() for line in lines if "│" in line]
    assert rows[0] == ["1", "1.000", "odd", "odd/001.jpg"]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert lines[-1].startswith("hits-001.png: ")
    with Image.open("hits-001.png") as sheet:
        assert sheet.width > sheet.height > 100  # 6 cells


def test_all_cosines_are_numpys(index: Path, photos: Path) -> None:
    opened = open_index(index)
    h = opened.vectors / np.linalg.norm(opened.vectors, axis=1, keepdims=True)
    for row in (0, 17, PHOTOS - 1):
        cosines = h @ h[row]
        order = np.argsort(-cosines, kind="stable")[:7]
        hits = search(index, photos / opened.paths[row], 7)
        assert [hit.path for hit in hits] == [opened.paths[i] for i in order]
        assert np.allclose([hit.similarity for hit in hits], cosines[order], atol=1e-5)
        assert [hit.label for hit in hits] == [
            None if (c := opened.labels[i]) < 0 else opened.classes[c] for i in order
        ]
    assert len(search(index, photos / opened.paths[0], 10**6)) == PHOTOS


def test_a_query_may_be_an_image_in_memory(index: Path, photos: Path) -> None:
    with Image.open(photos / "even" / "000.jpg") as image:
        pixels = upright_rgb(image)
        for query in (image, pixels):
            assert search(index, query, 1)[0].similarity == pytest.approx(1, abs=1e-5)


def test_files_give_the_same_hits(index: Path, encoder: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    query = photos / "odd" / "001.jpg"
    expected = search(index, query, 9)
    for name in ("h.parquet", "h.npz"):
        assert call("embed", encoder, photos, "--out", tmp_path / name) == 0
        hits = search(tmp_path / name, query, 9, run=encoder)
        assert [hit.path for hit in hits] == [hit.path for hit in expected]
        assert np.allclose([hit.similarity for hit in hits], [hit.similarity for hit in expected], atol=1e-5)
    assert same(open_index(tmp_path / "h.parquet"), open_index(index))
    assert pq.read_table(tmp_path / "h.parquet").column_names == ["vector", "path", "label", "thumbnail"]
    assert search(tmp_path / "h.parquet", query, 9) == search(tmp_path / "h.parquet", query, 9, encoder)
    assert call("search", tmp_path / "h.npz", query) == 2
    assert "pass the run that made it: --run RUN" in capsys.readouterr().err
    shutil.copy(encoder, tmp_path)
    assert call("search", tmp_path / "h.npz", query, "--out", tmp_path / "sheet.png") == 0
    assert "no thumbnails" in capsys.readouterr().out
    assert not (tmp_path / "sheet.png").exists()


def test_only_what_changed_is_embedded(encoder: Path, tmp_path: Path, capsys: Capture) -> None:
    photos, out = tmp_path / "photos", tmp_path / "index"
    save_photos(photos, range(10))
    embed = ("embed", encoder, photos, "--out", out)
    assert call(*embed) == 0
    assert "10 embeddings, 10 of them new, 0 removed" in capsys.readouterr().out
    assert call(*embed) == 0
    assert "10 embeddings, 0 of them new, 0 removed" in capsys.readouterr().out

    save_photos(photos, range(10, 14))
    (photos / "odd" / "001.jpg").unlink()
    (photos / "odd" / "004.jpg").write_bytes((photos / "odd" / "013.jpg").read_bytes())  # other bytes, the same name
    (photos / "new").mkdir()
    (photos / "even" / "000.jpg").rename(photos / "new" / "000.jpg")  # another path, another class
    (photos / "truncated.jpg").write_bytes(b"no image")
    assert call(*embed) == 0
    said = capsys.readouterr().out
    assert "13 embeddings, 6 of them new, 3 removed; 1 images could not be read" in said
    assert "truncated.jpg,not an image" in (out / "skipped.csv").read_text()
    assert call("embed", encoder, photos, "--out", tmp_path / "afresh") == 0
    assert same(open_index(out), open_index(tmp_path / "afresh"))
    assert len(set(open_index(out).paths)) == 13

    (photos / "truncated.jpg").unlink()
    assert call(*embed) == 0
    assert not (out / "skipped.csv").exists()


def test_another_encoder_precision_or_source_is_refused(
    index: Path, encoder: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = make_encoder(tmp_path / "b" / "encoder.safetensors", 1)
    before = open_index(index)
    for words, said in (
        ([other, photos], "was made by another encoder"),
        ([encoder, photos, "--precision", "bf16"], "was built with precision fp32"),
        ([encoder, "sample:test", "--limit", "3"], "choose another --out"),
    ):
        assert call("embed", *words, "--out", index) == 2
        *_, error = capsys.readouterr().err.splitlines()  # under the heading of the source
        assert error.startswith("stepclr: ")
        assert said in error
    assert same(open_index(index), before)
    assert call("search", index, photos / "odd" / "001.jpg", "--run", other) == 2
    assert "is not the encoder that made" in capsys.readouterr().err


def test_an_index_moves_with_its_encoder(index: Path, photos: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(index, moved)
    assert search(moved, photos / "odd" / "001.jpg", 1)[0].path == "odd/001.jpg"
    (moved / "encoder.safetensors").unlink()
    with pytest.raises(stepclr.StepclrError, match="is missing"):
        search(moved, photos / "odd" / "001.jpg", 1)


NAMES = [
    b"[bold red]x[red].png",
    b"line\nbreak.png",
    b"\xff\xfe.png",
    rb"\udcff.png",
    rb"back\slash.png",
    b"'; DROP TABLE images; --.png",
    "你好 é.png".encode(),
    b"\x1b[2J.png",
]


def test_any_name_survives(encoder: Path, tmp_path: Path, capsys: Capture) -> None:
    photos, sheet = tmp_path / "photos", tmp_path / "sheet.png"
    photos.mkdir()
    for name, image in zip(NAMES, stepclr.open_images("sample:train").read(range(len(NAMES))), strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
        shutil.copy(tmp_path / "a.png", photos / os.fsdecode(name))
    expected = sorted(map(os.fsdecode, NAMES))
    for out in (tmp_path / "index", tmp_path / "h.parquet", tmp_path / "h.npz"):
        assert call("embed", encoder, photos, "--out", out) == 0
        assert sorted(open_index(out).paths) == expected
        for name in NAMES:
            hit = search(out, photos / os.fsdecode(name), 1, encoder)[0]
            assert hit.path == os.fsdecode(name)
    capsys.readouterr()
    for name in NAMES:
        assert call("search", tmp_path / "index", photos / os.fsdecode(name), "--out", sheet) == 0
        said = capsys.readouterr().out
        assert "\x1b[2J" not in said
        assert "[bold red]x[red].png" in said
    for name in NAMES[:4]:
        (photos / os.fsdecode(name)).unlink()
    assert call("embed", encoder, photos, "--out", tmp_path / "index") == 0
    assert sorted(open_index(tmp_path / "index").paths) == sorted(map(os.fsdecode, NAMES[4:]))


@pytest.mark.parametrize("name", ["\udcff", "\\udcff", "\\", "\\\\udcff", "a\\b", "plain", "\\u", "\\\udcff"])
def test_a_name_as_text_is_undone(name: str) -> None:
    assert from_text(as_text(name)) == name
    as_text(name).encode()


@pytest.fixture
def approximate(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of 600 images; approximate search begins at 500 here."""
    monkeypatch.setattr(nearest, "EXACT_ROWS", 500)
    out = tmp_path / "index"
    assert call("embed", encoder, "sample:train", "--limit", "600", "--out", out) == 0
    return out


def test_approximate_search_says_how_often_it_is_right(
    approximate: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    embed = ("embed", encoder, "sample:train", "--out", approximate)
    capsys.readouterr()
    recall = json.loads((approximate / "index.json").read_bytes())["recall"]
    assert 0.9 < recall <= 1
    assert call(*embed, "--limit", "600") == 0
    assert f"0 of them new, 0 removed; approximate search, recall at 10 {recall:.3f}" in capsys.readouterr().out
    images = stepclr.open_images("sample:train", limit=600)
    Image.fromarray(images.read([5])[0].permute(1, 2, 0).numpy()).save(tmp_path / "q.png")
    assert call("search", approximate, tmp_path / "q.png", "--out", tmp_path / "sheet.png") == 0
    assert f"600 images, approximate; recall at 10 against comparing every one: {recall:.3f}" in capsys.readouterr().out
    opened = Search(approximate)
    assert opened.approximate
    found = [(hit.path, hit.label, round(hit.similarity, 4)) for hit in opened(tmp_path / "q.png", 10)]
    monkeypatch.setattr(nearest, "EXACT_ROWS", 10**6)
    exact = [(hit.path, hit.label, round(hit.similarity, 4)) for hit in search(approximate, tmp_path / "q.png", 10)]
    assert found[0] == exact[0]
    assert found[0][2] == 1
    assert len(set(found) & set(exact)) >= 8

    # A few more rows go into the existing cells, and recall is measured again.
    monkeypatch.setattr(nearest, "EXACT_ROWS", 500)
    assert call(*embed, "--limit", "620") == 0
    made = json.loads((approximate / "index.json").read_bytes())
    assert made["partitioned_rows"] == 600
    assert made["recall"] > 0.9
    assert Search(approximate).rows == 620


def test_recall_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that returns the query and the five nearest rows finds half of ten."""
    h = np.random.default_rng(0).standard_normal((1000, 24), np.float32)
    names = [f"{i:08x}" for i in range(len(h))]
    columns = {"id": names, "vector": list(h), "path": names, "label": [None] * 1000, "thumbnail": [b""] * 1000}
    rows = lancedb.connect(tmp_path).create_table("images", pa.table(columns, schema=schema_of(24)))
    monkeypatch.setattr(nearest, "EXACT_ROWS", 100)
    recall, partitioned_rows = nearest.update_ann_index(rows, tmp_path, 0)
    assert recall is not None
    assert recall > 0.99
    assert partitioned_rows == 1000
    whole = nearest.approximate
    monkeypatch.setattr(nearest, "approximate", lambda *asked: whole(*asked).slice(0, 6))
    assert nearest.recall_at_10(rows, tmp_path) == pytest.approx(0.5, abs=0.02)


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from stepclr.tools.search.table import build_index
from stepclr.tools.search.index import open_index
from stepclr.tools.search import nearest, rows as index_rows, table

encoder, photos, out, moments = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
table.COMMIT_IMAGES, nearest.EXACT_ROWS, nearest.CELL_ROWS = 8, 30, 10

def child(work):  # LanceDB has threads, so that only children import it
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def build(where, after=None):
    import lancedb
    begun = time.monotonic()
    if after is not None:
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    build_index(encoder, photos, where)
    (out / "life").write_text(str(time.monotonic() - begun))

assert child(lambda: build(out / "whole")) == 0
life = float((out / "life").read_text())
killed = 0
for k in range(moments):
    where = out / str(k)
    killed += child(lambda: build(where, life * (k + 0.5) / moments)) == -signal.SIGKILL
    def opened():
        if (where / "index.json").exists():
            try:
                paths = open_index(where).paths
                assert len(paths) == len(set(paths)) and len(paths) % 8 == 0, paths
            except Exception as error:
                assert "no image yet" in str(error) or "not found" in str(error), error
    assert child(opened) == 0, k
    assert child(lambda: build(where)) == 0, k
print(killed)
"""


@pytest.mark.parametrize("moments", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on(
    moments: int, forked: Forks, encoder: Path, photos: Path, tmp_path: Path
) -> None:
    words = [forked.python, "-c", KILLED, encoder, photos, tmp_path, str(moments)]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= moments / 2  # the others were faster than the first
    whole = open_index(tmp_path / "whole")
    assert len(whole) == PHOTOS
    for k in range(moments):
        assert same(open_index(tmp_path / str(k)), whole), k
        assert not list((tmp_path / str(k)).glob(".*.tmp"))


def test_two_at_a_time_are_refused(index: Path, encoder: Path, photos: Path) -> None:
    pytest.importorskip("fcntl")
    from stepclr.io import locked

    with locked(index, "busy"), pytest.raises(stepclr.StepclrError, match="another process is writing in"):
        build_index(encoder, photos, index)


def test_what_is_no_index_is_left_alone(encoder: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    before = sorted(photos.rglob("*"))
    assert call("embed", encoder, photos, "--out", photos) == 2
    assert "exists and is not an index; choose another --out" in capsys.readouterr().err
    assert sorted(photos.rglob("*")) == before
    for where in (photos, tmp_path / "none", tmp_path / "none.parquet", photos / "odd" / "001.jpg"):
        assert call("search", where, photos / "odd" / "001.jpg") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "stepclr embed" in error


def test_an_index_of_an_earlier_version_is_one_of_rgb(index: Path, tmp_path: Path) -> None:
    shutil.copytree(index, tmp_path / "old")
    made = json.loads((index / "index.json").read_bytes())
    del made["channels"], made["value_range"]
    (tmp_path / "old" / "index.json").write_text(json.dumps(made))
    opened = open_index(tmp_path / "old")
    assert (opened.channels, opened.value_range) == (3, None)


DAMAGES = ["json", "table", "manifest", "data", "encoder", "classes"]


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_index_is_one_line(what: str, index: Path, photos: Path, tmp_path: Path, capfd: Capture) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(index, broken)
    if what == "json":
        (broken / "index.json").write_text('{"format": 1}')
    elif what == "classes":
        text = (broken / "index.json").read_text()
        (broken / "index.json").write_text(text.replace('["even", "odd"]', '"evenodd"'))
    elif what == "encoder":
        (broken / "encoder.safetensors").write_bytes(b"x" * 100)
    elif what == "table":
        shutil.rmtree(broken / "images.lance")
    else:
        pattern = {"manifest": "_versions/*.manifest", "data": "data/*"}[what]
        for path in (broken / "images.lance").glob(pattern):
            path.write_bytes(path.read_bytes()[:-40])
    assert call("search", broken, photos / "odd" / "001.jpg") == 2
    said = capfd.readouterr().err.splitlines()
    assert said[-1].startswith(f"stepclr: {broken}")
    assert "Traceback" not in "".join(said)


def test_damaged_files_are_one_line(encoder: Path, photos: Path, tmp_path: Path) -> None:
    for name in ("h.parquet", "h.npz"):
        path = tmp_path / name
        assert call("embed", encoder, photos, "--out", path) == 0
        content = path.read_bytes()
        for part in (content[:-30], content[:100], b""):
            path.write_bytes(part)
            with pytest.raises(stepclr.StepclrError, match=re.escape(str(path))) as raised:
                open_index(path)
            assert "\n" not in str(raised.value)
    np.savez(tmp_path / "pickled.npz", embeddings=np.array([{}], dtype=object), paths=[""], labels=[0], classes=[""])
    with pytest.raises(stepclr.StepclrError, match=r"is not an \.npz written by stepclr embed"):
        open_index(tmp_path / "pickled.npz")
    for h, label, said in ((np.nan, -1, "not finite numbers"), (0.0, 1, r"the places of its 1 classes")):
        np.savez(tmp_path / "own.npz", embeddings=[[h, 1.0]], paths=["a"], labels=[label], classes=["b"])
        with pytest.raises(stepclr.StepclrError, match=rf"own\.npz has .*{said}"):
            open_index(tmp_path / "own.npz")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["INDEX", "truncated.jpg"], "truncated.jpg cannot be read: not an image in a known format"),
        (["INDEX", "nowhere.jpg"], "nowhere.jpg does not exist"),
        (["INDEX", "."], "is not an image file"),
        (["INDEX"], "search takes an index and images"),
        (["INDEX", "q.jpg", "-k", "0"], "k must be at least 1"),
        (["INDEX", "q.jpg", "--out", "sheet.pgn"], "is not an image format"),
        (["INDEX", "q.jpg", "--out", "sheet.psd"], "is not an image format"),  # Pillow reads it, but cannot write it
    ],
)
def test_a_bad_query_gets_one_line(
    words: list[str], said: str, index: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "truncated.jpg").write_bytes(b"no image")
    shutil.copy(photos / "odd" / "001.jpg", tmp_path / "q.jpg")
    assert call("search", *(str(index) if word == "INDEX" else word for word in words)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


def test_a_query_that_is_not_there_is_named_before_anything_is_embedded(
    encoder: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = Path(shutil.copytree(encoder.parent if encoder.is_file() else encoder, tmp_path / "run"))
    assert call("search", run, tmp_path / "nope.jpg") == 2
    assert "nope.jpg does not exist" in capsys.readouterr().err
    assert not (run / "index").exists()


@pytest.mark.parametrize(("package", "out"), [("lancedb", "index"), ("pyarrow.parquet", "h.parquet")])
def test_a_missing_package_is_named(
    package: str, out: str, encoder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, package, None)
    assert call("embed", encoder, photos, "--out", tmp_path / out) == 2
    assert f"needs the package {package.split('.')[0]}: pip install 'stepclr[search]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_images_none_of_which_can_be_read(encoder: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no image")
    for out in ("index", "h.parquet", "h.npz"):
        assert call("embed", encoder, tmp_path / "photos", "--out", tmp_path / out) == 2
        assert "no image can be read; the first, a.jpg: not an image" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_many_queries_go_on_one_sheet(index: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    queries = [photos / "odd" / "001.jpg", photos / "odd" / "004.jpg"]
    assert call("search", index, *queries, "--k", "3", "--out", tmp_path / "sheet.jpg") == 0
    said = capsys.readouterr().out
    assert [said.count(f"{path}\n") for path in queries] == [1, 1]
    assert said.count("│ 1 ") == 2
    with Image.open(tmp_path / "sheet.jpg") as both:
        assert both.height == 2 * contact_sheet([b""] * 4, [""] * 4).height


def test_a_contact_sheet_draws_whatever_it_is_given(index: Path) -> None:
    thumbnails = open_index(index).thumbnails[:3]
    captions = ["1  0.987\n[red]name", "\udcff\x1b[2J你好" * 50, ""]
    sheet = contact_sheet([*thumbnails, b"no image"], [*captions, "last"], columns=2)
    assert sheet.height > sheet.width
    assert np.asarray(sheet).std() > 10
    first, second = (contact_sheet([b""], [f"hit\nIMG_{'2026' * 20}_{number}.jpg"]) for number in (1, 2))
    assert np.any(np.asarray(first) != np.asarray(second))  # names that differ in their last letters
    with pytest.raises(stepclr.StepclrError, match="1 thumbnails and 2 captions"):
        contact_sheet([b""], ["", ""])


def test_many_ranks_make_the_same_index(
    forked: Forks, index: Path, encoder: Path, photos: Path, tmp_path: Path
) -> None:
    command = [forked.python, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "stepclr"]
    embed = ["embed", encoder, photos, "--out", tmp_path / "index"]
    done = subprocess.run([*command, *map(str, embed)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert same(open_index(tmp_path / "index"), open_index(index))


def test_what_search_cannot_do_is_said_before_an_index_is_built(
    photos: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("stepclr.cli.index._index_of", built)
    query = photos / "odd" / "001.jpg"
    before = query.read_bytes()
    for options, says in (
        (["-k", "0"], "k must be at least 1, not 0"),
        (["--out", query / "x.png"], f"{query} is not a folder"),
        (["--out", query], f"{query} is one of the images and would be overwritten; choose another --out"),
    ):
        assert call("search", tmp_path / "run", query, *options) == 2
        assert says in capsys.readouterr().err
    assert query.read_bytes() == before


def test_a_file_beside_a_table_that_is_no_encoder_is_passed_over(encoder: Path, photos: Path, tmp_path: Path) -> None:
    """The table names what made it."""
    assert call("embed", encoder, photos, "--out", tmp_path / "h.parquet") == 0
    (tmp_path / "encoder.safetensors").write_bytes(b"of another program")
    assert stepclr.search(tmp_path / "h.parquet", photos / "odd" / "001.jpg", k=1)[0].path == "odd/001.jpg"


def test_a_run_stands_for_an_index_of_its_own_images(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path(shutil.copytree(photos, tmp_path / "own"))
    run = stepclr.pretrain(
        "own", "run", encoder="test_resnet", stem="small-stride2", epochs=1, batch_size=16, progress=False
    )
    run = stepclr.Run(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # a run finds its images from any folder
    assert call("search", run.folder, own / "odd" / "001.jpg", "-k", "3") == 0
    assert f"{PHOTOS} images, {PHOTOS} of them new" in capsys.readouterr().out
    stepclr.pretrain(own, run.folder, resume=True, epochs=2, progress=False)  # its vectors are other ones now
    assert call("search", run.folder, own / "odd" / "001.jpg", "-k", "3") == 0
    assert f"{PHOTOS} images, {PHOTOS} of them new" in capsys.readouterr().out
    assert open_index(run.folder / "index").paths == stepclr.open_images(own).names
    # Its place may have changed in between.
    run.folder.rename(tmp_path / "moved")
    run = stepclr.Run(tmp_path / "moved")
    stepclr.pretrain(own, run.folder, resume=True, epochs=3, progress=False)
    assert call("search", run.folder, own / "odd" / "001.jpg", "-k", "3") == 0
    assert f"{PHOTOS} images, {PHOTOS} of them new" in capsys.readouterr().out
    # One that was made in bfloat16 stays as it is.
    shutil.rmtree(run.folder / "index")
    assert call("embed", run.folder, own, "--out", run.folder / "index", "--precision", "bf16") == 0
    assert call("search", run.folder, own / "odd" / "001.jpg", "-k", "3") == 0
    assert f"{PHOTOS} images, 0 of them new" in capsys.readouterr().out
    (own / "odd" / "004.jpg").unlink()
    assert call("search", run.folder, own / "odd" / "001.jpg", "-k", "3") == 0
    shown = capsys.readouterr().out
    assert f"{PHOTOS - 1} images, 0 of them new, 1 removed" in shown
    assert re.search(r"1 .*1\.000.*odd/001\.jpg", shown)
    # That of another encoder is not the run's to delete.
    shutil.rmtree(run.folder / "index")
    other = make_encoder(tmp_path / "other" / "encoder.safetensors", 1)
    assert call("embed", other, own, "--out", run.folder / "index") == 0
    before = open_index(run.folder / "index")
    assert call("search", run.folder, own / "odd" / "001.jpg") == 2
    assert f"{run.folder / 'index'} was made by another encoder, test_resnet of {other}" in capsys.readouterr().err
    assert same(open_index(run.folder / "index"), before)
