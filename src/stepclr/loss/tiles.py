"""log sum_{a != i} exp(z_i.z_a / tau) for all M rows, in tiles: memory grows with M D and the tile, not with M^2.

With e_ij = exp(z_i.z_j / tau) for j != i, e_ii = 0, and S_i = sum_j e_ij, the loss needs sum_i w_i log S_i for given
weights w, and its gradient, which is

    1/tau W Z,    W_ij = e_ij (w_i/S_i + w_j/S_j)

e and W are symmetric, so that a tile above the diagonal serves the rows of both its sides: half the work. The rows of
Z have length 1, so that e is at most exp(1/tau); where exp(1/tau) could overflow float32 (tau < SAFE_TEMPERATURE),
tiles hold log e and sums are kept as logarithms. Each rank computes its own rows, against all columns.

On AMD's processors, where torch computes powers of 2 in a third of the time of exp, a tile's products are multiplied by
log2(e): 2^(x log2(e)) is exp(x).

Where groups are given, all pairs of one group are left out: e_ij = 0 for them, as for j = i. This happens inside the
tile: subtracted from the finished sum, pairs that dominate it would leave nothing but its rounding error.

A second derivative, and whatever torch.func computes, takes the same formulas with all M x M numbers at once.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from stepclr.device import amd_family, compiles
from stepclr.distributed import World
from stepclr.errors import StepclrError

# Rows and columns of a tile. On a CPU a few fit into a core's cache.
TILE_SIZES = {"cpu": (256, 512), "amd": (512, 512), "cuda": (4096, 4096)}
KEPT_NUMBERS = 2**23  # of the first pass, which the second need not compute again: 32 MiB in float32
LOG2_E = 1 / math.log(2)
SAFE_TEMPERATURE = 0.025  # exp(1/tau) = 2e17: sums of any length stay far from float32's 3e38
ALLOWED_ERROR = 1e-6  # relative, of float32 products
Temperature = float | Tensor  # tau > 0: a number, or a tensor of one element, which may be learned


@torch.no_grad()
def log_sums(z: Float[Tensor, "m d"], temperature: float) -> Float[Tensor, " m"]:
    """log sum_{a != i} exp(z_i.z_a / temperature) of each row of z, which have length 1; without a gradient."""
    return Tiles(z, temperature).log_sums()


def number(temperature: Temperature) -> float:
    """The temperature's value alone."""
    return float(temperature.detach()) if isinstance(temperature, Tensor) else temperature


def mean_log_sum(
    z: Float[Tensor, "m d"],
    weights: Float64[Tensor, " m"],
    temperature: Temperature,
    world: World,
    sizes: Sequence[int],
    groups: Int[Tensor, " m"] | None,
) -> Float64[Tensor, ""]:
    """sum_i w_i log S_i, a float64, of unit rows z `[M, D]` (M > 1, float32 or float64) and float64 weights w `[M]`.

    Every rank has all of z and w. It computes S of the rows that it brought itself, and receives the other sums: enough
    for the whole gradient of its own rows. That of the others' rows is left at 0.
    """
    if torch._C._are_functorch_transforms_active():
        return (weights * _similarities(z, temperature, groups).logsumexp(1)).sum()
    return _MeanLogSum.apply(z, weights, temperature, world, sizes, groups)


class _MeanLogSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Float[Tensor, "m d"],
        weights: Float64[Tensor, " m"],
        temperature: Temperature,
        world: World,
        sizes: Sequence[int],
        groups: Int[Tensor, " m"] | None,
    ) -> Float64[Tensor, ""]:
        """First pass: S, tile by tile."""
        tiles = Tiles(z, number(temperature), world.rows(sizes), groups)
        keep = ctx.needs_input_grad[0] and z.is_cpu
        log_s = world.gather(tiles.log_sums(KEPT_NUMBERS if keep else 0), sizes)
        log_s = log_s.masked_fill(log_s == -torch.inf, 0)  # all pairs left out: a weight of 0 must give 0, not NaN
        ctx.save_for_backward(z, weights, log_s, temperature if isinstance(temperature, Tensor) else None)
        ctx.tiles, ctx.ranks = tiles, world.size
        return (weights * log_s).sum()

    @staticmethod
    def backward(ctx: Any, g: Float64[Tensor, ""]) -> tuple[Tensor | None, ...]:
        """1/tau W Z times g, and for a tensor tau -1/2 Z.(dL/dZ) / tau: Z times c is tau divided by c^2."""
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return _MeanLogSum._gradients(ctx, g)

    @staticmethod
    def _gradients(ctx: Any, g: Float64[Tensor, ""]) -> tuple[Tensor | None, ...]:
        z, weights, log_s, temperature = ctx.saved_tensors
        if temperature is None:
            temperature = ctx.tiles.temperature
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            if ctx.ranks > 1:
                raise StepclrError("second derivatives of a contrastive loss need all projections in one process")
            gradient = _plain_gradient(z, weights, temperature, ctx.tiles.groups, g)
        else:
            gradient = _tiled_gradient(z, weights, log_s, ctx.tiles, g)
        slope = None
        if ctx.needs_input_grad[2]:
            # Of this rank's rows; DistributedDataParallel, which averages over the ranks, makes it the sum.
            slope = (z * gradient).double().sum() / (-2 * temperature) * ctx.ranks
        return gradient, None, slope, None, None, None


