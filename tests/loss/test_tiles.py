"""The tiled loss against the plain form that it stands for: value, gradient, edges, memory, settings."""

import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck
from touches import Forks

from stepclr import StepclrError, contrastive, nt_xent
from stepclr.loss import tiles
from stepclr.loss.reference import contrastive_plain
from stepclr.loss.tiles import Tiles, exact_products, exact_setting

SMALL = dict.fromkeys(tiles.TILE_SIZES, (3, 5))


def plain_without_positives(z: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """The equation at the head of `contrastive.py` with the first sum over negatives alone, which is masked at once."""
    z = F.normalize(z)
    similarity = z @ z.T / temperature
    same = groups[:, None] == groups
    positive = same & ~torch.eye(len(z), dtype=torch.bool)
    anchors = positive.any(1) & ~same.all(1)
    log_sum = similarity.masked_fill(same, -torch.inf)[anchors].logsumexp(1)
    attraction = (similarity * positive)[anchors].sum(1) / positive[anchors].sum(1)
    return (log_sum - attraction).sum() / anchors.sum().clamp(min=1)


PLAIN = {True: contrastive_plain, False: plain_without_positives}  # by whether positives are in the denominator


def groups_of(kind: str, m: int) -> Tensor:
    rows = torch.arange(m)
    return {
        "images": rows % max(1, m // 2),
        "one class": rows * 0,
        "all distinct": rows,
        "some without positives": torch.where(rows < m // 2, rows % 3, rows),
        "4 views": rows % max(1, m // 4),
    }[kind]


KINDS = ["images", "one class", "all distinct", "some without positives", "4 views"]


def value_and_gradient(loss: partial[Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    leaf = z.clone().requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def check(m: int, kind: str, tau: float, dtype: torch.dtype, positives: bool = True) -> None:
    """Equal to the plain form: to 1e-12 in float64, to 1e-5 of the value and of the whole gradient in float32."""
    z = torch.randn(m, 16, generator=torch.Generator().manual_seed(m), dtype=torch.float64).to(dtype)
    groups = groups_of(kind, m)
    loss = partial(contrastive, groups=groups, temperature=tau, positives_in_denominator=positives)
    value, gradient = value_and_gradient(loss, z)
    expected, slope = value_and_gradient(partial(PLAIN[positives], groups=groups, temperature=tau), z)
    error = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(value, expected, rtol=error, atol=error)
    # Of one pair alone the pulls cancel: the gradient is 0, and what is left is the rounding of terms of 1/tau.
    assert (gradient - slope).norm() <= error * slope.norm().clamp(min=0.1 / tau)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [2, 6, 50])
@pytest.mark.parametrize("tau", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("positives", [True, False], ids=["", "without positives"])
def test_tiles_of_any_shape_add_up_to_the_plain_form(
    m: int, kind: str, tau: float, dtype: torch.dtype, positives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(m, kind, tau, dtype, positives)
    monkeypatch.setattr(tiles, "TILE_SIZES", SMALL)
    check(m, kind, tau, dtype, positives)
    monkeypatch.setattr(tiles, "KEPT_NUMBERS", 40)  # some tiles are kept, others are not
    check(m, kind, tau, dtype, positives)


@pytest.mark.parametrize("family", [26, 0])
@pytest.mark.parametrize("tau", [0.01, 0.5])
def test_the_ways_of_both_makes_of_processors_add_up(family: int, tau: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "amd_family", lambda: family)
    for dtype in (torch.float32, torch.float64):
        check(130, "some without positives", tau, dtype)
        check(130, "images", tau, dtype, positives=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("kind", "tau"), [("images", 0.5), ("some without positives", 0.1), ("4 views", 0.02)])
def test_many_rows_with_the_tiles_as_they_are(kind: str, tau: float, dtype: torch.dtype) -> None:
    check(3074, kind, tau, dtype)  # half of the numbers, by symmetry, are still more than are kept


@pytest.mark.parametrize("tau", [0.01, 0.3])
def test_gradcheck(tau: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE_SIZES", SMALL)
    z = torch.randn(13, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    groups = groups_of("some without positives", 13)
    assert gradcheck(lambda z: contrastive(z, groups, tau), (z,), eps=1e-7, atol=1e-5)


def test_backward_twice_gives_the_gradient_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE_SIZES", SMALL)
    for kept in (0, 20, 10**6):
        monkeypatch.setattr(tiles, "KEPT_NUMBERS", kept)
        z = torch.randn(14, 4, requires_grad=True)
        loss = contrastive(z, torch.arange(14) % 7, 0.5)
        (once,) = torch.autograd.grad(loss, z, retain_graph=True)
        (again,) = torch.autograd.grad(loss, z, retain_graph=True)
        (third,) = torch.autograd.grad(loss, z)
        torch.testing.assert_close(again, once)
        torch.testing.assert_close(third, once)


@pytest.mark.parametrize("tau", [0.01, 0.5])
@pytest.mark.parametrize("sides", [(3, 5), (64, 512)])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_rows_of_a_rank_have_the_sums_that_they_have_among_all(
    tau: float, sides: tuple[int, int], grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = torch.arange(130) % 65 if grouped else torch.arange(130)  # a row is not compared with its group
    z = F.normalize(torch.randn(130, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    whole = (z @ z.T / tau).masked_fill(groups[:, None] == groups, -torch.inf).logsumexp(1)
    monkeypatch.setattr(tiles, "TILE_SIZES", dict.fromkeys(tiles.TILE_SIZES, sides))
    for rows in (slice(0, 130), slice(0, 40), slice(40, 41), slice(41, 130)):
        sums = Tiles(z, tau, rows, groups if grouped else None).log_sums()
        torch.testing.assert_close(sums, whole[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fault", ["the diagonal kept", "a mirror tile forgotten", "rows only", "no temperature"])
def test_the_check_rejects(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE_SIZES", SMALL)
    exponentials, weights, places = tiles._exponentials, tiles._weights, tiles.Tiles.places
    if fault == "the diagonal kept":
        monkeypatch.setattr(tiles, "_exponentials", lambda tile, _, *rest: exponentials(tile, False, *rest))
    elif fault == "a mirror tile forgotten":
        monkeypatch.setattr(tiles.Tiles, "places", lambda self: [(r, c, False) for r, c, _ in places(self)])
    elif fault == "rows only":
        monkeypatch.setattr(tiles, "_weights", lambda t, i, j, *rest: weights(t, i, j * 0, *rest))
    else:
        monkeypatch.setattr(tiles, "_exponentials", lambda tile, *rest: exponentials(tile * 0.5, *rest))
    with pytest.raises(AssertionError):
        check(130, "images", 0.5, torch.float32)


@pytest.mark.parametrize("theirs", ["none", "ieee", "bf16"])
def test_the_users_setting_changes_nothing_and_comes_back(theirs: str) -> None:
    matmul = tiles._cpu()
    z = torch.randn(600, 128, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = nt_xent(z[:300], z[300:])
    (slope,) = torch.autograd.grad(value, z)
    with tiles._precision(matmul, theirs):
        again = nt_xent(z[:300], z[300:])
        (same,) = torch.autograd.grad(again, z)
        assert torch.equal(again, value)
        assert torch.equal(same, slope)
        assert matmul.fp32_precision == theirs
        with exact_products():
            assert matmul.fp32_precision == exact_setting()
        assert matmul.fp32_precision == theirs


def test_the_setting_comes_back_after_an_error() -> None:
    before = tiles._cpu().fp32_precision
    with pytest.raises(StepclrError), tiles._precision(tiles._cpu(), "bf16"), exact_products():
        raise StepclrError("as out of memory")
    assert tiles._cpu().fp32_precision == before


def test_the_setting_is_taken_only_where_it_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "ALLOWED_ERROR", 0.0)
    exact_setting.cache_clear()
    assert exact_setting() == "ieee"
    monkeypatch.setattr(tiles, "ALLOWED_ERROR", 1.0)
    exact_setting.cache_clear()
    assert exact_setting() == "bf16"
    exact_setting.cache_clear()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_grows_with_the_rows_and_not_with_their_square(forked: Forks) -> None:
    code = """
import torch
from stepclr import nt_xent

def peak():  # KiB; getrusage would count the parent's too
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

z = torch.randn(16384, 128, requires_grad=True)
nt_xent(z[:300], z[300:600]).backward()
before = peak()
nt_xent(z[:8192], z[8192:]).backward()
print(peak() - before)
"""
    done = subprocess.run([forked.python, "-c", code], check=True, capture_output=True, text=True)
    assert 20 * 1024 < int(done.stdout) < 200 * 1024  # KiB; one matrix of 16384 x 16384 is 1 GiB
