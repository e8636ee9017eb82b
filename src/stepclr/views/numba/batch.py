"""All views of a batch, shared out among threads; who renders a view, and with which others, changes nothing."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from stepclr.errors import StepclrError, choose
from stepclr.views.numba.compiled import compiled, numba_is_missing
from stepclr.views.ops import Blur, BlurDraws, ColorJitter, Drawn, Grey, GreyDraws, JitterDraws, Op, Warp, WarpDraws
from stepclr.views.reference import Interpolation, blur_kernel
from stepclr.views.sample import Draws

Renderer = Literal["auto", "numba", "torch"]
OPS = (ColorJitter, Grey, Warp, Blur)
DRAWN = (JitterDraws, GreyDraws, WarpDraws, BlurDraws)  # in the order of `kernel.JITTER, GREY, WARP, BLUR`
PIECES = 4  # of a batch, for each thread, so that all end at about the same time
LEAST = 2**16  # pixels of a piece, so that handing it out takes little of its time


def choose_renderer(wanted: Renderer, ops: Sequence[Op]) -> Literal["numba", "torch"]:
    """The renderer for these ops; "auto": numba where it can be. StepclrError where numba is asked for and cannot."""
    choose("renderer", wanted, ("auto", "numba", "torch"))
    if wanted == "torch":
        return "torch"
    others = [type(op).__name__ for op in ops if not isinstance(op, OPS)]
    why = f"it has no {others[0]}" if others else numba_is_missing()
    if why and wanted == "numba":
        raise StepclrError(f"renderer numba cannot render these views: {why}; torch can")
    return "torch" if why else "numba"


def render_fused(
    images: UInt8[Tensor, "n 3 height width"] | Sequence[UInt8[Tensor, "3 _ _"]],
    draws: Sequence[Draws],
    size: int,
    interpolation: Interpolation = "bicubic",
) -> Float[Tensor, "v n 3 s s"]:
    """V views of each image, on the CPU, as `render` makes each from its parameters, to 1/255."""
    images = images.contiguous() if isinstance(images, Tensor) else [each.contiguous() for each in images]
    places, sides = _places(images)
    kinds, columns, table = _table([drawn.ops for drawn in draws], len(images))
    out = _aligned(len(draws) * len(images) * 3 * size * size)
    of_views = (
        np.tile(places, len(draws)),
        np.tile(sides, (len(draws), 1)),
        np.concatenate([drawn.box for drawn in draws]),
        np.concatenate([drawn.flip for drawn in draws]),
    )
    render_views = compiled()

    def part(first: int, last: int, _read_from: object = images) -> None:  # they stay as long as this may run
        cubic, radius = interpolation == "bicubic", blur_kernel(size) // 2
        render_views(first, last, out, size, cubic, radius, *of_views, kinds, columns, table)

    share_out(part, len(table), -(-LEAST // size**2), torch.get_num_threads())
    return torch.from_numpy(out).view(len(draws), len(images), 3, size, size)


def share_out(part: Callable[[int, int], None], n: int, least: int, threads: int) -> None:
    """part(first, last) for pieces of 0 .. n, of `least` or more, on this many threads."""
    step = max(least, -(-n // (threads * PIECES)))
    if threads == 1 or step >= n:
        part(0, n)
        return
    for piece in [pool(threads).submit(part, first, min(first + step, n)) for first in range(0, n, step)]:
        piece.result()


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    """The threads that render."""
    return ThreadPoolExecutor(threads, "stepclr-render")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.cache_clear)  # a forked process does not inherit threads


def _places(images: Tensor | Sequence[Tensor]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, "n 2"]]:
    """Address, and (height, width), of each image."""
    if isinstance(images, Tensor):
        n, _, height, width = images.shape
        return images.data_ptr() + 3 * height * width * np.arange(n), np.tile((height, width), (n, 1))
    return np.array([each.data_ptr() for each in images]), np.array([each.shape[1:] for each in images])


def _table(
    ops: Sequence[Sequence[Drawn]], n: int
) -> tuple[Int64[np.ndarray, " ops"], Int64[np.ndarray, " ops"], Float64[np.ndarray, "views numbers"]]:
    """Kinds of the ops, where in a row the parameters of each begin, and a row for each view: view 0 of all first."""
    parts = [
        [np.concatenate([np.reshape(part, (n, -1)) for part in vars(drawn).values()], axis=1) for drawn in own]
        for own in ops
    ]
    kinds = np.array([DRAWN.index(type(drawn)) for drawn in ops[0]], np.int64)
    columns = np.cumsum([0, *(part.shape[1] for part in parts[0])])[:-1]
    rows = [np.concatenate([np.empty((n, 0)), *own], axis=1) for own in parts]
    return kinds, columns, np.concatenate(rows)


def _aligned(n: int) -> Float[np.ndarray, " n"]:
    """Memory for n float32 from the start of a line of the cache on."""
    memory = np.empty(n + 16, np.float32)  # large, so that NumPy asks for large pages, which are quicker to get
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + n]