def _tiled_gradient(
    z: Float[Tensor, "m d"],
    weights: Float64[Tensor, " m"],
    log_s: Float[Tensor, " m"],
    tiles: "Tiles",
    g: Float64[Tensor, ""],
) -> Float[Tensor, "m d"]:
    """Second pass: 1/tau W Z times g, tile by tile."""
    w = (g / tiles.temperature * weights).to(z.dtype)

    # What W takes from each row besides w: w/S, or log S where w/S may not fit into float32.
    scale = log_s if tiles.logarithms else w * (-log_s).exp()

    gradient = torch.zeros_like(z)
    with exact_products():
        for rows, columns, mirrored in tiles.places():
            e = tiles.tile(rows, columns)
            w_tile = tiles.run(_weights)(e, scale[rows], scale[columns], w[rows], w[columns], tiles.logarithms)
            gradient[rows].addmm_(w_tile, z[columns])
            if mirrored:
                gradient[columns].addmm_(w_tile.T, z[rows])
    return gradient


def _plain_gradient(
    z: Float[Tensor, "m d"],
    weights: Float64[Tensor, " m"],
    temperature: Temperature,
    groups: Int[Tensor, " m"] | None,
    g: Float64[Tensor, ""],
) -> Float[Tensor, "m d"]:
    """1/tau W Z times g with all M x M numbers at once, in operations that can be differentiated again."""
    shares = weights.to(z.dtype)[:, None] * _similarities(z, temperature, groups).softmax(1)  # w_i e_ij / S_i
    return (g / temperature).to(z.dtype) * ((shares + shares.T) @ z)


def _similarities(
    z: Float[Tensor, "m d"], temperature: Temperature, groups: Int[Tensor, " m"] | None
) -> Float[Tensor, "m m"]:
    """log e of all pairs; a row whose pairs are all left out, whose weight is 0, keeps them and so stays finite."""
    if groups is None:
        groups = torch.arange(len(z), device=z.device)
    left_out = groups[:, None] == groups
    left_out = left_out & ~left_out.all(1, keepdim=True)
    with exact_products():
        return (z @ z.T / temperature).masked_fill(left_out, -torch.inf)


