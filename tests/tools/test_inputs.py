"""Every kind of input in every command: each reads the same images, and says the same of the others."""

import csv
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_files import file_of, fill, heic, ramp, scene, sixteen_bit_color, tiff
from numpy.typing import NDArray
from PIL import Image
from small import untrained_run

import stepclr
from stepclr.cli import main
from stepclr.config import PretrainConfig
from stepclr.data.shards.packing import pack
from stepclr.evaluation.predict import classify
from stepclr.tools.doctor.trial import Trial
from stepclr.tools.search.table import write_embeddings

SIZE = 24
TRIALS = [Trial(8, 8, 8, 3, 0.1, 0.5, 5.0, 10**9), Trial(16, 16, 48, 9, 0.2, 0.5, 5.0, 2 * 10**9)]
PRETRAIN: dict[str, Any] = {"encoder": "test_resnet", "epochs": 1, "batch_size": 8, "size": SIZE, "head": "32-16"}
WITH: dict[str, Any] = {"value_range": (0, 4095), "max_pixels": 10_000}
OPTIONS = ["--value-range", "0,4095", "--max-pixels", "10000"]


@dataclass(frozen=True)
class Input:
    """A file: its bytes (None: a link to nothing), what becomes of it, why, and what becomes of it WITH.

    `bands`: how many it has; with another number of channels it is skipped for that. 0: not even that is known.
    """

    content: bytes | None
    outcome: str
    reason: str = ""
    outcome_with: str = ""
    bands: int = 0

    def becomes(self, options: dict[str, Any]) -> tuple[str, str]:
        """(read, changed, skipped or ignored, why) with these options."""
        channels = options.get("channels")
        if channels is None or not self.bands:
            given = self.outcome_with if options == WITH else ""
            return given or self.outcome, self.reason
        if self.bands != channels:
            return "skipped", f"{self.bands} band"
        # What is known of its numbers is the same; that bands are lost, or laid over black, is not.
        return ("skipped", NUMBERS) if self.reason == NUMBERS else ("read", "")


def drawing() -> bytes:
    pixels = np.full((40, 40, 2), 255, np.uint8)
    pixels[..., 1] = np.eye(40) * 255
    return file_of(Image.fromarray(pixels))


def deep(dtype: Any, largest: int = 4095) -> NDArray[Any]:
    return np.tile(ramp(largest, dtype), (60, 1))[:, ::4]


NUMBERS = "needs --value-range LOW,HIGH (in Python value_range), the numbers of black and white: "
PLAIN = file_of(Image.fromarray(scene()))
FOUR_BANDS = np.dstack([scene(45), scene(45)[..., :1]])
INPUTS = {
    "cat/iphone.heic": Input(heic(), "read", bands=3),
    "cat/no suffix": Input(file_of(Image.fromarray(scene(50))), "read", bands=3),
    "cat/broken.jpg": Input(b"no image", "skipped", "not an image in a known format"),
    "cat/gone.png": Input(None, "skipped", "a link to a file that does not exist"),
    "cat/raw.CR2": Input(b"II*\0", "ignored", ".cr2 (raw data of cameras: convert them to JPEG or TIFF)"),
    "cat/array.npy": Input(
        b"\x93NUMPY", "ignored", ".npy (arrays beside other images: give them as a source of their own)"
    ),
    "cat/array.png": Input(b"\x93NUMPY", "skipped", "not an image in a known format but a NumPy array"),
    "cat/@eaDir/": Input(PLAIN, "ignored", "@eaDir/"),
    "lost+found/": Input(PLAIN, "ignored", "lost+found/"),
    "cat/notes.txt": Input(b"text", "ignored", ".txt"),
    "cat/five.tif": Input(
        tiff(np.zeros((9, 9, 5), np.uint8), 1), "skipped", "a TIFF of 5 bands of 8-bit whole", bands=5
    ),
    "cat/floats.tif": Input(
        tiff(np.zeros((9, 9, 3), np.float32), 2), "skipped", "a TIFF of 3 bands of 32-bit float", bands=3
    ),
    "cat/infrared.tif": Input(tiff(FOUR_BANDS, 2, (0,)), "changed", "only red, green and blue of its bands", bands=4),
    "cat/white.png": Input(drawing(), "changed", "a light drawing on transparency, laid over black", bands=2),
    "cat/float.tif": Input(file_of(Image.fromarray(deep(np.float32)), "TIFF"), "skipped", NUMBERS, "read", bands=1),
    "cat/int32.tif": Input(file_of(Image.fromarray(deep(np.int32)), "TIFF"), "skipped", NUMBERS, "read", bands=1),
    "cat/12 bits.png": Input(file_of(Image.fromarray(deep(np.uint16))), "skipped", NUMBERS, "read", bands=1),
    "cat/12 bits.tif": Input(sixteen_bit_color(deep(np.uint16, 4000), "TIFF"), "skipped", NUMBERS, "read", bands=3),
    "cat/gray.png": Input(file_of(Image.fromarray(scene(33)[..., 0])), "read", bands=1),
    "cat/16 bits.tif": Input(file_of(Image.fromarray(deep(np.uint16, 60_000)), "TIFF"), "read", bands=1),
    "cat/see-through.png": Input(file_of(Image.fromarray(FOUR_BANDS)), "read", bands=4),
    "cat/large.jpg": Input(
        file_of(Image.fromarray(scene(90, 110)), "JPEG"),
        "skipped",
        "110 x 90: above the limit of 9,000 pixels; --max-pixels 9900",
        "read",
    ),
}


