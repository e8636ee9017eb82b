"""All views of a batch, shared out among threads. A view does not depend on its thread or on the other views."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from stepclr.machine_code import Kernel, machine_code, numba_is_missing
from stepclr.threads import share_out
from stepclr.views.color import ChannelJitter
from stepclr.views.geometry import EraseParams, RotateParams, TurnParams
from stepclr.views.ops import (
    AutoAugment,
    BlurParams,
    GrayscaleParams,
    JitterParams,
    LevelParams,
    Op,
    OpParams,
    RandAugment,
    WarpParams,
)
from stepclr.views.reference import Interpolation, blur_kernel
from stepclr.views.sample import ViewParams

PARAMS = (  # in the order of `kernel.JITTER, GRAY, ...`
    JitterParams,
    GrayscaleParams,
    LevelParams,
    EraseParams,
    WarpParams,
    BlurParams,
    TurnParams,
    RotateParams,
)
MIN_PIECE_PIXELS = 2**16  # so that handing a piece out takes little of the time that it takes to render it


def why_not_numba(ops: Sequence[Op]) -> str:
    """Why this renderer cannot render these ops; empty if it can."""
    for op in ops:
        if isinstance(op, AutoAugment | RandAugment | ChannelJitter):
            return f"it has no {type(op).__name__}"
    return numba_is_missing()


def render_numba(
    images: UInt8[Tensor, "n c height width"] | Sequence[UInt8[Tensor, "c _ _"]],
    params: Sequence[ViewParams],
    size: int,
    interpolation: Interpolation = "bicubic",
) -> Float[Tensor, "v n c s s"]:
    """V views of each image in CPU memory, within 1/255 of those of `render_reference`."""
    images = images.contiguous() if isinstance(images, Tensor) else [image.contiguous() for image in images]
    addresses, sides = _addresses(images)
    kinds, columns, table = _table([view.ops for view in params], len(images))
    out = _aligned(len(params) * len(images) * 3 * size * size)
    of_views = (
        np.tile(addresses, len(params)),
        np.tile(sides, (len(params), 1)),
        np.concatenate([view.box for view in params]),
        np.concatenate([view.flip for view in params]),
    )
    render_views = compiled()

    # The default argument keeps the images alive as long as a thread may read from their addresses.
    def render_piece(first: int, last: int, _read_from: object = images) -> None:
        cubic, radius = interpolation == "bicubic", blur_kernel(size) // 2
        render_views(first, last, out, size, cubic, radius, *of_views, kinds, columns, table)

    share_out("render", render_piece, len(table), -(-MIN_PIECE_PIXELS // size**2), torch.get_num_threads())
    return torch.from_numpy(out).view(len(params), len(images), 3, size, size)


def compiled() -> Kernel:
    """`kernel.render_views` in machine code."""
    (render_views,) = machine_code("stepclr.views.numba.kernel", "the renderer of views (about 10 seconds")
    return render_views


def _addresses(images: Tensor | Sequence[Tensor]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, "n 2"]]:
    """Address in memory, and (height, width), of each image."""
    if isinstance(images, Tensor):
        n, _, height, width = images.shape
        return images.data_ptr() + 3 * height * width * np.arange(n), np.tile((height, width), (n, 1))
    return np.array([image.data_ptr() for image in images]), np.array([image.shape[1:] for image in images])


def _table(
    ops: Sequence[Sequence[OpParams]], n: int
) -> tuple[Int64[np.ndarray, " ops"], Int64[np.ndarray, " ops"], Float64[np.ndarray, "views numbers"]]:
    """Kinds of the ops; first column of each in the table; the table: one row per view, view 0 of all images first."""
    kinds = np.array([PARAMS.index(type(params)) for params in ops[0]], np.int64)
    widths = [_fields_of(params, n).shape[1] for params in ops[0]]
    columns = np.cumsum([0, *widths])[:-1]
    rows = []
    for ops_of_view in ops:
        blocks = [_fields_of(params, n) for params in ops_of_view]
        rows.append(np.concatenate([np.empty((n, 0)), *blocks], axis=1))
    return kinds, columns, np.concatenate(rows)


def _fields_of(params: OpParams, n: int) -> Float64[np.ndarray, "n numbers"]:
    """An op's parameters in the order of their fields, the first of which says whether the op happens."""
    fields = [np.reshape(field, (n, -1)) for field in vars(params).values()]
    return np.concatenate(fields, axis=1, dtype=np.float64)


def _aligned(n: int) -> Float[np.ndarray, " n"]:
    """Memory for n float32 that begins at a cache line."""
    memory = np.empty(n + 16, np.float32)  # one array, so that NumPy asks for large pages, which are faster to get
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + n]
