"""One training step of every case by as many ranks as torchrun starts: loss and gradient, for test_distributed.py.

PYTHONPATH=tests python -m torch.distributed.run --standalone --nproc-per-node 4 tests/pretraining/ranks_job.py OUT.pt
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from small import one_step, without_batch_statistics
from torch import Tensor, nn

import stepclr
from stepclr import distributed
from stepclr.config import PretrainConfig
from stepclr.distributed import ALONE, World, join
from stepclr.loss import objectives, tiles
from stepclr.model.classifier import Classifier
from stepclr.pretraining.ddp import averaged, synchronize_norms
from stepclr.pretraining.model import build_model
from stepclr.pretraining.optim import build_optimizer
from stepclr.pretraining.resolve import resolve, views_of

N = 22  # 2 ranks have 11 each; 4 have 5, 6, 5 and 6
CONFIG = PretrainConfig("test_resnet", stem="small-stride2", head="32-16", batch_size=N, epochs=1, precision="fp32")


@dataclass(frozen=True)
class Case:
    """Some training steps; `group_norm` stands in for the encoder's BatchNorm, and has no batch statistics."""

    options: dict[str, Any] = field(default_factory=dict)
    group_norm: bool = False
    dtype: torch.dtype = torch.float64
    steps: int = 1


CASES = {
    "nt_xent": Case(),
    "nt_xent, 12 steps": Case({"warmup": 0.0}, steps=12),
    "nt_xent, float32": Case(dtype=torch.float32),
    "nt_xent at a small temperature": Case({"temperature": 0.02}),
    "nt_xent, 4 views": Case({"views": 4}),
    "supcon": Case({"loss": "supcon", "temperature": 0.1}),
    "supcon, float32": Case({"loss": "supcon", "temperature": 0.1}, dtype=torch.float32),
    "nt_xent, cached gradients": Case({"micro_batch": 4}, group_norm=True),
    "supcon, cached gradients": Case({"loss": "supcon", "micro_batch": 4}, group_norm=True),
    "cached gradients, float32": Case({"micro_batch": 4}, group_norm=True, dtype=torch.float32),
    "dcl": Case({"loss": "dcl"}),
    "dcl, 4 views at a small temperature": Case({"loss": "dcl", "views": 4, "temperature": 0.02}),
    "cross-entropy": Case({"loss": "cross-entropy"}),
    "distill": Case({"loss": "distill", "teacher": "planted"}),
}


def train(case: Case, world: World) -> dict[str, Tensor]:
    """Loss, whole gradient and running statistics of the last step on the sample's first images."""
    images = stepclr.open_images("sample:train", limit=N)
    images.labels[::3] = -1
    torch.manual_seed(0)
    teacher = None
    if case.options.get("loss") == "distill":
        own = stepclr.build_encoder("test_resnet", "small-stride2", size=28)
        teacher = Classifier(own, images.classes).to(case.dtype).eval()
    config = resolve(PretrainConfig(**{**vars(CONFIG), **case.options}), images, teacher)
    model = build_model(config, images, teacher).train()
    if case.group_norm:
        without_batch_statistics(model.encoder)
    model.to(case.dtype)
    forward: nn.Module = model
    if world.size > 1:
        synchronize_norms(model, world)
        forward = averaged(model)
    share = world.share(N)
    keys, pixels = stepclr.view_keys(0, 0, range(N))[share], images.read(range(N))[share]
    labels = torch.from_numpy(images.labels)[share]
    views = views_of(config)
    optimizer = build_optimizer(model, config)

    def precise(pixels: Any, keys: Any) -> Tensor:
        return views(pixels, keys).to(case.dtype)

    for _ in range(case.steps):
        loss, _ = one_step(forward, optimizer, config, precise, pixels, keys, labels, teacher, world)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    buffers = torch.cat([buffer.double().flatten() for buffer in model.buffers()])
    return {"loss": loss, "gradient": gradient.clone(), "buffers": buffers}


def own_anchors_only(z_i: Tensor, z_j: list[Tensor], temperature: float, world: World = ALONE) -> Tensor:
    """What is often written: the others' projections are constants, and each rank averages over its own anchors."""
    z = F.normalize(torch.cat([z_i, *z_j]))
    sizes = world.sizes(len(z))
    every = world.gather(z, sizes)
    rows = world.rows(sizes)
    every = torch.cat([every[: rows.start], z, every[rows.stop :]])
    similarity = z @ every.T / temperature
    itself = torch.arange(rows.start, rows.stop)
    similarity = similarity.scatter(1, itself[:, None], -torch.inf)
    partner = rows.start + torch.arange(len(z)).roll(len(z_i))
    return F.cross_entropy(similarity, partner)


class _TooSmall(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World, sizes: Any) -> Tensor:
        ctx.rows = world.rows(sizes)
        return world.gather(x, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.rows], None, None


def mutants() -> dict[str, tuple[Any, str, Any]]:
    """The wrong gathers: where, which name, and what is put there."""
    right = stepclr.nt_xent
    return {
        "no gradient from the others": (objectives, "nt_xent", own_anchors_only),
        "the local slice alone": (objectives, "nt_xent", lambda z_i, z_j, tau, _: right(z_i, z_j, tau)),
        "1/W too small": (distributed, "_GatherWithGradient", _TooSmall),
        "the others' sums forgotten": (tiles, "_weights", _own_sums_only),
    }


def _own_sums_only(tile: Tensor, share_i: Tensor, share_j: Tensor, *rest: Any) -> Tensor:
    del rest
    return tile.mul_(share_i[:, None] + 0 * share_j)


def main(out: Path) -> None:
    world = join()
    tiles.TILE_SIZES |= dict.fromkeys(tiles.TILE_SIZES, (3, 5))  # so that a rank's rows and columns take several
    results = {name: train(case, world) for name, case in CASES.items()}
    for name, (where, attribute, wrong) in mutants().items():
        right = getattr(where, attribute)
        setattr(where, attribute, wrong)
        results[name] = train(CASES["nt_xent"], world)
        setattr(where, attribute, right)
    if world.first:
        torch.save(results, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
