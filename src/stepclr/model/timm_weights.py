"""timm's pretrained weights, named "timm:NAME": which there are, and their file on this machine.

timm downloads a file by itself, but on a machine without a network it tries for a minute and then fails with a stack of
errors. Here the file is found first; where it is missing and cannot be downloaded, one line says what to put where.
"""

import logging
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg
from torch import hub, nn

from stepclr.errors import StepclrError, choose, first_line, nearest

TIMM = "timm:"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # what timm looks for, the first one first
ANSWER_SECONDS = 5.0  # for a server to answer a request
PATIENCE_SECONDS = 6.0  # for all of it: a host may have several addresses, each of which takes its time


def timm_name(where: str | os.PathLike[str] | None) -> str | None:
    """NAME of "timm:NAME"; None for a path."""
    text = "" if where is None else os.fspath(where)
    return text.removeprefix(TIMM) if text.startswith(TIMM) else None


def from_anywhere(where: str | os.PathLike[str]) -> str:
    """A run or an encoder as it is found from any folder: an absolute path, or timm:NAME."""
    return os.fspath(where) if timm_name(where) is not None else os.path.abspath(where)


def pretrained(name: str) -> Any:
    """timm's description of pretrained weights, a `PretrainedCfg`: `architecture`, `tag`, `input_size`, `mean`, ...

    Raises StepclrError with the nearest name where timm does not know the network or has no such weights for it.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        choose("weights of timm", name, timm.list_pretrained() if tag else timm.list_models())
    tagged = timm.list_pretrained(architecture)
    if not tagged:
        near = nearest(name, timm.list_pretrained())
        raise StepclrError(f"timm has the network {architecture}, but no weights for it.{near}")
    if tag:
        choose(f"weights of timm's {architecture}", name, tagged)
    return get_pretrained_cfg(name)


def full_name(name: str) -> str:
    """The name with its tag: "resnet18" is "resnet18.a1_in1k"."""
    cfg = pretrained(name)
    return f"{cfg.architecture}.{cfg.tag}" if cfg.tag else str(cfg.architecture)


def create_pretrained(name: str, **options: Any) -> nn.Module:
    """timm's network with these weights, without its classifier; `options` are timm's.

    Raises StepclrError where the file is missing and cannot be downloaded, or does not hold the network's weights.
    """
    cfg = pretrained(name)
    file = _hub_file(name, cfg.hf_hub_id) if cfg.hf_hub_id else _url_file(name, cfg.url)
    # A custom format is one of a URL; from the hub it is timm's own.
    overlay = {"file": str(file), "custom_load": cfg.custom_load if not cfg.hf_hub_id else False}
    try:
        with _missing_tensors() as missing:
            body: nn.Module = timm.create_model(
                name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **options
            )
    except Exception as error:  # a reader of files can fail in any way on one that is damaged
        raise StepclrError(f"{file} does not hold the weights of timm:{name}: {first_line(error)}") from error
    if missing:
        raise StepclrError(f"{file} does not hold the weights of timm:{name}: {missing[0]}")
    return body


def _hub_file(name: str, repository: str) -> Path:
    """The file in Hugging Face's cache, downloaded if need be."""
    # Only these weights need it, and it takes a while.
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    for file in HUB_FILES:
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    urls = {file: hf_hub_url(repository, file) for file in HUB_FILES}
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    revision = folder / "refs" / "main"  # of an earlier download
    snapshot = revision.read_text() if revision.is_file() else "main"
    with _downloading(name, urls[HUB_FILES[0]], folder / "snapshots" / snapshot / HUB_FILES[0]):
        file = HUB_FILES[0]
        try:
            _in_time(partial(get_hf_file_metadata, urls[file], timeout=ANSWER_SECONDS))
        except EntryNotFoundError:
            file = HUB_FILES[1]
        return Path(hf_hub_download(repository, file))


def _url_file(name: str, url: str) -> Path:
    """The file among torch.hub's checkpoints, downloaded if need be."""
    path = Path(hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        with _downloading(name, url, path):
            request = urllib.request.Request(url, method="HEAD")
            _in_time(lambda: urllib.request.urlopen(request, timeout=ANSWER_SECONDS).close())
            path.parent.mkdir(parents=True, exist_ok=True)
            hub.download_url_to_file(url, os.fspath(path))
    return path


@contextmanager
def _downloading(name: str, url: str, path: Path) -> Iterator[None]:
    """Say in one line what to download and where to put it, however the download fails."""
    try:
        yield
    except Exception as error:  # a network fails in many ways
        raise StepclrError(
            f"the weights of timm:{name} are not on this machine and cannot be downloaded ({first_line(error)}): "
            f"get {url} on another machine, and save it as {path}"
        ) from error


def _in_time(request: Callable[[], object]) -> None:
    """Make a small request, once. Raises what it raises, or TimeoutError after PATIENCE_SECONDS."""
    errors: list[Exception] = []

    def make() -> None:
        try:
            request()
        except Exception as error:
            errors.append(error)

    # Looking up a host's name has no time limit of its own, so the request is left to a thread.
    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {PATIENCE_SECONDS:g} seconds")
    if errors:
        raise errors[0]


@contextmanager
def _missing_tensors() -> Iterator[list[str]]:
    """What timm logs of tensors that a file lacks. It would go on with random ones, and says so nowhere else."""
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text.startswith("Missing keys"):
                names = text[text.index("(") + 1 : text.index(")")].split(", ")
                messages.append(f"it lacks {len(names)} of the network's tensors, such as {names[0]}")

    logger, listener = logging.getLogger("timm.models._builder"), Listener()
    before = logger.level, logger.propagate
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(listener)
        logger.setLevel(before[0])
        logger.propagate = before[1]
