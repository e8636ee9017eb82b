"""What several tests train: a run of seconds, and a network without batch statistics."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

import stepclr
from stepclr.model.files import state_checksum

SETTINGS: dict[str, Any] = {
    "encoder": "test_resnet",
    "stem": "small-stride2",
    "epochs": 3,
    "batch_size": 16,
    "head": "32-16",
    "limit": 48,
}
WORDS = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def same(a: stepclr.Run, b: stepclr.Run) -> bool:
    """Whether two runs ended with the same encoder, bit for bit."""
    left, right = a.encoder().state_dict(), b.encoder().state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)


def checksum(module: nn.Module) -> str:
    """Of all weights and buffers of a module."""
    return state_checksum(module.state_dict())


def photos_in(folder: Path, count: int = 48) -> Path:
    """A folder of image files, made of the sample."""
    folder.mkdir(parents=True)
    for i, image in enumerate(stepclr.open_images("sample:unlabeled", limit=count).read(range(count))):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:02}.png")
    return folder


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
