"""A pickle that does harm when it is unpickled, in the place of every file that is read: it never runs.

What torchvision reads is in test_data_named.py, foreign weights are in test_model.py too.
"""

import io
import os
import pickle
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small import WORDS, photos_in
from touches import Forks

from stepclr.machine_code import _private_folder
from stepclr.pretraining.checkpoint import checkpoints


class Poison:
    """Makes a folder when it is unpickled."""

    def __init__(self, harm: Path) -> None:
        self.harm = harm

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.harm),)


def as_torch(harm: Path, new: bool) -> bytes:
    content = io.BytesIO()
    torch.save({"state_dict": {"conv1.weight": Poison(harm)}}, content, _use_new_zipfile_serialization=new)
    return content.getvalue()


def as_array(harm: Path, save: Callable[..., None]) -> bytes:
    content = io.BytesIO()
    save(content, np.array([Poison(harm)], dtype=object))
    return content.getvalue()


KINDS: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda harm: pickle.dumps(Poison(harm)),
    "old pickle": lambda harm: pickle.dumps(Poison(harm), 0),
    "torch.save": lambda harm: as_torch(harm, True),
    "old torch.save": lambda harm: as_torch(harm, False),
    "npy": lambda harm: as_array(harm, np.save),
    "npz": lambda harm: as_array(harm, np.savez),
}
SCORED = ["--train", "sample:train", "--test", "sample:test", "--labels-per-class", "10", "--draws", "1"]
FAST = [*SCORED, "--probe", "knn", "--baselines", ""]
RESUMED = ["pretrain", "PHOTOS", "--out", "RUN", *WORDS, "--resume"]
# The file that is poisoned: the commands that read it.
READ: dict[str, list[list[str]]] = {
    "run/config.json": [RESUMED, ["compare", "RUN"], ["evaluate", "RUN", *FAST]],
    "run/metrics.jsonl": [RESUMED, ["compare", "RUN"]],
    "run/checkpoint/NEWEST": [RESUMED, ["finetune", "RUN", "--train", "sample:train", "--from", "head.1"]],
    "run/encoder.safetensors": [
        ["embed", "RUN", "PHOTOS", "--out", "OUT/h.npz"],
        ["pretrain", "PHOTOS", "--out", "OUT/new", *WORDS, "--weights", "RUN"],
    ],
    "run/classifier.safetensors": [
        ["predict", "RUN", "PHOTOS", "--out", "OUT/p.csv"],
        ["distill", "RUN", "PHOTOS", "--out", "OUT/student"],
    ],
    "run/evaluation.json": [["compare", "RUN"]],
    "weights.pth": [["pretrain", "PHOTOS", "--out", "OUT/new", *WORDS, "--weights", "OUT/weights.pth"]],
    "weights.pt": [["pretrain", "PHOTOS", "--out", "OUT/new", *WORDS, "--weights", "OUT/weights.pt"]],
    "weights.safetensors": [["pretrain", "PHOTOS", "--out", "OUT/new", *WORDS, "--weights", "OUT/weights.safetensors"]],
    "photos.zip": [["views", "OUT/photos.zip", "--out", "OUT/v.png"]],
    "photos.npz": [["views", "OUT/photos.npz", "--out", "OUT/v.png"]],
    "photos/00.png": [["views", "PHOTOS", "--out", "OUT/v.png"]],
    "cache/*": [["pretrain", "PHOTOS", "--out", "OUT/new", *WORDS], ["views", "PHOTOS", "--out", "OUT/v.png"]],
}


@pytest.fixture(scope="module")
def clean(forked: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with its images and their cache."""
    folder = tmp_path_factory.mktemp("clean")
    photos_in(folder / "photos")
    words = ["pretrain", str(folder / "photos"), "--out", str(folder / "run"), *WORDS]
    assert forked.run(*words, under=folder).code == 0
    return folder


def poison(out: Path, place: str, content: bytes) -> None:
    if "*" in place:
        paths = list((out / "cache").iterdir())
        assert len(paths) == 3
    elif "NEWEST" in place:
        paths = checkpoints(out / "run" / "checkpoint")[-1:]
    else:
        paths = [out / place]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["pickle", *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(KINDS)[1:])])
def test_it_never_runs(kind: str, forked: Forks, clean: Path, tmp_path: Path) -> None:
    """Each command ends as if the file were garbage: one line, or without it."""
    harm = tmp_path / "harm"
    content = KINDS[kind](harm)
    for number, (place, commands) in enumerate(READ.items()):
        for words in commands:
            out = tmp_path / str(number)
            shutil.copytree(clean, out)
            poison(out, place, content)
            known = {"RUN": out / "run", "OUT": out, "PHOTOS": out / "photos"}
            spoken = ["/".join(str(known.get(part, part)) for part in word.split("/")) for word in words]
            end = forked.run(*spoken, under=out)
            assert not harm.exists(), (place, words)
            assert end.code in (0, 2), (place, words, end.said)
            assert "Traceback" not in end.said, (place, words, end.said)
            said_at_end = end.said.splitlines()[-1]
            assert end.code == 0 or said_at_end.startswith("stepclr: "), (place, words, end.said)
            shutil.rmtree(out)


@pytest.mark.parametrize("kind", KINDS)
def test_the_poison_is_real(kind: str, tmp_path: Path) -> None:
    content = KINDS[kind](tmp_path / "harm")
    if "torch" in kind:
        torch.load(io.BytesIO(content), weights_only=False)
    elif "np" in kind:
        found = np.load(io.BytesIO(content), allow_pickle=True)
        found = found["arr_0"] if kind == "npz" else found
    else:
        pickle.loads(content)
    assert (tmp_path / "harm").is_dir()


def test_members_of_a_zip_are_images_or_nothing(forked: Forks, clean: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(clean / "photos" / "00.png", "good.png")
        for i, make in enumerate(KINDS.values()):
            archive.writestr(f"{i}.png", make(tmp_path / "harm"))
            archive.writestr(f"{i}.pkl", make(tmp_path / "harm"))
    end = forked.run("views", tmp_path / "photos.zip", "--out", tmp_path / "views.png", under=tmp_path)
    assert end.code == 0, end.said
    assert not (tmp_path / "harm").exists()


def test_the_compilers_cache_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in there is unpickled and run: it is made private, and a folder that others may write is not used."""
    pytest.importorskip("numba")
    monkeypatch.setenv("STEPCLR_KERNELS", str(tmp_path / "new" / "kernels"))
    made = _private_folder("stepclr.views.numba.kernel")
    assert made
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (made, made.parent)] == [0o700, 0o700]
    made.parent.chmod(0o777)
    assert _private_folder("stepclr.views.numba.kernel") is None
