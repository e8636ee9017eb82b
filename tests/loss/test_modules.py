"""The losses as modules: the functions' values, and in a user's own process group those of one process."""

import doctest
import subprocess
from pathlib import Path

import own_process_group
import pytest
import torch
from oracle import projections
from own_process_group import CRITERIA, SIZES, batch, model, step
from torch import Tensor
from touches import Forks

import stepclr
from stepclr.loss import modules

Results = dict[str, tuple[Tensor, Tensor]]


def test_the_examples_run() -> None:
    assert doctest.testmod(modules).attempted > 0
    assert doctest.testmod(modules).failed == 0


def test_the_modules_compute_what_the_functions_do() -> None:
    z_i, z_j, labels = projections(6, seed=1), projections(6, seed=2), torch.tensor([0, 0, -1, 1, 1, -1])
    assert stepclr.NTXentLoss()(z_i, z_j) == stepclr.nt_xent(z_i, z_j)
    assert stepclr.NTXentLoss(0.2)(z_i, [z_j, z_i + z_j]) == stepclr.nt_xent(z_i, [z_j, z_i + z_j], 0.2)
    assert stepclr.SupConLoss()(z_i, z_j, labels) == stepclr.supcon(z_i, z_j, labels)
    assert stepclr.SupConLoss(0.5)(z_i, z_j, labels) == stepclr.supcon(z_i, z_j, labels, 0.5)


def test_a_module_says_its_settings_and_refuses_a_temperature_below_0() -> None:
    assert repr(stepclr.NTXentLoss()) == "NTXentLoss(temperature=0.5, gather=True)"
    assert repr(stepclr.SupConLoss(gather=False)) == "SupConLoss(temperature=0.1, gather=False)"
    with pytest.raises(stepclr.StepclrError, match=r"temperature must be above 0, not -0\.5"):
        stepclr.NTXentLoss(-0.5)


@pytest.fixture(scope="module")
def of_ranks(forked: Forks, tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """The results of two processes that init_process_group has joined, and nothing of stepclr's."""
    folder = tmp_path_factory.mktemp("group")
    command = [forked.python, str(own_process_group.__file__)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(len(SIZES)), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(len(SIZES))
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=300)
        assert not rank.returncode, errors
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(len(SIZES))]


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "NT-Xent, not gathered"])
def test_in_a_process_group_of_the_users_own_the_step_is_that_of_one_process(
    name: str, of_ranks: list[Results]
) -> None:
    value, gradient = step(model(), name, *batch())
    for results in of_ranks:
        torch.testing.assert_close(results[name][0], value, rtol=1e-12, atol=0)
        torch.testing.assert_close(results[name][1], gradient, rtol=1e-10, atol=1e-12)


def test_without_gathering_each_rank_contrasts_its_own_projections(of_ranks: list[Results]) -> None:
    name = "NT-Xent, not gathered"
    views, labels = batch()
    shares = zip(*(view.split(SIZES) for view in views), strict=True)
    alone = [step(model(), name, list(share), own) for share, own in zip(shares, labels.split(SIZES), strict=True)]
    for results, (value, _) in zip(of_ranks, alone, strict=True):
        torch.testing.assert_close(results[name][0], value, rtol=1e-12, atol=0)
        mean = torch.stack([gradient for _, gradient in alone]).mean(0)
        torch.testing.assert_close(results[name][1], mean, rtol=1e-10, atol=1e-12)
