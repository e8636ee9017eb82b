"""Checkpoints: everything that the next step depends on, in one safetensors file that is written all or nothing."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from stepclr.errors import StepclrError
from stepclr.io import blake, temporary_files, write_whole
from stepclr.model.weights import to_store
from stepclr.pretraining.run import Fields


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: Optimizer, state: Fields, keep: Sequence[int]
) -> None:
    """Write the state after `step` steps. Of the older checkpoints, only the last and those of steps in `keep` stay.

    So do those that were in `keep` when they were written: a run may be resumed with another `keep_every`.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    tensors = to_store(tensors)
    metadata = {"step": str(step), "kept": str(step in keep), "facts": json.dumps(state)}
    content = save(tensors, metadata | {"digest": _digest(tensors, metadata)})
    write_whole(folder / f"step-{step:08d}.safetensors", lambda file: file.write(content))
    for path in checkpoints(folder)[:-2]:
        if step_of(path) not in keep and not _was_to_stay(path):
            path.unlink()


def _was_to_stay(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("kept") == "True"
    except (SafetensorError, OSError):  # it is corrupt
        return False


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: Optimizer, say: Callable[[str], object]
) -> tuple[int, Fields]:
    """Load the newest checkpoint that is intact into model and optimizer; returns (0, {}) where there is none.

    `say` reports each newer one that is truncated or whose bytes have changed since it was written. Raises StepclrError
    if there are checkpoints and none of them is intact, or if one belongs to another network.
    """
    for half in temporary_files(folder):
        half.unlink(missing_ok=True)  # another rank may be faster
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
            if metadata.pop("digest", "") != _digest(tensors, metadata):
                raise OSError("its checksum does not match")
        except (SafetensorError, OSError) as error:
            say(f"{path} is corrupt ({error}): falling back to the previous checkpoint")
            continue
        try:
            of_model = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
            model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in of_model.items()})
        except RuntimeError:
            raise StepclrError(
                f"{path} was saved with a different encoder or head: it belongs to another run"
            ) from None
        _load_optimizer(optimizer, tensors)
        return int(metadata["step"]), json.loads(metadata["facts"])
    if paths:
        raise StepclrError(f"no checkpoint in {folder} can be read; start a new run in another out")
    return 0, {}


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files, oldest first."""
    paths = [path for path in folder.glob("step-*.safetensors") if path.stem.removeprefix("step-").isdecimal()]
    return sorted(paths, key=step_of)


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """A checksum of the tensors' names, types and bytes, and of the metadata."""
    digest = blake(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def step_of(path: Path) -> int:
    """The number of steps after which a checkpoint was saved."""
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