def plain(root: Path, shift: int, channels: int = 3) -> Path:
    """Six images of each of two classes."""
    files = {}
    for i in range(6):
        for j, name in enumerate(("cat", "dog")):
            pixels = np.roll(scene(30 + i, 60 + 9 * j), shift)
            bands = [pixels[..., band % 3] for band in range(channels)]
            files[f"{name}/{i}.png"] = file_of(Image.fromarray(np.dstack(bands).squeeze()))
    return fill(root, files)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain images, to learn from."""
    return plain(tmp_path_factory.mktemp("labeled"), 100)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_of(tmp_path_factory.mktemp("inputs"))


def source_of(folder: Path, channels: int = 3) -> Path:
    """Plain images, and every one of INPUTS."""
    root = plain(folder, 0, channels)
    for name, one in INPUTS.items():
        if one.content is None:
            (root / name).symlink_to(root / "nowhere")
        else:
            fill(root, {f"{name}a.png" if name.endswith("/") else name: one.content})
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that knows no range, in the folder of a run."""
    return untrained_run(tmp_path_factory.mktemp("run"), size=SIZE)


Outcome = tuple[int, dict[str, str]]  # how many images were read, and the reason for each of the others


def listed(path: Path) -> dict[str, str]:
    with path.open(newline="") as file:
        return {row["path"]: row.get("reason", "") for row in csv.DictReader(file)}


def of(images: stepclr.ImageSet, read: int, out: Path) -> Outcome:
    images.ledger.write(out / "ledger.csv")
    return read, listed(out / "ledger.csv")


def by_doctor(images: stepclr.ImageSet, _: Path, out: Path) -> Outcome:
    diagnosis = stepclr.doctor(images, PretrainConfig(**PRETRAIN))
    assert not any("delet" in finding.do for finding in diagnosis.findings)
    return of(images, diagnosis.images["readable"], out)


def by_pretrain(images: stepclr.ImageSet, _: Path, out: Path) -> Outcome:
    trained = stepclr.pretrain(images, out / "run", progress=False, **PRETRAIN)
    config, encoder = trained.config, trained.encoder()
    assert config.value_range == images.value_range == encoder.value_range
    assert config.channels == images.channels == encoder.channels
    return config.images, listed(out / "run" / "skipped.csv")


def by_evaluate(images: stepclr.ImageSet, run: Path, out: Path) -> Outcome:
    scores = stepclr.evaluate(run, plain(out / "train", 100, images.channels), images, probe="knn", baselines=[])
    return of(images, scores.protocol["test"]["images"], out)


def by_finetune(images: stepclr.ImageSet, run: Path, out: Path) -> Outcome:
    scores = stepclr.finetune(run, images, out=out / "c.safetensors", epochs=1)
    return of(images, scores.protocol["train"]["images"], out)


def by_predict(images: stepclr.ImageSet, run: Path, out: Path) -> Outcome:
    classifier = out / "c.safetensors"
    stepclr.finetune(run, plain(out / "train", 100, images.channels), out=classifier, epochs=1)
    classified = classify(classifier, images)
    classified.write(out / "p.csv")
    return len(classified.images), listed(out / "p.skipped.csv")


def by_embed(images: stepclr.ImageSet, run: Path, out: Path) -> Outcome:
    written = write_embeddings(run, images, out / "h.npz")
    return written.rows, listed(out / "h.skipped.csv")


def by_pack(images: stepclr.ImageSet, _: Path, out: Path) -> Outcome:
    packed = pack(images, out / "shards")
    again = stepclr.open_images(out / "shards", max_pixels=WITH["max_pixels"])
    assert len(again.read_readable(range(len(again)))[1]) == packed.images  # the shards keep the range
    pack(images, out / "smaller", short_side=20)
    assert listed(out / "smaller" / "skipped.csv") == listed(out / "shards" / "skipped.csv")
    return packed.images, listed(out / "shards" / "skipped.csv")


def by_sklearn(images: stepclr.ImageSet, run: Path, out: Path) -> Outcome:
    h = stepclr.SimCLRTransformer(run).fit(images).transform(images)
    return of(images, int(np.isfinite(h).all(axis=1).sum()), out)


COMMANDS = {
    "doctor": by_doctor,
    "pretrain": by_pretrain,
    "evaluate": by_evaluate,
    "finetune": by_finetune,
    "predict": by_predict,
    "embed": by_embed,
    "pack": by_pack,
    "sklearn": by_sklearn,
}


