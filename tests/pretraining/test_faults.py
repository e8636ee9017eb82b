"""What happens to long runs: checkpoints that become corrupt, and a second run in the same folder."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import SETTINGS, photos_in, same
from torch.utils.data import Dataset
from touches import Forks

import stepclr
from stepclr.cli import main
from stepclr.distributed import World
from stepclr.pretraining import api
from stepclr.pretraining.checkpoint import checkpoints, save_checkpoint
from stepclr.pretraining.logging import Meter
from stepclr.pretraining.run import LostImages


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> stepclr.Run:
    out = tmp_path_factory.mktemp("runs") / "whole"
    return stepclr.pretrain("sample:unlabeled", out, progress=False, **SETTINGS)


class Another(World):
    """A rank that does not write."""

    first = False


class Eight(World):
    """Eight ranks, all of which have met the same broken images."""

    def total(self, value: float | int) -> float | int:
        return 8 * value


def test_an_image_that_every_rank_has_met_is_one(tmp_path: Path) -> None:
    images = stepclr.open_images("sample:train", limit=100)
    lost = LostImages(images, stepclr.Run(tmp_path), Eight())
    for count in range(1, 7):
        images.ledger.unreadable[images.names[count]] = "it is gone"
        if count < 6:
            lost.check(step=9)
            lost.check(step=10)
    with pytest.raises(stepclr.StepclrError, match=r"^6 of 100 images of sample:train cannot be read, for example "):
        lost.check(step=11)


def test_every_rank_knows_when_a_checkpoint_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not takes each step for due, and looks at all weights."""
    saved: list[int] = []
    monkeypatch.setattr(Meter, "saved", lambda _: saved.append(1))
    monkeypatch.setattr(api, "join", Another)
    stepclr.pretrain("sample:unlabeled", tmp_path / "run", progress=False, **SETTINGS)
    assert len(saved) == 3  # epochs
    assert not (tmp_path / "run").exists()


