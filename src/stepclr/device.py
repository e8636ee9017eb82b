"""Where tensors are computed, with which random numbers and threads, and in which precision."""

import logging
import platform
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor, nn

from stepclr.errors import choose

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Item = TypeVar("Item")
Made = TypeVar("Made")
Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]  # `map`, `side_by_side`
_seeding = threading.RLock()  # torch has one generator for all threads
_group = threading.local()  # its `stop`, in a thread of `beside`, is the event that tells the thread to stop


def default_device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    if torch.cuda.is_available():
        # With its number: for threads that read ahead, "cuda" alone is the first GPU, also in other ranks.
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def software() -> dict[str, str]:
    """The versions of what computes here, as the files of a run record them."""
    return {"stepclr": version("stepclr"), "torch": torch.__version__, "python": platform.python_version()}


def to_device(array: Num[np.ndarray, "*shape"], device: torch.device) -> Num[Tensor, "*shape"]:
    """The array on `device`; to CUDA from page-locked memory, so that the host does not wait for the copy."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@cache
def compiles(device: torch.device) -> bool:
    """Whether torch.compile works for this device: on CUDA, with Triton and a C compiler. If not, it warns once."""
    if device.type != "cuda":
        return False
    try:
        torch.compile(_twice)(torch.ones(8, device=device))
    except Exception as error:  # a missing compiler shows in many ways
        logging.getLogger(__name__).warning("torch.compile does not work here, so that a step takes longer: %s", error)
        return False
    return True


def _twice(x: Tensor) -> Tensor:
    return x * 2


def dtype_of(precision: str) -> torch.dtype:
    """The type of the encoder's arithmetic; StepclrError unless `precision` is "fp32" or "bf16"."""
    return DTYPES[choose("precision", precision, DTYPES)]


def lacks_memory(error: BaseException) -> bool:
    """Whether there was not enough memory, of the host or of a GPU. For the host's, torch has no error class."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """A context in which cuDNN tries its algorithms and takes the fastest for each shape."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context in which torch draws from `seed`, on the CPU and on this process's GPU; then its state is put back."""
    device = default_device()
    # Without the number of the GPU, `fork_rng` would prepare every GPU of the machine in each rank.
    gpus = [device.index] if device.type == "cuda" else []
    with _seeding, torch.random.fork_rng(gpus):
        torch.manual_seed(seed)
        yield


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """A context in which torch computes with `count` threads: another number would add floats in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Stopped(Exception):
    """Ends the work of a thread whose result is not wanted any more (see `stop_if_unwanted`)."""


def stop_if_unwanted() -> None:
    """Raise Stopped in a thread of `beside` whose result is not wanted any more; long work there calls this often."""
    event = getattr(_group, "stop", None)
    if event is not None and event.is_set():
        raise Stopped


def side_by_side(work: Callable[[Item], Made], items: Sequence[Item]) -> Iterator[Made]:
    """`work(item)` of each item, in order: as many at a time as torch has threads, which they divide among them.

    It pays where one item alone is too small to keep more than one thread busy. If an item fails, or nobody asks for
    the results any more, the other items stop at their next `stop_if_unwanted`.
    """
    threads = torch.get_num_threads()
    together = min(threads, len(items))
    if together < 2:
        yield from map(work, items)
        return
    # A new thread starts with the number of threads that torch has at that moment.
    with torch_threads(threads // together), beside(together) as pool:
        for future in [pool.submit(work, item) for item in items]:
            yield future.result()


@contextmanager
def beside(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that work beside this one. What is not done at the end stops at its next `stop_if_unwanted`."""
    stop = threading.Event()

    def begin() -> None:
        _group.stop = stop

    with ThreadPoolExecutor(count, "stepclr-side", begin) as pool:
        try:
            yield pool
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


@cache
def amd_family() -> int:
    """The family of an AMD processor, such as 25 (Zen 4) or 26 (Zen 5); 0 for others, and where it is not known.

    Which way to compute is the fastest depends on it.
    """
    cpuinfo = Path("/proc/cpuinfo")
    told = cpuinfo.read_text() if cpuinfo.exists() else ""
    family = re.search(r"^cpu family\s*:\s*(\d+)", told, re.MULTILINE)
    return int(family[1]) if family and "AuthenticAMD" in told else 0


def bf16_helps() -> bool:
    """Whether bfloat16 is fast here, by the processor's flags, and correct, by a small convolution and its gradient.

    No race decides: the same machine always gives the same answer, and so the same run.
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return ("avx512_bf16" in flags or "amx_bf16" in flags) and _bf16_is_correct()


def _bf16_is_correct() -> bool:
    with seeded(0):
        convolution = nn.Conv2d(16, 32, 3, padding=1, dtype=torch.float32, device="cpu")
        x = torch.randn(8, 16, 12, 12, dtype=torch.float32, device="cpu").to(memory_format=torch.channels_last)
    convolution.to(memory_format=torch.channels_last)
    results = []
    for enabled in (False, True):
        convolution.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = convolution(x)
        y.float().square().sum().backward()
        assert convolution.weight.grad is not None
        results.append((y.detach().float(), convolution.weight.grad.clone()))
    return all(bool((half - full).norm() < 0.02 * full.norm()) for full, half in zip(*results, strict=True))
