"""A user's own training step in a process group of their own, for test_modules.py: value and gradient of each loss.

python tests/loss/own_process_group.py RANK RANKS FOLDER
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import stepclr

SIZES = [5, 6]  # images of each rank
CRITERIA = {
    "NT-Xent": stepclr.NTXentLoss(),
    "NT-Xent at a small temperature": stepclr.NTXentLoss(temperature=0.02),
    "SupCon": stepclr.SupConLoss(),
    "NT-Xent, temperature learned": stepclr.NTXentLoss(nn.Parameter(torch.tensor(0.3, dtype=torch.float64))),
    "NT-Xent, not gathered": stepclr.NTXentLoss(gather=False),
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(7, 4).double()


def batch() -> tuple[list[Tensor], Tensor]:
    """Three views of all ranks' images, and labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, sum(SIZES), 7, generator=generator, dtype=torch.float64)
    return list(x), torch.tensor([0, 1, -1, 0, 2, 1, -1, 0, 0, 2, 1])


def step(model: nn.Module, name: str, views: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of one loss, as a user would write it; a temperature that is learned has the last number."""
    model.zero_grad()
    CRITERIA[name].zero_grad()
    z_i, *z_j = model(torch.cat(views)).chunk(len(views))
    given = (z_i, z_j, labels) if name == "SupCon" else (z_i, z_j)
    loss = CRITERIA[name](*given)
    loss.backward()
    learned = [weight.grad for weight in model.parameters() if weight.grad is not None]
    for weight in CRITERIA[name].parameters():
        assert weight.grad is not None
        if dist.is_initialized():  # the mean over the ranks, as DistributedDataParallel takes it
            dist.all_reduce(weight.grad)
            weight.grad /= dist.get_world_size()
        learned.append(weight.grad)
    return loss.detach(), torch.cat([slope.flatten() for slope in learned])


def main(rank: int, ranks: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=ranks)
    begin = sum(SIZES[:rank])
    rows = slice(begin, begin + SIZES[rank])
    views, labels = batch()
    parallel = DistributedDataParallel(model())
    results = {name: step(parallel, name, [view[rows] for view in views], labels[rows]) for name in CRITERIA}
    z = torch.eye(4, requires_grad=True)
    try:
        torch.autograd.grad(stepclr.NTXentLoss()(z, z), z, create_graph=True)
    except stepclr.StepclrError as error:
        assert "in one process" in str(error)  # noqa: PT017
    else:
        raise AssertionError("second derivatives among ranks would be wrong, and were given")
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
