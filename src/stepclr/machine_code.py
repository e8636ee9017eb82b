"""Kernels in machine code: compiled by Numba, once on each machine, and cached in a folder only the user can write."""

import hashlib
import importlib
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from stepclr.io import user_folder

COMPILING = threading.Lock()
Kernel = Callable[..., None]


def numba_is_missing() -> str:
    """Why Numba cannot be used; empty if it can."""
    try:
        from numba import config
    except Exception as error:  # a version too old for NumPy reports that when it is imported
        return " ".join(str(error).split()) or type(error).__name__
    return "NUMBA_DISABLE_JIT is set" if vars(config)["DISABLE_JIT"] else ""


def machine_code(module: str, what: str) -> list[Kernel]:
    """The functions of a module in machine code, from the cache or compiled now, with a line on stderr.

    module: has `OPTIONS` of Numba and `ENTRIES`: (function, the types of its arguments) of each; a function may be
    there several times. Its folder has all that is compiled with them. what: what they are, and how long it takes.
    """
    with COMPILING:
        return _machine_code(module, what)


@cache
def _machine_code(module: str, what: str) -> list[Kernel]:
    folder = _private_folder(module)
    if not folder or not any(folder.rglob("*.nbc")):
        kept = "once on this machine" if folder else "for this process only: set STEPCLR_KERNELS to a folder of yours"
        print(f"compiling {what}, {kept})", file=sys.stderr, flush=True)
    try:
        return _compile(module, folder)
    except Exception:  # the cache is corrupt, or the disk is full
        for file in folder.rglob("*.nb?") if folder else []:
            file.unlink(missing_ok=True)
        return _compile(module, None)


def _compile(module: str, folder: Path | None) -> list[Kernel]:
    from numba import config, njit

    source = importlib.import_module(module)
    settings: dict[str, Any] = vars(config)
    before = settings["CACHE_DIR"]
    settings["CACHE_DIR"] = str(folder or before)
    functions = list(dict.fromkeys(function for function, _ in source.ENTRIES))
    try:
        made = {function: njit(cache=folder is not None, **source.OPTIONS)(function) for function in functions}
    finally:
        settings["CACHE_DIR"] = before  # other users of Numba in this process share it
    for function, arguments in source.ENTRIES:
        made[function].compile(arguments)
    return list(made.values())


def _private_folder(module: str) -> Path | None:
    """The folder that keeps the code of these sources for this processor; None if nothing can be kept safely."""
    from numba import __version__
    from numba.core.registry import cpu_target

    target = cpu_target.target_context.codegen().magic_tuple()  # triple, processor, its features
    checksum = hashlib.sha256(f"{__version__} {sys.version} {target}".encode())
    for file in sorted(_folder_of(module).glob("*.py")):
        checksum.update(file.read_bytes())
    root = user_folder("STEPCLR_KERNELS", "kernels")
    folder = root / checksum.hexdigest()[:16]
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        private = all(_private(each.stat()) for each in (root, folder))
    except OSError:
        return None
    return folder if private and os.access(folder, os.W_OK) else None


def _folder_of(module: str) -> Path:
    """The folder of a module of this package, which is not imported for that."""
    return Path(__file__).parents[1].joinpath(*module.split(".")[:-1])


def _private(folder: os.stat_result) -> bool:
    """Whether nobody else can write to the folder: what is read from it is run."""
    return folder.st_mode & 0o022 == 0 and (not hasattr(os, "getuid") or folder.st_uid == os.getuid())
