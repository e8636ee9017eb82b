"""An exported file computes what the original computes, by the code on its card, and the card is true."""

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from small import photos_in
from torch import Tensor

import stepclr
from stepclr.cli import main
from stepclr.model.files import load_classifier, save_classifier, save_encoder
from stepclr.tools.export import formats
from stepclr.tools.export.convert import Export, ExportMismatchError
from stepclr.tools.export.formats import FORMATS, Network, encoder_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 72  # px; above 64, where a central crop is taken out of 82
Exported = Callable[[stepclr.Run, str], Export]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> stepclr.Run:
    """A run on 28 px, scored and fine-tuned."""
    out = tmp_path_factory.mktemp("runs") / "small"
    run = stepclr.pretrain(
        "sample:unlabeled", out, encoder="test_resnet", epochs=2, batch_size=16, limit=48, progress=False
    )
    few = stepclr.open_images("sample:test", limit=60)
    stepclr.evaluate(run, stepclr.open_images("sample:train", limit=200), few, labels_per_class=2, draws=2)
    stepclr.finetune(run, stepclr.open_images("sample:train", limit=60), few, epochs=1)
    return run


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> stepclr.Run:
    """A ResNet-18 with ImageNet's stem and mean, after one step."""
    out = tmp_path_factory.mktemp("runs") / "large"
    run = stepclr.pretrain(
        "sample:unlabeled", out, encoder="resnet18", size=SIDE, epochs=1, batch_size=16, limit=16, progress=False
    )
    encoder = run.encoder()
    encoder.mean.copy_(torch.tensor(MEAN).view(3, 1, 1))
    encoder.std.copy_(torch.tensor(STD).view(3, 1, 1))
    save_encoder(encoder, out / "encoder.safetensors")
    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A run's export, made once for all tests that only read it."""

    @cache
    def export_once(run: stepclr.Run, format: str) -> Export:
        return stepclr.export(run, tmp_path_factory.mktemp(format), format, "sample:train")

    return export_once


