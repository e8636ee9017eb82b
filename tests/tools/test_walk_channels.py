"""A set of four channels and a gray one of 16 bits, from doctor to export: told once, and kept everywhere."""

import io
import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_files import file_of, fill, scene, tiff
from numpy.typing import NDArray
from PIL import Image
from small import call, succeed, untrained_run

import stepclr
from stepclr.model.classifier import Classifier
from stepclr.model.files import save_classifier
from stepclr.tools.doctor.findings import image_findings
from stepclr.tools.doctor.scan import scan
from stepclr.tools.doctor.trial import Trial
from stepclr.tools.images import thumbnail_pixels
from stepclr.tools.report.context import open_context
from stepclr.tools.report.training import training
from stepclr.tools.report.verdict import verdict

SIZE, N = 24, 12
TRAINED = ["--encoder", "test_resnet", "--epochs", "1", "--batch-size", "8", "--size", SIZE, "--head", "32-16"]
TRIALS = [Trial(8, 8, 8, 3, 0.1, 0.5, 5.0, 10**9), Trial(16, 16, 48, 9, 0.2, 0.5, 5.0, 2 * 10**9)]


def pixels(i: int, channels: int) -> NDArray[np.uint8]:
    """Image i `[H, W, C]`: each channel is another one, and each class is brighter in another."""
    bands = [np.roll(scene(30 + i % 3, 44)[..., band % 3], 5 * i + 7 * band, 1) // 2 for band in range(channels)]
    bands[i % 2 and channels - 1] += 100
    return np.stack(bands, axis=2)


def npy(image: NDArray[np.uint8]) -> tuple[str, bytes]:
    file = io.BytesIO()
    np.save(file, image)
    return ".npy", file.getvalue()


def stack(image: NDArray[np.uint8]) -> tuple[str, bytes]:
    first, *others = (Image.fromarray(image[..., band]) for band in range(image.shape[2]))
    return ".tif", file_of(first, "TIFF", save_all=True, append_images=others)


def deep(kind: str, suffix: str) -> Any:
    def write(image: NDArray[np.uint8]) -> tuple[str, bytes]:
        return suffix, file_of(Image.fromarray(image[..., 0].astype(np.uint16) * 257), kind)

    return write


@dataclass(frozen=True)
class Walked:
    """A set on its way: its images, a run on them, the folder of what else is made, and the channels."""

    images: Path
    run: Path
    out: Path
    channels: int
    suffix: str


KINDS = {
    "four channels, npy": (4, npy),
    "four channels, TIFF": (4, stack),
    "gray, 16-bit PNG": (1, deep("PNG", ".png")),
    "gray, 16-bit TIFF": (1, deep("TIFF", ".tif")),
}


@pytest.fixture(scope="module", params=KINDS)
def walked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Walked:
    channels, write = KINDS[request.param]
    root = tmp_path_factory.mktemp("walk")
    files = {}
    for i in range(N):
        suffix, content = write(pixels(i, channels))
        files[f"{'ab'[i % 2]}/{i}{suffix}"] = content
    five = np.repeat(pixels(0, channels), 5, axis=2)[..., :5] if channels == 4 else pixels(0, 3)
    odd_suffix, odd = write(five) if channels == 4 else (".png", file_of(Image.fromarray(five)))
    files[f"a/odd{odd_suffix}"] = odd
    fill(root / "images", files)
    run = root / "run"
    succeed("pretrain", root / "images", "--out", run, "--channels", channels, *TRAINED)
    (root / "out").mkdir()
    return Walked(root / "images", run, root / "out", channels, suffix)


def test_doctor_reads_them(walked: Walked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("stepclr.tools.doctor.examine.trials", lambda *_: TRIALS)
    succeed("doctor", walked.images, "--channels", walked.channels, "--json", *TRAINED)
    found = json.loads(capsys.readouterr().out)
    assert (found["images"]["count"], found["images"]["readable"]) == (N + 1, N)
    assert f"--channels {walked.channels}" in found["advice"]["command"]
    [unsupported] = [each for each in found["findings"] if each["name"] == "unsupported"]
    assert f"not {walked.channels}; --channels" in unsupported["examples"][0]


def test_the_run_has_them(walked: Walked) -> None:
    run = stepclr.Run(walked.run)
    assert (run.config.channels, run.config.images, run.config.skipped) == (walked.channels, N, 1)
    assert "not" in (walked.run / "skipped.csv").read_text()
    encoder = run.encoder()
    assert encoder.channels == walked.channels
    first = next(layer for layer in encoder.modules() if isinstance(layer, torch.nn.Conv2d))
    assert first.in_channels == walked.channels


def test_the_command_to_train_again_makes_the_same_run_but_for_what_it_mends(walked: Walked) -> None:
    context = open_context(stepclr.Run(walked.run), None)
    section = training(context)
    section["health"] = section["health"]._replace(name="rate too high")
    _, command = verdict(context, {"training": section, "usage": {}, "classifier": {}})["next"]
    assert "--recipe" not in command
    for decided in ("--policy", "--temperature", "--min-area", "--lr-scaling", "--warmup", "--precision"):
        assert decided not in command
    succeed(*shlex.split(command)[1:])
    config, again = context.config, stepclr.Run(Path(f"{walked.run}-2")).config
    assert again.lr == pytest.approx(config.lr / 10)
    assert replace(again, lr=config.lr) == config


def test_embeddings_are_those_of_the_bands_in_their_order(walked: Walked) -> None:
    """The mutant: the same bands in another order have other features."""
    encoder = stepclr.load_encoder(walked.run)
    succeed("embed", walked.run, walked.images, "--out", walked.out / "h.npz")
    with np.load(walked.out / "h.npz") as file:
        stored = dict(file)
    assert len(stored["paths"]) == N
    for i in (0, 3):
        place = stored["paths"].tolist().index(f"{'ab'[i % 2]}/{i}{walked.suffix}")
        image = pixels(i, walked.channels)
        with torch.no_grad():
            h = encoder(encoder.preprocess(image))[0]
            swapped = encoder(encoder.preprocess(np.ascontiguousarray(image[..., ::-1])))[0]
        np.testing.assert_allclose(h, stored["embeddings"][place], atol=1e-4)
        if walked.channels > 1:
            assert not np.allclose(swapped, h, atol=1e-3)


@pytest.mark.usefixtures("few_strengths")
def test_evaluate_finetune_and_predict(walked: Walked) -> None:
    both = ["--train", walked.images, "--holdout", "0.34"]
    succeed("evaluate", walked.run, *both, "--labels-per-class", "2", "--draws", "1", "--baselines", "pixels,random")
    rows = json.loads((walked.run / "evaluation.json").read_text())["rows"]
    assert {row["method"] for row in rows} >= {"pixels", "random", "simclr", "knn"}
    classifier = walked.out / "c.safetensors"
    succeed("finetune", walked.run, "--train", walked.images, "--epochs", "1", "--out", classifier)
    succeed("predict", classifier, walked.images, "--out", walked.out / "p.csv")
    assert len((walked.out / "p.csv").read_text().splitlines()) == N + 1


@pytest.mark.parametrize("command", ["evaluate", "finetune", "embed", "predict", "distill"])
def test_other_channels_than_the_encoder_takes_are_one_line(
    command: str, walked: Walked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RGB by name too, which is the default."""
    classifier = tmp_path / "classifier.safetensors"
    encoder = stepclr.load_encoder(walked.run)
    save_classifier(Classifier(encoder, ["a", "b"]), classifier)
    words: dict[str, list[Any]] = {
        "evaluate": [walked.run, "--train", walked.images, "--holdout", "0.34"],
        "finetune": [walked.run, "--train", walked.images, "--out", tmp_path / "c.safetensors"],
        "embed": [walked.run, walked.images, "--out", tmp_path / "h.npz"],
        "predict": [classifier, walked.images],
        "distill": [classifier, walked.images, "--out", tmp_path / "student"],
    }
    assert call(command, *words[command], "--channels", "3") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"was opened with --channels 3, but {encoder.name} takes images of {walked.channels} channel" in last


@pytest.mark.usefixtures("few_strengths")
def test_weights_for_rgb_are_a_baseline_where_gray_can_become_rgb(
    walked: Walked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rgb = untrained_run(tmp_path, size=SIZE)
    evaluate = ["evaluate", walked.run, "--train", walked.images, "--holdout", "0.34", "--draws", "1"]
    if walked.channels == 1:
        succeed(*evaluate, "--baselines", rgb, "--probe", "linear", "--channels", "1")
        rows = json.loads((walked.run / "evaluation.json").read_text())["rows"]
        assert [row["method"] for row in rows] == [str(rgb), "simclr"]
        return
    assert call(*evaluate, "--baselines", f"scratch,{rgb}") == 2
    assert f"{rgb} takes images of 3 channels, and {walked.run} of 4: leave it out" in capsys.readouterr().err


def test_search_finds_the_image_itself(walked: Walked) -> None:
    succeed("embed", walked.run, walked.images, "--out", walked.out / "index")
    query = walked.images / "b" / f"3{walked.suffix}"
    hits = stepclr.search(walked.out / "index", query, k=2)
    assert (hits[0].path, round(hits[0].similarity, 3)) == (f"b/3{walked.suffix}", 1)
    # The thumbnail: the first three channels, or the only one as gray.
    shown = thumbnail_pixels(hits[0].thumbnail).double()
    expected = pixels(3, walked.channels)[..., :3].astype(float)
    assert abs(shown.permute(1, 2, 0).numpy() - expected).mean() < 20
    succeed("search", walked.out / "index", query, "--out", walked.out / "hits.png")
    [odd] = walked.images.glob("a/odd.*")
    with pytest.raises(stepclr.StepclrError, match=rf"cannot be read: \d bands, not {walked.channels}$"):
        stepclr.search(walked.out / "index", odd)
    succeed("label", walked.out / "index", "--n", "4", "--classes", "x,y", "--out", walked.out / "label.html")
    assert "cannot be read" not in (walked.out / "label.html").read_text()
    for what in ("duplicates", "outliers"):
        succeed("find", what, walked.out / "index", "--out", walked.out / f"{what}.csv")


def test_shards_are_a_source_like_the_files(walked: Walked) -> None:
    succeed("pack", walked.images, "--out", walked.out / "shards", "--channels", walked.channels)
    with pytest.warns(UserWarning, match="1 images .* cannot be read"):
        of_files = stepclr.embed(walked.run, walked.images)
    of_shards = stepclr.embed(walked.run, walked.out / "shards")
    np.testing.assert_array_equal(of_shards, of_files[np.isfinite(of_files).all(1)])


def test_views_and_the_page_are_drawn(walked: Walked) -> None:
    channels = ["--channels", walked.channels, "--size", SIZE]
    succeed("views", walked.images, "--out", walked.out / "views.png", "--rows", "2", "--pairs", "1", *channels)
    succeed("report", walked.run)
    assert (walked.run / "report.html").stat().st_size > 10_000


def test_distill_takes_them(walked: Walked) -> None:
    classifier = walked.out / "c.safetensors"
    if not classifier.exists():
        succeed("finetune", walked.run, "--train", walked.images, "--epochs", "1", "--out", classifier)
    words = ["--student", "test_resnet", "--epochs", "1", "--batch-size", "8"]
    succeed("distill", classifier, walked.images, "--out", walked.out / "student", *words)
    assert stepclr.load_encoder(walked.out / "student").channels == walked.channels


@pytest.mark.parametrize("format", ["timm", "torch-export"])
def test_export_computes_the_same(format: str, walked: Walked) -> None:
    if format == "torch-export" and "npy" not in walked.suffix:
        pytest.skip("tracing takes seconds, and is tested with one set")
    done = stepclr.export(walked.run, walked.out / format, format)
    card = done.card.read_text()
    assert f"`[n, {walked.channels}, {SIZE}, {SIZE}]`" in card
    assert f"- Channels of an image: {walked.channels}, " in card
    done = stepclr.export(walked.run, walked.out / f"{format}-2", format, check=walked.images)
    assert done.parity.images == N


def test_scikit_learn_takes_arrays_of_either_order(walked: Walked) -> None:
    batch = np.stack([pixels(i, walked.channels)[:30] for i in range(6)])
    h = stepclr.SimCLRTransformer(walked.run).fit_transform(batch)
    first = stepclr.SimCLRTransformer(walked.run).fit_transform(np.moveaxis(batch, 3, 1).copy())
    np.testing.assert_array_equal(h, first)
    np.testing.assert_allclose(h, stepclr.embed(walked.run, batch), atol=1e-5)


def test_the_run_resumes_with_its_channels(walked: Walked, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"encoder": "test_resnet", "batch_size": 8, "size": SIZE, "head": "32-16"}
    stepclr.pretrain(walked.images, tmp_path, progress=False, channels=walked.channels, epochs=1, **options)
    resumed = stepclr.pretrain(walked.images, tmp_path, resume=True, epochs=2)
    assert "min_area 0.2, rendered by torch\n" in capsys.readouterr().err  # which takes longer than Numba does
    assert resumed.config.channels == resumed.encoder().channels == walked.channels


def test_doctor_says_where_a_band_is_lost_and_what_keeps_it(tmp_path: Path) -> None:
    infrared = tiff(pixels(0, 4), 2, (0,))
    found = image_findings(scan(stepclr.open_images(fill(tmp_path, {"a.tif": infrared}))), SIZE)
    [one] = [each for each in found if each.count and each.name in ("bands", "changed")]
    assert (one.name, one.do) == ("bands", "to keep a fourth, such as infrared: --channels 4")
