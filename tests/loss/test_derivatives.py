"""The losses differentiated twice, by a temperature that is learned, and through `torch.func`."""

from collections.abc import Callable

import pytest
import torch
from oracle import Loss, projections, supcon_eq_2_and_3
from test_decoupled import dcl, decoupled_loops
from torch import Tensor, nn
from torch.autograd.functional import hessian

from stepclr import NTXentLoss, StepclrError, SupConLoss, contrastive, nt_xent, supcon
from stepclr.distributed import ALONE
from stepclr.loss import tiles
from stepclr.loss.objectives import OBJECTIVES

IMAGES = [0, 1, 2, 0, 1, 2]
LABELS = [0, 0, -1, 1]


def of_nt_xent(z: Tensor, _: Tensor, tau: float | Tensor) -> Tensor:
    z_i, z_j = z.chunk(2)
    return nt_xent(z_i, z_j, tau)


def of_supcon(z: Tensor, _: Tensor, tau: float | Tensor) -> Tensor:
    z_i, z_j = z.chunk(2)
    return supcon(z_i, z_j, torch.tensor(LABELS), tau)


def of_the_module(z: Tensor, _: Tensor, tau: float | Tensor) -> Tensor:
    loss: Tensor = NTXentLoss(tau)(*z.chunk(2))
    return loss


# Each loss, its loops in float64, and the groups of its projections; -1, which has no label, is group 9 of its own.
LOSSES: dict[str, tuple[Callable[..., Tensor], Loss, list[int]]] = {
    "contrastive": (contrastive, supcon_eq_2_and_3, [0, 1, 0, 2, 1, 1, 0]),
    "nt_xent": (of_nt_xent, supcon_eq_2_and_3, IMAGES),
    "NTXentLoss": (of_the_module, supcon_eq_2_and_3, IMAGES),
    "supcon": (of_supcon, supcon_eq_2_and_3, [0, 0, 9, 1] * 2),
    "dcl": (dcl, decoupled_loops, IMAGES),
}
# torch's own, in torch.func.hessian.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
each_loss = pytest.mark.parametrize(("loss", "oracle", "ids"), LOSSES.values(), ids=LOSSES)


@each_loss
@pytest.mark.parametrize("tau", [0.4, 0.02])
def test_second_derivatives_are_those_of_the_loops(
    loss: Callable[..., Tensor], oracle: Loss, ids: list[int], tau: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TILE_SIZES", dict.fromkeys(tiles.TILE_SIZES, (3, 2)))
    z, groups = projections(len(ids), width=3), torch.tensor(ids)
    expected = hessian(lambda z: oracle(z, groups, tau), z)
    torch.testing.assert_close(hessian(lambda z: loss(z, groups, tau), z), expected, rtol=1e-9, atol=1e-9)
    by_func = torch.func.hessian(lambda z: loss(z, groups, tau))(z)
    torch.testing.assert_close(by_func, expected, rtol=1e-9, atol=1e-9)


def test_a_hessian_vector_product_in_float32_is_right_too() -> None:
    z, v, groups = projections(8, dtype=torch.float32), projections(8, seed=1), torch.tensor([0, 1, 2, 3] * 2)
    z = nn.functional.normalize(z)

    def product(loss: Loss, z: Tensor, v: Tensor) -> Tensor:
        leaf = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf, groups, 0.1), leaf, create_graph=True)
        (found,) = torch.autograd.grad((slope * v).sum(), leaf)
        return found

    found, expected = product(contrastive, z, v.float()), product(supcon_eq_2_and_3, z.double(), v)
    assert (found - expected).norm() < 1e-5 * expected.norm()


@each_loss
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_temperature_that_is_learned_has_the_value_and_the_gradient_of_the_loops(
    loss: Callable[..., Tensor], oracle: Loss, ids: list[int], shape: tuple[int, ...]
) -> None:
    z, groups = projections(len(ids)), torch.tensor(ids)
    for number in (0.4, 0.02):
        for learns_z in (False, True):
            taus = [nn.Parameter(torch.full(shape, number, dtype=torch.float64)) for _ in range(2)]
            z.requires_grad_(learns_z)
            values = [loss(z, groups, taus[0]), oracle(z, groups, taus[1])]
            torch.testing.assert_close(values[0], values[1].reshape(()), rtol=1e-11, atol=1e-12)
            for value in values:
                value.sum().backward()
            torch.testing.assert_close(taus[0].grad, taus[1].grad, rtol=1e-10, atol=1e-12)


def test_a_gradient_of_the_temperature_can_be_differentiated_again() -> None:
    z, groups = projections(5, width=3), torch.tensor([0, 1, 0, 1, 2])
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda z, tau: contrastive(z / 4, groups, tau), (z.requires_grad_(), tau))


def test_a_module_lists_the_temperature_that_it_learns() -> None:
    criterion = SupConLoss(nn.Parameter(torch.tensor([0.1])))
    assert [name for name, _ in criterion.named_parameters()] == ["temperature"]
    assert repr(criterion) == "SupConLoss(temperature=0.1, gather=True)"
    assert not list(NTXentLoss().parameters())


def test_a_temperature_is_one_number_above_0() -> None:
    z = projections(4)
    with pytest.raises(StepclrError, match=r"one number, not a tensor of shape \[2\]"):
        contrastive(z, torch.tensor([0, 1, 0, 1]), torch.tensor([0.1, 0.2]))
    with pytest.raises(StepclrError, match=r"above 0, not -0\.5"):
        NTXentLoss(torch.tensor(-0.5))


@pytest.mark.parametrize("loss", [nt_xent, NTXentLoss()])
def test_one_view_alone_is_refused(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(StepclrError, match="z_j is an empty list; NT-Xent needs at least two views"):
        loss(projections(3), [])
    assert supcon(projections(3), [], torch.tensor([0, 0, 1])) > 0  # here labels make positives


def test_where_no_anchor_is_left_every_derivative_is_0() -> None:
    def dcl_of_one_image(z: Tensor) -> Tensor:
        return OBJECTIVES["dcl"].loss(z.chunk(2), torch.tensor([-1]), 0.5, ALONE)

    assert not hessian(dcl_of_one_image, projections(2)).any()
    assert not torch.func.hessian(dcl_of_one_image)(projections(2)).any()


def test_func_maps_over_projections_and_differentiates() -> None:
    batches, groups = torch.stack([projections(6, seed=0), projections(6, seed=1)]), torch.tensor(IMAGES)

    def loss(z: Tensor) -> Tensor:
        return contrastive(z, groups, 0.3)

    values, slopes = torch.func.vmap(loss)(batches), torch.func.vmap(torch.func.grad(loss))(batches)
    for z, value, slope in zip(batches, values, slopes, strict=True):
        torch.testing.assert_close(value, loss(z), rtol=1e-12, atol=1e-12)
        (expected,) = torch.autograd.grad(loss(leaf := z.clone().requires_grad_()), leaf)
        torch.testing.assert_close(slope, expected, rtol=1e-11, atol=1e-12)
