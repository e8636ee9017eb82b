"""Time and memory of the contrastive loss, forward and backward, on one core: tiled against plain, and the peers' own.

    pip install '.[bench]'
    python benchmarks/loss.py [--rows 512,2048,8192] [--rounds 7] [--large 65536]

D = 128, temperature 0.5, float32, random projections of two views. "plain" is what is commonly written:

    z = normalize(cat([a, b])); s = z @ z.T / t; s.fill_diagonal_(-1e9); cross_entropy(s, arange(M).roll(M // 2))

Every round times each loss once, in turn; seconds are medians, ratios are plain's median over the loss's. stepclr sets
how oneDNN multiplies matrices in float32 (see `exact_setting` in loss/tiles.py; "ieee" there means that nothing is
set); "without the setting" leaves that as the user has it, and "plain with the setting" has what stepclr sets. Memory
is what a process of its own needs beyond the projections, at its peak. A loss is left out where one call would take
more than 16 GiB or a minute.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from unittest.mock import patch

import torch
import torch.nn.functional as F
from memory import in_own_process, peak_mebibytes
from torch import Tensor

import stepclr
from stepclr.loss import tiles

try:
    from lightly.loss import NTXentLoss as LightlyLoss
    from pytorch_metric_learning.losses import NTXentLoss as MetricLearningLoss
except ModuleNotFoundError as missing:
    sys.exit(f"this compares with {missing.name}, which is not installed: pip install '.[bench]'")

WIDTH, TEMPERATURE = 128, 0.5
PLAIN_SET = "plain with the setting"
MOST_ROWS = {"pytorch-metric-learning": 512, "plain": 16384, PLAIN_SET: 16384, "lightly": 16384}  # memory: M^3, M^2
Loss = Callable[[Tensor, Tensor], Tensor]


def plain(a: Tensor, b: Tensor) -> Tensor:
    z = F.normalize(torch.cat([a, b]))
    s = z @ z.T / TEMPERATURE
    s.fill_diagonal_(-1e9)
    return F.cross_entropy(s, torch.arange(len(z)).roll(len(a)))


def ours(a: Tensor, b: Tensor) -> Tensor:
    return stepclr.nt_xent(a, b, TEMPERATURE)


def metric_learning(a: Tensor, b: Tensor) -> Tensor:
    loss: Tensor = MetricLearningLoss(TEMPERATURE)(torch.cat([a, b]), torch.arange(len(a)).repeat(2))
    return loss


LOSSES: dict[str, Loss] = {
    "plain": plain,
    PLAIN_SET: plain,
    "stepclr": ours,
    "stepclr without the setting": ours,
    "lightly": LightlyLoss(TEMPERATURE),
    "pytorch-metric-learning": metric_learning,
}


def projections(rows: int) -> tuple[Tensor, Tensor]:
    """Two views' projections, as leaves."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows // 2, WIDTH, generator=generator, requires_grad=True) for _ in range(2))
    return a, b


def step(name: str, a: Tensor, b: Tensor) -> tuple[float, Tensor]:
    """Value and gradient of one loss."""
    a.grad = b.grad = None
    setting = "none" if name == "stepclr without the setting" else tiles.exact_setting()
    setting_of_plain = tiles.exact_products() if name == PLAIN_SET else nullcontext()
    with setting_of_plain, patch.object(tiles, "exact_setting", lambda: setting):
        loss = LOSSES[name](a, b)
        loss.backward()
    assert a.grad is not None
    assert b.grad is not None
    return loss.item(), torch.cat([a.grad, b.grad])


def extra_mebibytes(name: str, rows: int) -> float:
    """Peak memory of one forward and backward pass beyond what was there before; for `in_own_process`."""
    torch.set_num_threads(1)
    step(name, *projections(64))  # libraries are loaded
    a, b = projections(rows)
    before = peak_mebibytes()
    step(name, a, b)
    return peak_mebibytes() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="512,2048,8192")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--large", type=int, default=65536)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, one thread, exact setting {tiles.exact_setting()!r}; torch "
        f"{version('torch')}, lightly {version('lightly')}, "
        f"pytorch-metric-learning {version('pytorch-metric-learning')}, stepclr {stepclr.__version__}\n"
    )
    print("| M | loss | milliseconds | plain / it | extra memory, MiB | plain / it | gradient's distance from plain |")
    print("|---|---|---|---|---|---|---|")
    for rows in map(int, given.rows.split(",")):
        names = [name for name in LOSSES if rows <= MOST_ROWS.get(name, rows)]
        a, b = projections(rows)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        gradients: dict[str, Tensor] = {}
        for _ in range(given.rounds):
            for name in names:
                begun = time.perf_counter()
                _, gradients[name] = step(name, a, b)
                seconds[name].append(time.perf_counter() - begun)
        base, memory = statistics.median(seconds["plain"]), in_own_process(extra_mebibytes, "plain", rows)
        for name in names:
            spent, grown = statistics.median(seconds[name]), in_own_process(extra_mebibytes, name, rows)
            off = (gradients[name] - gradients["plain"]).norm() / gradients["plain"].norm()
            print(
                f"| {rows:,} | {name} | {1000 * spent:,.1f} | {base / spent:.2f} | {grown:,.0f} | "
                f"{memory / max(grown, 0.1):.1f} | {off:.1e} |",
                flush=True,
            )
    begun = time.perf_counter()
    grown = in_own_process(extra_mebibytes, "stepclr", given.large)
    print(
        f"\nM = {given.large:,}: {grown:,.0f} MiB extra, {time.perf_counter() - begun:.0f} s with the process's start"
    )


if __name__ == "__main__":
    main()