def saved(folder: Path, name: str, stem: str = "auto", size: int = 28, **settings: Any) -> Path:
    """An encoder file of its own; the BatchNorm statistics are those of images."""
    encoder = stepclr.build_encoder(name, stem, size=size, **settings)
    with torch.no_grad():
        encoder(encoder.preprocess(stepclr.open_images("sample:test", limit=32).read(range(32))))
    save_encoder(encoder, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def blocks(card: Path) -> tuple[str, str]:
    """The two pieces of Python on a card: from images to numbers, and from photos to images."""
    load, pixels = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    return load, pixels


def by_card(done: Export, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """What the code on the card computes, run in the folder of the file."""
    monkeypatch.chdir(done.path.parent)
    scope: dict[str, Any] = {"images": images}
    exec(blocks(done.card)[0], scope)
    return np.asarray(scope.get("h", scope.get("logits")))


def first(n: int) -> tuple[stepclr.ImageSet, Tensor]:
    images = stepclr.open_images("sample:train", limit=n)
    pixels = images.read(range(n))
    assert isinstance(pixels, Tensor)
    return images, pixels


def off(theirs: np.ndarray, ours: np.ndarray) -> float:
    assert theirs.shape == ours.shape
    assert np.abs(ours).max() > 0
    return float(np.abs(theirs - ours).max() / np.abs(ours).max())


@pytest.mark.parametrize("format", ["safetensors", "timm", "onnx", "torch-export"])
def test_at_28_px_it_is_embed(
    format: str, run: stepclr.Run, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, pixels = first(20)
    done = exported(run, format)
    assert done.parity.difference < 1e-4
    assert done.parity.images == 64
    for n in (1, 3, 7, 20):
        few = images.take(range(n))
        assert off(by_card(done, pixels[:n], monkeypatch), stepclr.embed(run, few)) < 1e-4


@pytest.mark.parametrize("format", ["safetensors", "torchvision", "timm", "onnx", "torch-export"])
def test_where_a_crop_is_taken_it_is_embed(
    format: str, large: stepclr.Run, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of 82 px is not resized by embed, which crops the central 72."""
    sample = stepclr.open_images("sample:train", limit=5).read(range(5))
    whole = np.stack([np.asarray(Image.fromarray(p.permute(1, 2, 0).numpy()).resize((82, 82))) for p in sample])
    images = torch.from_numpy(whole[:, 5:77, 5:77]).permute(0, 3, 1, 2)
    assert off(by_card(exported(large, format), images, monkeypatch), stepclr.embed(large, whole)) < 1e-4


def test_onnx_says_what_it_takes(large: stepclr.Run, exported: Exported) -> None:
    session = onnxruntime.InferenceSession(exported(large, "onnx").path)
    (takes,), (gives,) = session.get_inputs(), session.get_outputs()
    assert (takes.name, takes.type, takes.shape[1:]) == ("images", "tensor(uint8)", [3, SIDE, SIDE])
    assert (gives.name, gives.type, gives.shape[1:]) == ("h", "tensor(float)", [512])
    assert isinstance(takes.shape[0], str)


@pytest.mark.parametrize("size", [(40, 31), (200, 90), (82, 82), (33, 500)])
def test_the_cards_pixels_are_the_encoders(size: tuple[int, int], large: stepclr.Run, exported: Exported) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    scope: dict[str, Any] = {"photos": [image]}
    exec(blocks(exported(large, "torch-export").card)[1], scope)
    ours = large.encoder().preprocess(image)
    assert (scope["images"] / 255 - ours).abs().max() <= 0.5 / 255 + 1e-5


def test_the_cards_pixels_are_those_of_embed_whatever_the_mode(
    large: stepclr.Run, exported: Exported, tmp_path: Path
) -> None:
    """Transparency, palettes and gray are read as a run reads them; what the code cannot read so, it refuses."""
    code, noise = blocks(exported(large, "torch-export").card)[1], np.random.default_rng(0)
    levels = noise.integers(0, 256, (90, 120, 4), dtype=np.uint8)
    for image in (
        Image.fromarray(levels),
        Image.fromarray(levels[..., :3]).convert("P"),
        Image.fromarray(levels[..., 0]),
        Image.fromarray(levels[..., :2].copy()),
    ):
        scope: dict[str, Any] = {"photos": [image]}
        exec(code, scope)
        image.save(tmp_path / "image.png")
        [read] = stepclr.open_images(tmp_path).read([0])
        ours = large.encoder().preprocess(read)
        assert (scope["images"] / 255 - ours).abs().max() <= 0.5 / 255 + 1e-5, image.mode
    deep = Image.fromarray(noise.integers(0, 4096, (90, 120)).astype(np.uint16))
    with pytest.raises(ValueError, match="more than 8 bits: convert it first"):
        exec(code, {"photos": [deep]})


def test_the_card_says_what_images_of_more_bits_become(run: stepclr.Run, tmp_path: Path) -> None:
    """Wherever the encoder's file is: it knows by itself."""
    encoder = run.encoder()
    encoder.value_range = (0.0, 4095.0)
    stepclr.save_encoder(encoder, tmp_path / "alone.safetensors")
    text = stepclr.export(tmp_path / "alone.safetensors", tmp_path / "out", "torch-export").card.read_text()
    assert "0 becomes 0 and 4095 becomes 255" in text


def test_a_card_does_not_tell_of_the_run_that_a_file_happens_to_lie_beside(run: stepclr.Run, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run.folder, tmp_path / "other"))
    stepclr.save_encoder(stepclr.build_encoder("test_resnet", size=32), other / "strange.safetensors")
    text = stepclr.export(other / "strange.safetensors", tmp_path / "out", "timm").card.read_text()
    assert "Pretrained on" not in text
    shutil.copy(other / "encoder.safetensors", other / "same.safetensors")
    assert "Pretrained on" in stepclr.export(other / "same.safetensors", tmp_path / "two", "timm").card.read_text()


def test_what_search_and_embed_read_is_replaced_by_no_other_format(run: stepclr.Run, tmp_path: Path) -> None:
    index, out = tmp_path / "index", tmp_path / "out"
    index.mkdir()
    for name in ("encoder.safetensors", "index.json"):
        (index / name).write_bytes((run.folder / "encoder.safetensors").read_bytes())
    with pytest.raises(stepclr.StepclrError, match=r"belongs to the index .*index; choose another"):
        stepclr.export(run, index, "timm")
    stepclr.export(run, out, "safetensors")
    own = (out / "encoder.safetensors").read_bytes()
    with pytest.raises(stepclr.StepclrError, match="is a file of stepclr, which no other format replaces"):
        stepclr.export(run, out, "timm")
    assert (out / "encoder.safetensors").read_bytes() == own
    stepclr.export(run, out, "safetensors")  # again
    stepclr.export(run, tmp_path / "theirs", "timm")
    stepclr.export(run, tmp_path / "theirs", "timm")


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("onnx", "test_resnet"),
        ("torch-export", "test_resnet"),
        ("timm", "test_resnet"),
        ("torchvision", "resnet18"),
        ("safetensors", "test_resnet"),
    ],
)
def test_a_unit_norm_is_exported_too(format: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, name, "imagenet", normalize_h=True)
    images, pixels = first(3)
    found = by_card(stepclr.export(path, tmp_path / "out", format, first(8)[0]), pixels, monkeypatch)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert off(found, stepclr.embed(path, images)) < 1e-4


@pytest.mark.parametrize("format", ["onnx", "torch-export", "timm"])
@pytest.mark.parametrize("name", ["test_vit_relpos", "test_convnext"])
def test_networks_that_are_no_resnets(format: str, name: str, tmp_path: Path) -> None:
    assert stepclr.export(saved(tmp_path, name, size=64), tmp_path / "out", format).parity.difference < 1e-4


@pytest.mark.parametrize("stem", ["small", "small-stride2", "imagenet"])
def test_timm_with_every_stem(stem: str, tmp_path: Path) -> None:
    assert stepclr.export(saved(tmp_path, "test_resnet", stem), tmp_path / "out", "timm").parity.difference < 1e-4


@pytest.mark.parametrize("format", ["safetensors", "onnx", "torch-export", "timm"])
def test_a_classifier(format: str, run: stepclr.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, pixels = first(9)
    source = run.folder / "classifier.safetensors"
    done = stepclr.export(source, tmp_path, format)
    assert done.path.stem == "classifier"
    logits = torch.from_numpy(by_card(done, pixels, monkeypatch))
    predictions = stepclr.predict(source, images)
    np.testing.assert_allclose(logits.softmax(1).numpy(), predictions.probabilities, atol=1e-5)
    card = done.card.read_text()
    assert "writes the softmax" in card
    assert all(name in card for name in predictions.classes)
    assert "| finetuned | all |" in card


def test_an_encoder_that_collapsed_to_0_is_exported_as_it_is(tmp_path: Path) -> None:
    encoder = stepclr.build_encoder("test_resnet", size=28)
    for weight in encoder.parameters():
        weight.data.zero_()
    save_encoder(encoder, tmp_path / "zero.safetensors")
    done = stepclr.export(tmp_path / "zero.safetensors", tmp_path / "out", "safetensors", first(2)[0])
    assert done.parity.difference == 0


def test_a_classifier_in_torchvision(tmp_path: Path) -> None:
    encoder = stepclr.load_encoder(saved(tmp_path, "resnet18", "imagenet"))
    save_classifier(stepclr.Classifier(encoder, ["a", "b", "c"]), tmp_path / "c.safetensors")
    done = stepclr.export(tmp_path / "c.safetensors", tmp_path / "out.safetensors", "torchvision", first(8)[0])
    assert "resnet18(num_classes=3)" in done.card.read_text()


def altered(encoder: stepclr.Encoder, how: str) -> None:
    if how == "mean":
        encoder.mean += 0.01
    elif how == "std":
        encoder.std *= 1.01
    elif how == "none":
        encoder.mean.zero_()
        encoder.std.fill_(1)
    elif how == "norm":
        encoder.normalize_h = not encoder.normalize_h
    elif how == "statistics":
        encoder.get_buffer("body.bn1.running_mean").add_(0.01)


@pytest.mark.parametrize(
    ("format", "how"),
    [
        *(("safetensors", how) for how in ("mean", "std", "none", "norm", "statistics")),
        ("torch-export", "statistics"),
        ("onnx", "mean"),
    ],
)
def test_a_wrong_file_is_caught_and_not_kept(
    format: str, how: str, large: stepclr.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FORMATS[format]

    def write(network: Network, path: Path) -> None:
        altered(encoder_of(network), how)
        right.write(network, path)

    monkeypatch.setitem(FORMATS, format, dataclasses.replace(right, write=write))
    with pytest.raises(ExportMismatchError, match="was discarded"):
        stepclr.export(large, tmp_path, format, first(8)[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["torchvision", "timm"])
@pytest.mark.parametrize(
    ("line", "mutant"),
    [
        ("model.eval()", "model.train()"),
        (formats.SCALED, "x = images.float() / 255"),
        (formats.SCALED, "x = images.float() - mean / std"),
        ("0.485, 0.456, 0.406", "0.406, 0.456, 0.485"),
    ],
)
def test_a_wrong_card_is_caught(
    format: str, line: str, mutant: str, large: stepclr.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FORMATS[format]
    assert line in right.code(large.encoder())

    def code(network: Network) -> str:
        return right.code(network).replace(line, mutant)

    monkeypatch.setitem(FORMATS, format, dataclasses.replace(right, code=code))
    with pytest.raises(ExportMismatchError):
        stepclr.export(large, tmp_path, format, first(8)[0])


def test_a_network_traced_in_training_mode_is_caught(
    large: stepclr.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right: Callable[..., Any] = formats._traced

    def in_training(network: Network) -> Any:
        module, *rest = right(network)
        return module.train(), *rest

    monkeypatch.setattr(formats, "_traced", in_training)
    with pytest.raises(ExportMismatchError):
        stepclr.export(large, tmp_path, "torch-export", first(8)[0])


def test_the_card_tells_of_the_run(run: stepclr.Run, exported: Exported) -> None:
    card = exported(run, "onnx").card
    assert card.name == "encoder.onnx.md"
    text, scores = card.read_text(), json.loads((run.folder / "evaluation.json").read_text())
    for row in scores["rows"]:
        std = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
        assert f"| {row['method']} | {row['labels_per_class']} | {100 * row['mean']:.1f}{std} % | " in text
    assert "- test: sample:test, 60 images" in text
    assert "- Pretrained on: sample:unlabeled\n- Images: 48, labeled 0" in text
    assert "| temperature | 0.2 |" in text
    assert "| None |" not in text  # what was not set has no line
    assert "on 64 images of sample:train" in text
    assert f"onnxruntime {onnxruntime.__version__}" in text
    assert "Your weights are yours" in text


def test_the_card_has_no_scores_of_other_weights(run: stepclr.Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run.folder, other)
    encoder = run.encoder()
    encoder.get_buffer("body.bn1.running_mean").add_(0.01)
    save_encoder(encoder, other / "encoder.safetensors")
    text = stepclr.export(other, tmp_path / "out", "safetensors").card.read_text()
    assert "None: the scores in evaluation.json belong to other weights." in text
    assert "±" not in text


def test_the_card_of_a_classifier_has_no_scores_of_another(run: stepclr.Run, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run.folder, tmp_path / "other")) / "classifier.safetensors"
    classifier = load_classifier(other)
    classifier.linear.bias.data.add_(0.01)
    save_classifier(classifier, other)
    text = stepclr.export(other, tmp_path / "out", "safetensors").card.read_text()
    assert "None: the scores in finetune.json belong to other weights." in text


def test_weights_without_a_run_say_so(run: stepclr.Run, tmp_path: Path) -> None:
    shutil.copy(run.folder / "encoder.safetensors", tmp_path / "alone.safetensors")
    text = stepclr.export(tmp_path / "alone.safetensors", tmp_path / "out", "safetensors").card.read_text()
    assert text.count("Unknown: the weights were not in the folder of their run.") == 2
    assert "None: there is no evaluation.json beside these weights." in text


def test_names_are_no_markdown(run: stepclr.Run, tmp_path: Path) -> None:
    photos = photos_in(tmp_path / "*a* [b](c) `d`\n# e", 4)
    done = stepclr.export(run, tmp_path / "p_h_o.safetensors", "safetensors", str(photos))
    assert r"\*a\* \[b\]\(c\) \`d\`\\n\# e" in done.card.read_text()
    assert "# p\\_h\\_o.safetensors\n" in done.card.read_text()
    assert done.parity.images == 4


def test_the_encoder_of_another_run_is_not_overwritten(run: stepclr.Run, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run.folder, tmp_path / "other"))
    before = (other / "encoder.safetensors").read_bytes()
    with pytest.raises(stepclr.StepclrError, match=r"encoder\.safetensors belongs to the run .*other; choose another"):
        stepclr.export(run.folder, other, "timm")
    assert (other / "encoder.safetensors").read_bytes() == before


def test_a_damaged_evaluation_is_named_and_nothing_written(run: stepclr.Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run.folder, other)
    (other / "evaluation.json").write_text('{"rows": 3, "protocol": {}}')
    with pytest.raises(stepclr.StepclrError, match=r"evaluation\.json is corrupt"):
        stepclr.export(other, tmp_path / "out", "safetensors")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("name", "stem", "format", "says"),
    [
        ("test_resnet", "small", "torchvision", "torchvision has no ResNet test_resnet: use format=timm"),
        ("resnet18", "small", "torchvision", "torchvision's ResNets have no stem small: use format=timm"),
        ("test_vit", "auto", "torchvision", "torchvision has no ResNet test_vit: use format=timm"),
        ("resnet18x2", "small", "torchvision", "torchvision has no ResNet resnet18x2: use format=onnx"),
        ("resnet18x2", "small", "timm", "timm has no resnet18x2: use format=onnx or format=torch-export"),
    ],
)
def test_what_a_format_cannot_hold(name: str, stem: str, format: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(stepclr.StepclrError, match=f"^{re.escape(says)}$"):
        stepclr.export(saved(tmp_path, name, stem, size=32), tmp_path / "out", format)


def test_a_classifier_on_h_of_unit_norm_is_no_plain_network(tmp_path: Path) -> None:
    encoder = stepclr.load_encoder(saved(tmp_path, "test_resnet", normalize_h=True))
    save_classifier(stepclr.Classifier(encoder, ["a", "b"]), tmp_path / "c.safetensors")
    with pytest.raises(
        stepclr.StepclrError, match="between test_resnet and its classes there is more than one linear layer"
    ):
        stepclr.export(tmp_path / "c.safetensors", tmp_path / "out", "timm")
    assert stepclr.export(tmp_path / "c.safetensors", tmp_path / "out", "onnx").parity.difference < 1e-4


def test_a_file_too_large_for_onnx(run: stepclr.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_ONNX_BYTES", 1000)
    with pytest.raises(stepclr.StepclrError, match="do not fit into one ONNX file: use format=torch-export"):
        stepclr.export(run, tmp_path, "onnx")


def test_an_exporter_that_fails_says_so_in_a_line(
    run: stepclr.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no such operation\nand much more")

    monkeypatch.setattr(torch.onnx, "export", fails)
    says = "^test_resnet cannot be written as onnx, use format=safetensors: no such operation$"
    with pytest.raises(stepclr.StepclrError, match=says):
        stepclr.export(run, tmp_path, "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    package: str, run: stepclr.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(stepclr.StepclrError, match=rf"needs the package {package}: pip install 'stepclr\[export\]'"):
        stepclr.export(run, tmp_path, "onnx")


def test_the_command_line(
    run: stepclr.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(*words: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as stop:
            main(["export", *words])
        said = capsys.readouterr()
        return stop.value.code, said.out + said.err

    out = str(tmp_path / "photos.safetensors")
    code, said = command(str(run.folder), "--format", "timm", "--out", out)
    assert not code
    same = r"photos\.safetensors: the same as the original; largest difference \d\.\de[+-]0\d of the largest"
    assert re.search(same, said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos.safetensors", "photos.safetensors.md"]
    before = Path(out).read_bytes()

    assert command(str(run.folder), "--format", "onnx", "--out", out) == (
        2,
        f"stepclr: out must end in .onnx, not {out!r}\n",
    )
    own = run.folder / "encoder.safetensors"
    code, said = command(str(run.folder), "--format", "timm", "--out", str(own))
    assert code == 2
    assert "is the same file as the encoder" in said
    assert command(str(tmp_path / "no"), "--format", "timm", "--out", out)[0] == 2

    monkeypatch.setattr("stepclr.tools.export.convert.MAX_DIFFERENCE", -1.0)
    code, said = command(str(run.folder), "--format", "timm", "--out", out)
    assert code == 1
    assert len(said.splitlines()) == 1
    assert Path(out).read_bytes() == before
