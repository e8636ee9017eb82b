"""What several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from touches import Forks, forks

# torch is not imported yet, and children inherit it: on a shared machine two threads spin for each other, and what is
# tested here is small.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images next to the project; tests that want them are skipped where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "README.md").exists():
        pytest.skip(f"needs the real images of {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[None]:
    """No test reads or writes the user's caches. Machine code, known by its source, stays for the next test session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPCLR_CACHE", str(tmp_path_factory.mktemp("decoded")))
        patch.setenv("STEPCLR_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setenv("STEPCLR_KERNELS", str(pytestconfig.rootpath / ".pytest_cache" / "kernels"))
        yield


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/."""
    from small import photos_in

    folder = tmp_path_factory.mktemp("here")
    photos_in(folder / "photos")
    return folder


@pytest.fixture(scope="session")
def forked(own_caches: None) -> Iterator[Forks]:  # noqa: ARG001
    """Runs commands in forks of one process, and stops them where a test wants it."""
    with forks() as server:
        yield server
