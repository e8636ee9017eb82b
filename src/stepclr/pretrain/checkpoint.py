"""Checkpoints: all that step k needs to go on, in one safetensors file that appears whole or not at all."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from stepclr.data.disk import write_whole
from stepclr.errors import StepclrError
from stepclr.pretrain.folder import Fields


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: Optimizer, facts: Fields, keep: list[int]
) -> None:
    """Write the state after `step` steps; of the older checkpoints only the last and those of steps in `keep` stay."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    metadata = {"step": str(step), "facts": json.dumps(facts)}
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    write_whole(folder / f"step-{step:08d}.safetensors", lambda file: file.write(content))
    for path in checkpoints(folder)[:-2]:
        if _step(path) not in keep:
            path.unlink()


def load_checkpoint(folder: Path, model: nn.Module, optimizer: Optimizer) -> tuple[int, Fields]:
    """Put the newest checkpoint that can be read into model and optimiser; (0, {}) where there is none.

    Raises StepclrError if there are checkpoints and none of them can be read, or if one is of another network.
    """
    for torn in folder.glob(".*.tmp"):  # what a kill left of a checkpoint half written
        torn.unlink()
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        except (SafetensorError, OSError):
            continue
        try:
            model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
        except RuntimeError:
            raise StepclrError(
                f"{path} is of another encoder or head than this run's: it belongs to another run"
            ) from None
        _load_optimizer(optimizer, tensors)
        return int(metadata["step"]), json.loads(metadata["facts"])
    if paths:
        raise StepclrError(f"no checkpoint in {folder} can be read; begin again with another --out")
    return 0, {}


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files, oldest first."""
    return sorted(folder.glob("step-*.safetensors"), key=_step)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, field = name.split(".")
            parameter = parameters[int(index)]
            if tensor.shape == parameter.shape:
                # In the parameter's memory format: with another, other kernels would run, and round differently.
                tensor = torch.empty_like(parameter).copy_(tensor)
            else:
                tensor = tensor.to(parameter.device)  # AdamW's count of steps, where it is fused
            optimizer.state[parameter][field] = tensor