OPTION_SETS = {"as declared": {}, "with a range": WITH, "gray": {"channels": 1}, "four": {"channels": 4}}


@pytest.fixture(scope="module", params=list(OPTION_SETS.values()), ids=list(OPTION_SETS))
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    given: dict[str, Any] = request.param
    return given


@pytest.fixture(scope="module", params=COMMANDS)
def outcome(
    request: pytest.FixtureRequest,
    options: dict[str, Any],
    source: Path,
    run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Outcome:
    """What one command, run once, makes of all inputs."""
    if channels := options.get("channels"):
        source = source_of(tmp_path_factory.mktemp("inputs"), channels)
        run = untrained_run(tmp_path_factory.mktemp("run"), size=SIZE, channels=channels)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # Findings about images need no trials, which take seconds.
        patch.setattr("stepclr.tools.doctor.examine.trials", lambda *_: TRIALS)
        warnings.filterwarnings("ignore", message=".*their rows are NaN")
        images = stepclr.open_images(source, **({"max_pixels": 9_000} | options))
        return COMMANDS[request.param](images, run, tmp_path_factory.mktemp("out"))


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_is_the_same_to_every_command(name: str, outcome: Outcome, options: dict[str, Any]) -> None:
    reasons = outcome[1]
    expected, reason = INPUTS[name].becomes(options)
    if expected == "read":
        assert name not in reasons
    elif expected == "skipped":
        assert reason in reasons[name]
    else:
        assert reasons[name] == f"{expected}: {reason}"


def test_every_command_reads_as_many_images(outcome: Outcome, options: dict[str, Any]) -> None:
    read = [one for one in INPUTS.values() if one.becomes(options)[0] in ("read", "changed")]
    assert outcome[0] == 12 + len(read)


def words(command: str, source: Path, labeled: Path, run: Path, out: Path) -> list[Any]:
    """A command on `source`."""
    trained = [f"--{name.replace('_', '-')}={value}" for name, value in PRETRAIN.items()]
    return {
        "doctor": ["doctor", source, *trained],
        "pretrain": ["pretrain", source, "--out", out / "run", *trained],
        "evaluate": ["evaluate", run, "--train", labeled, "--test", source, "--probe", "knn", "--baselines", "none"],
        "finetune": ["finetune", run, "--train", source, "--epochs", "1", "--out", out / "c.safetensors"],
        "predict": ["predict", out / "c.safetensors", source, "--out", out / "p.csv"],
        "embed": ["embed", run, source, "--out", out / "h.npz"],
        "pack": ["pack", source, "--out", out / "shards"],
    }[command]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "sklearn"])
def test_every_command_says_on_the_screen_what_is_left_out(
    command: str,
    source: Path,
    labeled: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With counts by kind; the options that the reasons name are those of every command."""
    monkeypatch.setattr("stepclr.tools.doctor.examine.trials", lambda *_: TRIALS)
    if command == "predict":
        stepclr.finetune(run, labeled, out=tmp_path / "c.safetensors", epochs=1)
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in [*words(command, source, labeled, run, tmp_path), *OPTIONS]])
    shown = "".join(capsys.readouterr())
    assert not stop.value.code, shown
    counts = Counter(one.becomes(WITH)[0] for one in INPUTS.values())
    assert f"skipped {counts['skipped']} images that cannot be read, for example " in shown
    assert f"ignored {counts['ignored']} files and folders: " in shown
    assert "1 .cr2 (raw data of cameras: convert them to JPEG or TIFF)" in shown
    assert f"changed {counts['changed']} images: " in shown


def test_search_predict_and_the_index_keep_the_range_of_the_encoder(source: Path, tmp_path: Path) -> None:
    """Trained with a range, an encoder reads 12 bits wherever it is used, without being told again."""
    run = stepclr.pretrain(source, tmp_path / "run", progress=False, **PRETRAIN, **WITH)
    query = source / "cat" / "12 bits.png"
    write_embeddings(run, source, tmp_path / "h.npz")
    hits = stepclr.search(tmp_path / "h.npz", query, k=1, run=run)
    assert (hits[0].path, round(hits[0].similarity, 4)) == ("cat/12 bits.png", 1)
    h = run.encoder()(run.encoder().preprocess(Image.open(query)))
    stored = np.load(tmp_path / "h.npz")
    np.testing.assert_allclose(h.detach()[0], stored["embeddings"][stored["paths"] == "cat/12 bits.png"][0], atol=1e-3)
    stepclr.finetune(run, source, out=tmp_path / "c.safetensors", epochs=1)
    classify(tmp_path / "c.safetensors", source).write(tmp_path / "p.csv")
    assert "cat/12 bits.png" in listed(tmp_path / "p.csv")
    exported = stepclr.export(run, tmp_path / "e.safetensors", "safetensors", source)
    assert "0 became 0 and 4095 became 255" in exported.card.read_text()
