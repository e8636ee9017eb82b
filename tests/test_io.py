"""What cannot be written is said before the long part, and by its own name."""

import os
from pathlib import Path

import pytest
from small import call

from stepclr.errors import StepclrError
from stepclr.io import check_writable, expanded, user_folder, write_whole

COMMANDS = (
    "predict nowhere sample:test --out FILE/x.csv",
    "predict nowhere sample:test --sheet FILE/x.png",
    "embed nowhere sample:test --out FILE/index",
    "find next nowhere --out FILE/x.csv",
    "label nowhere --out FILE/x.html",
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
