"""What several test files share."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from touches import Forks, forks

# torch is not imported yet, and children inherit it: on a shared machine two threads spin for each other, and what is
# tested here is small.
os.environ["OMP_NUM_THREADS"] = "1"
# Where a test asks for two, they sleep until there is work: on a busy machine, to wait in a loop took 4 times the CPU.
os.environ["OMP_WAIT_POLICY"] = "passive"

# Where timm looks for pretrained weights, read when it is imported: not the user's cache, and never the network.
DOWNLOADS = Path(tempfile.mkdtemp(prefix="stepclr-tests-"))
atexit.register(shutil.rmtree, DOWNLOADS, ignore_errors=True)
os.environ |= {
    "HF_HUB_CACHE": str(DOWNLOADS / "hub"),
    "TORCH_HOME": str(DOWNLOADS / "torch"),
    "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens there
}

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As users run it: without the shape checks of the tests, which would raise before stepclr's own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def off_the_shelf() -> str:
    """An encoder of timm whose weights are there: tiny, 160 px, with its own mean, crop and interpolation."""
    from small import put_where_timm_looks

    put_where_timm_looks("test_resnet.r160_in1k")
    return "timm:test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/."""
    from small import photos_in

    folder = tmp_path_factory.mktemp("here")
    photos_in(folder / "photos")
    return folder


@pytest.fixture(scope="module")
def few_strengths() -> Iterator[None]:
    """Linear evaluation chooses among 5 values of lambda, not 45: for tests of what is done with its scores."""
    from stepclr.evaluation import linear

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "STRENGTHS", linear.STRENGTHS[::11])
        yield


@pytest.fixture(scope="module")
def small_sample() -> Iterator[None]:
    """Each split of the bundled sample has 300 images, for tests of commands that always take all of it."""
    from stepclr.data.named import read_sample

    def read_few(split: str) -> tuple[Any, Any, list[str]]:
        images, labels, classes = read_sample(split)
        return images[:300], labels[:300], classes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stepclr.data.sources.read_sample", read_few)
        yield


@pytest.fixture(scope="session")
def forked(own_caches: None) -> Iterator[Forks]:  # noqa: ARG001
    """Runs commands in forks of one process, and stops them where a test wants it."""
    with forks() as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("needs Chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra browser")
    with playwright.sync_playwright() as one:
        browser = one.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()
