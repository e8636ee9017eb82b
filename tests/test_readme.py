"""Every command of README and docs runs as written, with fewer epochs and images, on images made here."""

import hashlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image
from touches import Forks

import stepclr
from stepclr.cli import main
from stepclr.evaluation import finetune
from stepclr.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("few_strengths", "small_sample")
ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCS = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = list(
    dict.fromkeys(  # each once: the pages share some
        line.split("  #")[0].strip()
        for text in (README, *DOCS)
        for line in text.splitlines()
        if line.startswith("    stepclr ")
    )
)
RANKS = [
    line.split("  #")[0].strip()
    for text in (README, *DOCS)
    for line in text.splitlines()
    if line.startswith("    torchrun --nproc-per-node ")  # on one machine; test_torchrun.py has two machines
]
SHORT = {
    "pretrain": ["--epochs", "1", "--limit", "64", "--encoder", "test_resnet"],
    "steps": ["--encoder", "test_resnet"],
    "doctor": ["--encoder", "test_resnet", "--limit", "48", "--batch-size", "16"],
    "evaluate": ["--draws", "1"],
    "finetune": ["--epochs", "1"],
    "distill": ["--epochs", "1", "--limit", "64"],
}
ON_THE_SHELF = ("timm:tf_efficientnet_lite0.in1k", "timm:test_resnet.r160_in1k")  # the small one is there
FEWER_LABELS = ("--labels-per-class 1,10,all", "--labels-per-class 1,3")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, forked: Forks, off_the_shelf: str) -> Iterator[Path]:
    """A folder with photos/, labels.csv, labeled/{train,test}/, and STL-10 in its official layout: the sample's images.

    tiles/ has some of them with a fourth channel.

    Processes that a command starts are forks: that they are new is tested elsewhere.
    """
    assert off_the_shelf == ON_THE_SHELF[1]
    home = tmp_path_factory.mktemp("home")
    sample = stepclr.open_images("sample:test", limit=200)
    images = np.stack([np.asarray(Image.fromarray(p.permute(1, 2, 0).numpy()).resize((96, 96))) for p in _each(sample)])
    place = [int((sample.labels[:i] == label).sum()) for i, label in enumerate(sample.labels)]  # in its class: 0 to 19
    for i, image in enumerate(images):
        for folder in ("photos", f"labeled/{'train' if place[i] < 14 else 'test'}/{sample.labels[i]}"):
            (home / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(home / folder / f"{i:03}.png")
    (home / "tiles").mkdir()
    for i, image in enumerate(images[:32]):
        np.save(home / "tiles" / f"{i:03}.npy", np.dstack([image, 255 - image[..., 0]])[:64, :64])
    lines = [
        f"{i:03}.png,{sample.class_name(i)},{'train' if place[i] < 14 else 'test'}"
        for i in range(len(images))
        if place[i] < 18  # the others are left to label
    ]
    (home / "labels.csv").write_text("\n".join(["path,label,split", *lines]))
    stl = home / "data" / "stl10_binary"
    stl.mkdir(parents=True)
    (stl / "class_names.txt").write_text("airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n")
    for split, rows in (("train", slice(0, 120)), ("test", slice(120, 200))):
        images[rows].transpose(0, 3, 2, 1).tofile(stl / f"{split}_X.bin")
        (sample.labels[rows] + 1).astype(np.uint8).tofile(stl / f"{split}_y.bin")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(sys, "executable", forked.python)
        patch.setenv("STEPCLR_DATA", str(home / "data"))
        for name in ("train", "test"):
            files = sorted(stl.glob(f"{name}_*.bin"))
            listed = [[file.name, hashlib.md5(file.read_bytes()).hexdigest()] for file in files]
            patch.setattr(torchvision.datasets.STL10, f"{name}_list", listed)
        for name in ("EPOCHS", "MIN_STEPS"):  # of evaluate --finetune
            patch.setattr(finetune, name, 1)
        yield home


def _each(images: stepclr.ImageSet) -> Iterator[Any]:
    for i in range(len(images)):
        yield images.read([i])[0]


def test_the_readme_opens_with_a_result_and_the_two_commands() -> None:
    head = README.splitlines()[:14]
    for start in ("![", "    make demo", "    make test"):
        assert any(line.startswith(start) for line in head), start
    assert len(COMMANDS) > 40


def test_no_recorded_run_of_the_demo_is_outside_of_what_is_said() -> None:
    """The README's score and other runs, and the recipe's line, cover every score of the demo that the results have."""
    results = (ROOT / "benchmarks" / "results" / "evaluation.md").read_text()
    demo = results.split("## The demo on the bundled sample\n")[1].split("\n## ")[0]
    # No other method has 76 or more; below that, the text says whose score it is.
    recorded = {float(mean) for mean in re.findall(r"(?<!\d)(7[67]\.\d|(?<=simclr had )\d+\.\d) ± ", demo)}
    headline = re.search(r"\*\*simclr: .+?(\d+\.\d) ± ", README)
    others = re.search(r"\) had (\d+\.\d) to (\d+\.\d) %\)", README)
    line = re.search(r"others (\d+\.\d) to (\d+\.\d)\)", RECIPES["sample"].line)
    assert headline
    assert others
    assert line
    own, low, high = float(headline[1]), float(others[1]), float(others[2])
    assert (low, high) == (min(recorded - {own}), max(recorded - {own}))
    assert (float(line[1]), float(line[2])) == (min(recorded), max(recorded))


def test_the_readme_shows_the_lines_of_the_training_step() -> None:
    step = (ROOT / "src" / "stepclr" / "pretraining" / "step.py").read_text()
    lines = re.findall(r"^    (?:view_i|h|z|loss)\b[^:\n]* = .*$", step, re.MULTILINE)
    assert len(lines) == 4
    assert "\n\n" + "\n".join(lines) + "\n\n" in README


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("home")
def test_readme_command(command: str) -> None:
    words = shlex.split(command.replace(*FEWER_LABELS).replace(*ON_THE_SHELF))[1:]
    words += SHORT.get(words[0], [])
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code
    out = words[words.index("--out") + 1] if "--out" in words else None
    assert out is None or Path(out).exists()
    if words[0] == "evaluate" and not words[1].startswith("timm:"):
        assert (Path(words[1]) / "evaluation.json").exists()


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("command", RANKS)
def test_torchrun_command(command: str) -> None:
    words = shlex.split(command)[1:]
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words, *SHORT["pretrain"]]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=250)
    assert not done.returncode, done.stderr
    assert stepclr.Run(Path(words[words.index("--out") + 1])).config.ranks == 2


@pytest.mark.usefixtures("home")
def test_the_run_of_the_walk_remembers_its_classes() -> None:
    assert stepclr.load_encoder("runs/stl4").classes == ["airplane", "bird", "car", "cat"]


@pytest.mark.usefixtures("home")
def test_readme_python() -> None:
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        scope: dict[str, Any] = {}
        exec(code.replace("labels_per_class=10", "labels_per_class=1, draws=2"), scope)
        assert scope["h"].shape == (1, 96)
        assert {row.method for row in scope["scores"].rows} == {"simclr", "pixels", "random", "knn"}


def test_docs_python() -> None:
    for text in DOCS:
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(code, {})