def test_broken_files_are_left_out_whether_the_others_fit_into_the_cache_or_not(tmp_path: Path) -> None:
    """And a run goes on where they no longer do."""
    photos = photos_in(tmp_path / "photos", 40)
    for i in range(6):
        (photos / f"broken {i}.png").write_bytes(b"not a png")
    half = (photos / "00.png").read_bytes()
    (photos / "00.png").write_bytes(half[: len(half) // 2])  # its header can be read
    settings = SETTINGS | {"epochs": 2, "limit": None, "progress": False}
    kept = stepclr.pretrain(photos, tmp_path / "kept", **settings)
    read = stepclr.pretrain(photos, tmp_path / "read", cache_gib=1e-6, **settings)
    assert (kept.config.images, read.config.images) == (39, 40)
    for run in (kept, read):
        assert (run.folder / "skipped.csv").read_text().count("broken ") == 6
    settings["epochs"] = 3
    for run, other in ((kept, 1e-6), (read, 4.0)):
        copy = shutil.copytree(run.folder, f"{run.folder}-copy")
        again = stepclr.pretrain(photos, copy, cache_gib=other, resume=True, **settings)
        stepclr.pretrain(photos, run.folder, resume=True, **settings)
        assert same(run, again)
        listed = [stepclr.Run(folder).left_out() for folder in (run.folder, again.folder)]
        assert listed[0].keys() == listed[1].keys() == {"00.png", *(f"broken {i}.png" for i in range(6))}


def test_a_run_of_an_earlier_version_goes_on_with_the_broken_files_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photos_in(tmp_path / "photos", 40)
    (photos / "broken.png").write_bytes(b"not a png")
    settings = SETTINGS | {"epochs": 2, "limit": None, "progress": False, "cache_gib": 1e-6}
    with monkeypatch.context() as patch:
        patch.setattr(stepclr.ImageSet, "openable", lambda images: images)
        run = stepclr.pretrain(photos, tmp_path / "run", **settings)
    assert run.config.images == 41
    stepclr.pretrain(photos, run.folder, resume=True, **settings | {"epochs": 3})
    assert (run.config.epochs, run.config.images) == (3, 41)


def resumed(out: Path) -> stepclr.Run:
    return stepclr.pretrain("sample:unlabeled", out, resume=True, progress=True, **SETTINGS)


@pytest.mark.parametrize("part", ["header", "metadata", "tensors", "cut"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(
    part: str, whole: stepclr.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One flipped bit anywhere, or a file cut short, and the run still ends bit for bit as it did."""
    generator = np.random.default_rng(0)
    for trial in range(1 if part == "cut" else 8):
        out = tmp_path / str(trial)
        shutil.copytree(whole.folder, out)
        newest = checkpoints(out / "checkpoint")[-1]
        content = bytearray(newest.read_bytes())
        header = 8 + int.from_bytes(content[:8], "little")
        start = content.index(b"__metadata__")
        low, high = {
            "header": (8, header),
            "metadata": (start, content.index(b"}", start)),
            "tensors": (header, len(content)),
            "cut": (0, 1),
        }[part]
        if part == "cut":
            del content[-1:]
        else:
            content[int(generator.integers(low, high))] ^= 1 << int(generator.integers(8))
        newest.write_bytes(content)
        assert same(whole, resumed(out))
        said = capsys.readouterr().err
        assert f"{newest} is corrupt" in said
        assert "resuming after step 6" in said  # of 9


def test_where_every_checkpoint_is_damaged_it_says_so(whole: stepclr.Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole.folder, out)
    for path in checkpoints(out / "checkpoint"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        stepclr.StepclrError, match=r"^no checkpoint in .* can be read; start a new run in another out$"
    ):
        resumed(out)


def test_a_second_run_in_the_folder_is_refused_and_the_first_continues(
    forked: Forks, whole: stepclr.Run, tmp_path: Path
) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "run"
    shutil.copytree(whole.folder, out)
    checkpoints(out / "checkpoint")[-1].unlink()
    before = sorted(path.name for path in (out / "checkpoint").iterdir())
    words = ["pretrain", "sample:unlabeled", "--out", str(out), "--resume"]
    with whole.__class__(out).held():
        second = subprocess.run([forked.python, "-m", "stepclr", *words], capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert second.stderr.splitlines()[-1] == (
            f"stepclr: another process is training in {out}: wait for it to finish, or choose another --out"
        )
        assert sorted(path.name for path in (out / "checkpoint").iterdir()) == before
    assert same(whole, resumed(out))  # it is free again


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_ended_while_another_prepared_is_not_overwritten(
    resume: bool, whole: stepclr.Run, tmp_path: Path
) -> None:
    """The second process looked for a run before the first one had written any."""
    out = tmp_path / "run"

    class Images(Dataset[Image.Image]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Image.Image:
            if not out.exists():
                shutil.copytree(whole.folder, out)
            return Image.new("RGB", (16, 16), (index, 0, 0))

    with pytest.raises(stepclr.StepclrError, match="run already contains a run: resume=True continues it"):
        stepclr.pretrain(Images(), out, resume=resume, progress=False, **SETTINGS | {"limit": None, "batch_size": 4})
    assert (out / "config.json").read_bytes() == (whole.folder / "config.json").read_bytes()
    assert (out / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()


def test_a_killed_run_leaves_the_folder_free(forked: Forks, whole: stepclr.Run, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "run"
    shutil.copytree(whole.folder, out)
    code = (
        "import sys, time; from pathlib import Path; from stepclr.pretraining.run import Run\n"
        "with Run(Path(sys.argv[1])).held():\n    print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([forked.python, "-c", code, os.fspath(out)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(stepclr.StepclrError, match="another process is training"), stepclr.Run(out).held():
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    subprocess.run([forked.python, "-c", ""], check=True)  # begins when the killed one is gone
    with stepclr.Run(out).held():
        pass


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """48 image files of the sample, not in the cache."""
    return photos_in(tmp_path / "photos")


def spoil(photos: Path, count: int) -> None:
    """Some are gone, some are garbage, one is empty."""
    for i, path in enumerate(sorted(photos.iterdir())[:count]):
        if i % 3 == 0:
            path.unlink()
        else:
            path.write_bytes(b"no image" * (i % 3 - 1))


@pytest.mark.parametrize("count", [2, 9])  # of 48: 4% and 19%
def test_images_lost_during_a_run_are_counted_and_too_many_end_it(
    count: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save_and_spoil(folder: Path, step: int, *rest: Any) -> None:
        save_checkpoint(folder, step, *rest)
        if step == 3:
            spoil(photos, count)

    monkeypatch.setattr("stepclr.pretraining.loop.save_checkpoint", save_and_spoil)
    words = ["pretrain", str(photos), "--out", str(tmp_path / "run"), "--cache-gib", "0.000001"]
    words += ["--encoder", "test_resnet", "--stem", "small-stride2", "--epochs", "4", "--batch-size", "16"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    said = capsys.readouterr().err.splitlines()[-1]
    if count == 2:
        assert not stop.value.code
        assert (tmp_path / "run" / "skipped.csv").read_text().count("\n") == 1 + count
        return
    assert stop.value.code == 2
    assert "of 48 images of" in said
    assert "restore the files and resume the run" in said
    assert checkpoints(tmp_path / "run" / "checkpoint")[-1].name == "step-00000003.safetensors"
    assert (tmp_path / "run" / "skipped.csv").exists()


@pytest.mark.parametrize("micro_batch", [[], ["--micro-batch", "4"]])
def test_images_that_are_gone_all_at_once_end_a_run_whatever_its_share_is(
    micro_batch: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a disk is unplugged: a batch of 4% has no image left."""
    photos = photos_in(tmp_path / "photos", 200)

    def save_and_lose(folder: Path, step: int, *rest: Any) -> None:
        save_checkpoint(folder, step, *rest)
        photos.rename(tmp_path / "elsewhere")

    monkeypatch.setattr("stepclr.pretraining.loop.save_checkpoint", save_and_lose)
    words = ["pretrain", str(photos), "--out", str(tmp_path / "run"), "--cache-gib", "0.000001", *micro_batch]
    words += ["--encoder", "test_resnet", "--stem", "small-stride2", "--epochs", "2", "--batch-size", "8"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "restore the files and resume the run" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "run" / "skipped.csv").exists()


def test_a_copy_next_to_the_checkpoints_is_left_alone(whole: stepclr.Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole.folder, out)
    newest = checkpoints(out / "checkpoint")[-1]
    shutil.copy(newest, newest.with_name("step-9 (copy).safetensors"))
    assert same(whole, resumed(out))
