"""What several tests share: a command in this process, a run of seconds, a network without batch statistics."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import stepclr
from stepclr.cli import main
from stepclr.config import ResolvedConfig, RunConfig
from stepclr.distributed import ALONE, World
from stepclr.loss.objectives import OBJECTIVES
from stepclr.model.files import save_encoder, state_checksum
from stepclr.pretraining.gradcache import simclr_step_in_parts, teacher_logits
from stepclr.pretraining.loop import train_step
from stepclr.pretraining.step import simclr_step

SETTINGS: dict[str, Any] = {
    "encoder": "test_resnet",
    "stem": "small-stride2",
    "epochs": 3,
    "batch_size": 16,
    "head": "32-16",
    "limit": 48,
}
WORDS = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def call(*words: object) -> int:
    """The exit code of one command, run in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def succeed(*words: object) -> None:
    """One command, run in this process, which must end well."""
    assert call(*words) == 0


def untrained_run(
    folder: Path, classes: list[str] | None = None, seed: int = 0, size: int = 16, channels: int = 3
) -> Path:
    """A folder with an encoder that was not trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = stepclr.build_encoder("test_resnet", "small-stride2", size=size, channels=channels)
    encoder.classes = classes or []
    save_encoder(encoder, folder / "encoder.safetensors")
    return folder


def same(a: stepclr.Run, b: stepclr.Run) -> bool:
    """Whether two runs ended with the same encoder, bit for bit."""
    left, right = a.encoder().state_dict(), b.encoder().state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)


def checksum(module: nn.Module) -> str:
    """Of all weights and buffers of a module."""
    return state_checksum(module.state_dict())


def run_config(**changes: Any) -> RunConfig:
    """What config.json of a small run contains."""
    facts: dict[str, Any] = {"source": "sample:train", "classes": [], "labeled": 48, "limit": 48, "images": 48}
    facts |= {"features": 32, "skipped": 0, "names_checksum": "0", "steps_per_epoch": 3, "renderer": "numba"}
    facts |= {"threads": 1, "ranks": 1, "device": "cpu"}
    decided: dict[str, Any] = {
        "encoder": "resnet18",
        "size": 28,
        "min_area": 0.2,
        "lr": 0.12,
        "weight_decay": 5e-4,
        "warmup": 0.3,
        "epochs": 3,
    }
    decided |= {"interpolation": "bicubic", "temperature": 0.5, "precision": "fp32"}
    return RunConfig(**(facts | decided | changes))


def one_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: ResolvedConfig,
    views: Callable[..., torch.Tensor],
    images: Any,
    keys: torch.Tensor,
    labels: torch.Tensor,
    teacher: nn.Module | None = None,
    world: World = ALONE,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One training step, as the loop takes it; labels are a teacher's logits where there is one."""
    algorithm: Callable[..., Any] = simclr_step
    if config.micro_batch:
        algorithm = partial(simclr_step_in_parts, micro_batch=config.micro_batch, world=world)
    if teacher:
        labels = teacher_logits(teacher, views, images, keys, config.micro_batch, world)
    whole = getattr(model, "module", model)  # DistributedDataParallel's
    encoder = whole.get_submodule("encoder") if config.micro_batch or config.checkpoint_activations else None
    inputs = (views, OBJECTIVES[config.loss].bind(config.temperature, world), images, keys, labels)
    return train_step(model, optimizer, algorithm, inputs, nullcontext(), encoder)


def photos_in(folder: Path, count: int = 48) -> Path:
    """A folder of image files, made of the sample."""
    folder.mkdir(parents=True)
    for i, image in enumerate(stepclr.open_images("sample:unlabeled", limit=count).read(range(count))):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:02}.png")
    return folder


def put_where_timm_looks(name: str, seed: int = 0) -> nn.Module:
    """Write weights for a network of timm into the tests' own cache, as a download would; returns the network.

    name: with its tag. After it, "timm:NAME" can be used like any other weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: nn.Module = timm.create_model(name, num_classes=0)
        # BatchNorm as training leaves it: weights above 0, and the statistics of images.
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.data.uniform_(0.5, 1.0)
                layer.momentum = None
        images = torch.stack(list(stepclr.open_images("sample:train", limit=16).read(range(16)))) / 255
        with torch.no_grad():
            network.train()(nn.functional.interpolate(images, (160, 160)) * 4 - 2)
    where = Path(os.environ["HF_HUB_CACHE"]) / f"models--timm--{name}" / "snapshots" / "main"
    where.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), where / "model.safetensors")
    return network.eval()


def training(here: Path, out: Path) -> list[str]:
    """The command that trains on `here`/photos into `out`/run."""
    return ["pretrain", str(here / "photos"), "--out", str(out / "run"), *WORDS]


def differences(a: Path, b: Path) -> list[str]:
    """Which of two finished runs' files differ, timings aside."""
    found = [str(one_has_it) for one_has_it in sorted(_files(a) ^ _files(b))]
    for path in sorted(path for path in _files(a) & _files(b) if path.suffix == ".safetensors"):
        (left, said), (right, of_it) = _tensors(a / path), _tensors(b / path)
        if left.keys() != right.keys() or not all(torch.equal(left[name], right[name]) for name in left):
            found.append(str(path))
        if path.name == "encoder.safetensors" and said != of_it:
            found.append(f"what {path} says of itself")
    return found if _metrics(a) == _metrics(b) else [*found, "metrics.jsonl"]


def _tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118  # not a dict


def _files(run: Path) -> set[Path]:
    return {path.relative_to(run) for path in run.rglob("*")}


def _metrics(run: Path) -> list[dict[str, Any]]:
    timings = ("images_per_second", "waiting", "seconds")
    return [{k: v for k, v in line.items() if k not in timings} for line in stepclr.Run(run).metrics]


def without_batch_statistics(module: nn.Module) -> nn.Module:
    """Every BatchNorm2d becomes a GroupNorm (of one group): it looks at one image alone."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            relu = getattr(child, "act", nn.Identity())  # timm's BatchNormAct2d has its activation inside
            module.set_submodule(name, nn.Sequential(nn.GroupNorm(1, child.num_features), relu))
        else:
            without_batch_statistics(child)
    return module