class Tiles:
    """The M x M matrix e, or log e for a small temperature, one tile at a time; only some of its rows if asked."""

    def __init__(
        self,
        z: Float[Tensor, "m d"],
        temperature: float,
        rows: slice | None = None,
        groups: Int[Tensor, " m"] | None = None,
    ) -> None:
        self.temperature, self.groups = temperature, groups
        self.rows = rows or slice(0, len(z))
        self.symmetric = self.rows == slice(0, len(z))
        self.logarithms = temperature < SAFE_TEMPERATURE
        processor = "cuda"
        if z.is_cpu:
            processor = "amd" if amd_family() else "cpu"
        self.sides = TILE_SIZES[processor]
        self.base_2 = processor == "amd" and not self.logarithms
        factor = LOG2_E if self.base_2 else 1.0
        self.z = z * math.sqrt(factor / temperature)  # whose products are those of the tiles
        self.kept: dict[tuple[int, int], Tensor] = {}  # tiles of the first pass, by their first row and column

    def log_sums(self, room: int = 0) -> Float[Tensor, " rows"]:
        """log S of the rows; tiles with up to `room` numbers in all are kept for a second pass."""
        sums = torch.full_like(self.z[:, 0], -torch.inf if self.logarithms else 0)
        add = torch.logaddexp if self.logarithms else torch.add
        # One array for all that is kept: NumPy asks for large pages then, which are many times as fast to get.
        free = torch.from_numpy(np.empty(min(room, len(sums) ** 2), str(sums.dtype).removeprefix("torch.")))
        with exact_products():
            for rows, columns, mirrored in self.places():
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                keeps = math.prod(shape) <= len(free)
                tile = self.tile(rows, columns, free[: math.prod(shape)].view(shape) if keeps else None)
                over_columns, over_rows = self.run(_sums)(tile, self.logarithms)
                add(sums[rows], over_columns, out=sums[rows])
                if mirrored:
                    add(sums[columns], over_rows, out=sums[columns])
                if keeps:
                    self.kept[rows.start, columns.start] = tile
                    free = free[tile.numel() :]
        return (sums if self.logarithms else sums.log())[self.rows]

    def places(self) -> Iterator[tuple[slice, slice, bool]]:
        """(rows, columns) of each tile, and whether it also stands for its mirror image."""
        m = len(self.z)
        height, width = self.sides
        for start in range(self.rows.start, self.rows.stop, height):
            rows = slice(start, min(start + height, self.rows.stop))

            # A square tile on the diagonal, which is its own mirror image.
            yield rows, rows, False

            # Right of it all columns; left of it none, where the mirror images of earlier rows' tiles serve for those.
            left_of_it = (0, 0) if self.symmetric else (0, start)
            for first, last in (left_of_it, (rows.stop, m)):
                for column in range(first, last, width):
                    yield rows, slice(column, min(column + width, last)), self.symmetric

    def tile(self, rows: slice, columns: slice, out: Float[Tensor, "a b"] | None = None) -> Float[Tensor, "a b"]:
        """One tile, without what is left out; in `out`, if given. A kept one is handed out once: it may be changed."""
        kept = self.kept.pop((rows.start, columns.start), None)
        if kept is not None:
            return kept
        groups = None if self.groups is None else (self.groups[rows], self.groups[columns])
        # Not compiled: it is one call of cuBLAS in any case, and inductor would advise to switch TF32 on.
        products = torch.mm(self.z[rows], self.z[columns].T, out=out)
        return self.run(_exponentials)(products, rows == columns, self.logarithms, self.base_2, groups)

    def run(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function itself; on a GPU compiled, so that it passes over the tile fewer times."""
        return _compiled(function) if compiles(self.z.device) else function


def _exponentials(
    tile: Float[Tensor, "a b"],
    on_diagonal: bool,
    logarithms: bool,
    base_2: bool,
    groups: tuple[Int[Tensor, " a"], Int[Tensor, " b"]] | None,
) -> Float[Tensor, "a b"]:
    """e, or log e, of a tile of products; a row is compared neither with itself nor, given `groups`, with its group.

    In place.
    """
    if base_2:
        tile.exp2_()
    elif not logarithms:
        tile.exp_()
    nothing = -torch.inf if logarithms else 0
    if groups is not None:
        tile.masked_fill_(groups[0][:, None] == groups[1], nothing)
    elif on_diagonal:
        tile.fill_diagonal_(nothing)
    return tile


def _sums(tile: Float[Tensor, "a b"], logarithms: bool) -> tuple[Float[Tensor, " a"], Float[Tensor, " b"]]:
    """The sum of e over a tile's columns, and over its rows; or the logarithms of these."""
    if logarithms:
        return tile.logsumexp(1), tile.logsumexp(0)
    return tile.sum(1), tile.sum(0)


def _weights(
    tile: Float[Tensor, "a b"],
    scale_i: Float[Tensor, " a"],
    scale_j: Float[Tensor, " b"],
    w_i: Float[Tensor, " a"],
    w_j: Float[Tensor, " b"],
    logarithms: bool,
) -> Float[Tensor, "a b"]:
    """W of a tile; `scale` is w/S, or log S. In place: this is a tile's last use."""
    if logarithms:
        return (tile - scale_i[:, None]).exp_() * w_i[:, None] + (tile - scale_j).exp_() * w_j
    return tile.mul_(scale_i[:, None] + scale_j)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


@contextmanager
def exact_products() -> Iterator[None]:
    """Float32 matrix products as exact as float32 is, whatever the user has set, in the fastest way there is.

    torch has one setting for the whole process: it is put back when the last thread is done with it, and another one
    that multiplies matrices in the meantime computes with it.
    """
    with _EXACT.lock:
        _EXACT.users += 1
        if _EXACT.users == 1:
            _EXACT.stack.enter_context(_precision(_cpu(), exact_setting()))
            _EXACT.stack.enter_context(_precision(torch.backends.cuda.matmul, "ieee"))
    try:
        yield
    finally:
        with _EXACT.lock:
            _EXACT.users -= 1
            if _EXACT.users == 0:
                _EXACT.stack.close()


@dataclass
class _Exact:
    """Who uses the setting for exact products, and what puts the user's own back."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    users: int = 0
    stack: ExitStack = field(default_factory=ExitStack)


_EXACT = _Exact()


@cache
def exact_setting() -> str:
    """oneDNN's setting for exact products on this processor.

    On AMD's processors oneDNN is about twice as fast as MKL, and only the setting "bf16" selects it. Processors with
    AMX do round to bfloat16 under this setting, so a small product finds out.
    """
    a = torch.arange(1 << 14, dtype=torch.float32, device="cpu").mul(0.7).sin().view(128, 128)
    with _precision(_cpu(), "bf16"):
        product = (a @ a.T).double()
    expected = a.double() @ a.double().T
    return "bf16" if (product - expected).norm() <= ALLOWED_ERROR * expected.norm() else "ieee"


@contextmanager
def _precision(matmul: Any, setting: str) -> Iterator[None]:
    before = matmul.fp32_precision
    matmul.fp32_precision = setting
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _cpu() -> Any:
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
