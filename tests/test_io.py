"""What cannot be written is said before the long part, and by its own name."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from small import call

from stepclr.errors import StepclrError, counted
from stepclr.io import ABANDONED, check_shape, check_writable, expanded, from_json, locked, user_folder, write_whole

COMMANDS = (
    "predict nowhere sample:test --out FILE/x.csv",
    "predict nowhere sample:test --sheet FILE/x.png",
    "embed nowhere sample:test --out FILE/index",
    "find next nowhere --out FILE/x.csv",
    "label nowhere --out FILE/x.html",
    "doctor nowhere --out FILE/x.json",
    "pack nowhere --out FILE/shards",
    "views nowhere --out FILE/x.png",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written_is_named_first(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert call(*(word.replace("FILE", str(file)) for word in command.split())) == 2
    assert f"cannot be written: {file} is not a folder" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new" / "newer" / "x.csv")  # folders are made
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # root may write anywhere else
    for path in (tmp_path, tmp_path / "x.csv", tmp_path / "new" / "x.csv"):
        with pytest.raises(StepclrError, match=f"{path} cannot be written: {tmp_path} is read-only"):
            check_writable(path)


def test_an_error_names_the_file_and_not_its_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / (250 * "x")  # the temporary name is longer, and too long
    with pytest.raises(OSError, match="too long") as caught:
        write_whole(path, lambda file: file.write(b""))
    assert caught.value.filename == str(path)


def test_a_killed_exports_draft_does_not_lock_a_folder_for_good(tmp_path: Path) -> None:
    """Its temporary folder stays while its process may be writing it, and goes when that was a day ago."""
    draft, half = tmp_path / ".encoder.onnx.x.tmp", tmp_path / ".config.json.x.tmp"
    draft.mkdir()
    (draft / "encoder.onnx").touch()
    half.touch()
    with locked(tmp_path, "busy"):
        assert (draft.exists(), half.exists()) == (True, False)
    long_ago = time.time() - 2 * ABANDONED
    os.utime(draft, (long_ago, long_ago))
    with locked(tmp_path, "busy"):
        assert not draft.exists()


def test_a_cache_may_be_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPCLR_CACHE", ".")
    assert user_folder("STEPCLR_CACHE", "decoded") == Path()


def test_a_name_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expanded("~/x") == Path.home() / "x"
    assert expanded("~no-such-user/x") == Path("~no-such-user/x")
    monkeypatch.setenv("XDG_CACHE_HOME", "~no-such-user")
    monkeypatch.delenv("STEPCLR_CACHE")
    with pytest.raises(StepclrError, match=r"there is no home folder for .*; set HOME, or STEPCLR_CACHE"):
        user_folder("STEPCLR_CACHE", "decoded")


@dataclass(frozen=True)
class Stored:
    """A record as files have them."""

    rate: float
    epochs: int | float
    sizes: list[int]
    strength: tuple[float, ...] | None
    normalized: bool


KEPT = {"rate": 1, "epochs": 2.5, "sizes": [1, 2], "strength": [0.5, 1], "normalized": True}


def test_true_is_no_number() -> None:
    assert from_json(Stored, KEPT, "x.json").strength == (0.5, 1)
    for name, value in (("rate", True), ("epochs", False), ("sizes", [1, True]), ("strength", [0.5, True])):
        with pytest.raises(StepclrError, match=re.escape(f"x.json is corrupt: {name} is {value}")):
            from_json(Stored, KEPT | {name: value}, "x.json")
    with pytest.raises(StepclrError, match=r"x\.json is corrupt: normalized is 1"):
        from_json(Stored, KEPT | {"normalized": 1}, "x.json")
    with pytest.raises(StepclrError, match=r"x\.json: draws: it is True"):
        check_shape({"draws": True}, {"draws": int}, "x.json:")
    check_shape({"any": {"of": True}}, {"any": dict}, "x.json:")


def test_a_number_has_its_noun() -> None:
    said = [counted(n, "step") for n in (0, 1, 2, 1.0, 0.5, 12_345_678)]
    assert said == ["0 steps", "1 step", "2 steps", "1 step", "0.5 steps", "12,345,678 steps"]
    assert counted(2, "file or folder", "files and folders") == "2 files and folders"
