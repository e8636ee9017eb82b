"""log sum_{a != i} exp(z_i.z_a / tau) for all M rows at once, in tiles: memory O(M D + tile^2), not O(M^2).

With e_ij = exp(z_i.z_j / tau) for j != i, e_ii = 0, and S_i = sum_j e_ij, the mean of log S_i by weights w has

    dL/dZ = 1/tau W Z,    W_ij = e_ij (w_i/S_i + w_j/S_j)

e and W are symmetric: a tile above the diagonal serves the rows of both its sides, which halves the work. Unit rows
keep e below exp(1/tau); where that leaves float32 no room (tau < SAFE) the sums are kept as logarithms, each with the
maximum seen so far. Many ranks share out the rows, and each meets all columns.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from stepclr.distributed import World

SIDES = {"cpu": (256, 512), "cuda": (4096, 4096)}  # of a tile; on a CPU some float32 tiles fit into a core's cache
KEPT = 2**22  # numbers of the first pass that the second need not compute again: 16 MiB in float32
SAFE = 0.025  # exp(1/tau) = 2e17: sums of any length stay far from float32's 3e38
EXACT = 1e-6  # relative error that float32 products may have


class MeanLogSum(torch.autograd.Function):
    """sum_i w_i log S_i, a float64, of unit rows z `[M, D]` (M > 1, float32 or float64) and float64 weights w `[M]`.

    Of many ranks each has all of z, sums the rows it brought itself and is told the M sums of the others: enough for
    the whole gradient on its own rows. On the others' rows it is left at 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Float[Tensor, "m d"],
        weights: Float64[Tensor, " m"],
        temperature: float,
        world: World,
        sizes: Sequence[int],
    ) -> Float64[Tensor, ""]:
        """The sums, tile by tile."""
        matrix = Tiles(z, temperature, world.rows(sizes))
        own = matrix.log_sums(KEPT if ctx.needs_input_grad[0] and not z.is_cuda else 0)
        log_sums = world.gather(own, sizes)
        ctx.save_for_backward(z, weights, log_sums)
        ctx.matrix = matrix
        return (weights * log_sums).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Float64[Tensor, ""]) -> tuple[Float[Tensor, "m d"], None, None, None, None]:
        """1/tau W Z, tile by tile, w having been multiplied by g."""
        z, weights, log_sums = ctx.saved_tensors
        w = (g / ctx.matrix.temperature * weights).to(z.dtype)
        matrix: Tiles = ctx.matrix
        share = log_sums if matrix.logarithms else w * (-log_sums).exp()  # log S, or w/S
        gradient = torch.zeros_like(z)
        with exact_products():
            for rows, columns, both in matrix.pairs():
                tile = matrix.tile(rows, columns)
                pull = matrix.run(_weights)(tile, share[rows], share[columns], w[rows], w[columns], matrix.logarithms)
                gradient[rows].addmm_(pull, z[columns])
                if both:
                    gradient[columns].addmm_(pull.T, z[rows])
        return gradient, None, None, None, None


class Tiles:
    """Rows of the M x M matrix e (or log e, for a small temperature), a tile at a time; all of them by default."""

    def __init__(self, z: Float[Tensor, "m d"], temperature: float, rows: slice | None = None) -> None:
        self.temperature, self.rows = temperature, rows or slice(0, len(z))
        self.symmetric = self.rows == slice(0, len(z))
        self.logarithms = temperature < SAFE
        self.left, self.right = z / temperature, z.T.contiguous()
        self.kept: dict[tuple[int, int], Tensor] = {}  # by their first row and column

    def log_sums(self, room: int = 0) -> Float[Tensor, " rows"]:
        """log S of the rows; tiles of `room` numbers in all are kept for a second pass."""
        sums = torch.full_like(self.left[:, 0], -torch.inf if self.logarithms else 0)
        add = torch.logaddexp if self.logarithms else torch.add
        with exact_products():
            for rows, columns, both in self.pairs():
                tile = self.tile(rows, columns)
                across, down = self.run(_sums)(tile, self.logarithms)
                add(sums[rows], across, out=sums[rows])
                if both:
                    add(sums[columns], down, out=sums[columns])
                if tile.numel() <= room:
                    self.kept[rows.start, columns.start] = tile
                    room -= tile.numel()
        return (sums if self.logarithms else sums.log())[self.rows]

    def pairs(self) -> Iterator[tuple[slice, slice, bool]]:
        """(rows, columns) of each tile, and whether it stands for its mirror image too.

        Those on the diagonal are square; left of them are others only where some rows are missing.
        """
        m = len(self.left)
        high, wide = SIDES[self.left.device.type if self.left.is_cuda else "cpu"]
        for start in range(self.rows.start, self.rows.stop, high):
            rows = slice(start, min(start + high, self.rows.stop))
            yield rows, rows, False
            for first, last in ((0, 0 if self.symmetric else start), (rows.stop, m)):
                for left in range(first, last, wide):
                    yield rows, slice(left, min(left + wide, last)), self.symmetric

    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "a b"]:
        """One tile, its diagonal left out. A kept one is handed out once: its next user may change it."""
        kept = self.kept.pop((rows.start, columns.start), None)
        if kept is not None:
            return kept
        tile: Tensor = self.run(_tile)(self.left[rows], self.right[:, columns], rows == columns, self.logarithms)
        return tile

    def run(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function itself, or compiled into fewer passes over the tile where it lies on a GPU."""
        return _compiled(function) if self.left.is_cuda else function


def _tile(
    left: Float[Tensor, "a d"], right: Float[Tensor, "d b"], on_diagonal: bool, logarithms: bool
) -> Float[Tensor, "a b"]:
    tile = left @ right
    if not logarithms:
        tile.exp_()
    return tile.fill_diagonal_(-torch.inf if logarithms else 0) if on_diagonal else tile


def _sums(tile: Float[Tensor, "a b"], logarithms: bool) -> tuple[Float[Tensor, " a"], Float[Tensor, " b"]]:
    """Of e across and down, or the logarithms of these."""
    return (tile.logsumexp(1), tile.logsumexp(0)) if logarithms else (tile.sum(1), tile.sum(0))


def _weights(
    tile: Float[Tensor, "a b"],
    share_i: Float[Tensor, " a"],
    share_j: Float[Tensor, " b"],
    w_i: Float[Tensor, " a"],
    w_j: Float[Tensor, " b"],
    logarithms: bool,
) -> Float[Tensor, "a b"]:
    """W of a tile; `share` is w/S, or log S. In place: this is a tile's last use."""
    if logarithms:
        return (tile - share_i[:, None]).exp_() * w_i[:, None] + (tile - share_j).exp_() * w_j
    return tile.mul_(share_i[:, None] + share_j)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


@contextmanager
def exact_products() -> Iterator[None]:
    """Float32 matrix products as exact as float32 is, whatever the user has set, by the faster way there is."""
    with _precision(_cpu(), exact_setting()), _precision(torch.backends.cuda.matmul, "ieee"):
        yield


@cache
def exact_setting() -> str:
    """oneDNN's setting for exact products on this processor.

    On AMD's, oneDNN is about twice as fast as MKL, and the setting "bf16" is what leads there; whether that rounds to
    bfloat16 for real, as on processors with AMX, a small product tells.
    """
    a = torch.arange(1 << 14).mul(0.7).sin().view(128, 128)
    with _precision(_cpu(), "bf16"):
        found = (a @ a.T).double()
    wanted = a.double() @ a.double().T
    return "bf16" if (found - wanted).norm() <= EXACT * wanted.norm() else "ieee"


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
