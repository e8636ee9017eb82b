"""A GPU's stand-in with values, on which whole commands run: a tensor on the device "gpu" holds one of the CPU.

Unlike torch's device "meta" it computes. An operation on tensors of both devices raises, as it does on a GPU, and what
would make the host wait for a GPU is counted.

    python gpu_stand_in.py FOLDER  # pretrains there, does what one does with a run, and prints what it has counted
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import stepclr
from stepclr.device import default_device
from stepclr.pretraining import batches, gpu_cache
from stepclr.tools.doctor.estimate import Prepared, throughput

CPU = torch.device("cpu")
MOVES = {"aten::copy_", "aten::_to_copy", "aten::to"}  # may have tensors of both devices
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::equal"}
waited = 0


class OnGpu(Tensor):
    """A tensor on the stand-in."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=gpu(),
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None: ...

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        out = computed(function, *args, **(kwargs or {}))
        if isinstance(out, Tensor) and (not isinstance(out, OnGpu) or function._schema.name == "aten::to"):
            return out
        return return_and_correct_aliasing(function, args, kwargs or {}, out)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = OnGpu(self.held.clone()).requires_grad_(self.requires_grad)
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        made: Tensor = memo[id(self)]
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a tensor of a GPU cannot become an array of NumPy")


def computed(function: Any, *args: Any, **kwargs: Any) -> Any:
    """The operation on the tensors that are held; its result is on the device that the operation is for."""
    global waited
    name, target = function._schema.name, kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    of_gpu = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    of_cpu = [tensor for tensor in tensors if not isinstance(tensor, OnGpu)]
    if of_gpu and name not in MOVES and any(tensor.ndim for tensor in of_cpu):
        raise RuntimeError(f"{name} is given tensors of both devices: {[tuple(tensor.shape) for tensor in tensors]}")
    by_mask = name.startswith("aten::index") and any(tensor.dtype == torch.bool for tensor in of_gpu[1:])
    to_host = name in MOVES and (target == CPU or (name == "aten::copy_" and not isinstance(args[0], OnGpu)))
    if of_gpu and (name in WAITS or by_mask or to_host):
        waited += 1
    there = bool(of_gpu) if target is None else torch.device(target) != CPU
    if target is not None:
        kwargs["device"] = CPU
    known: dict[int, OnGpu] = {}

    def hold(leaf: Any) -> Any:
        if not isinstance(leaf, OnGpu):
            return leaf
        known[id(leaf.held)] = leaf
        return leaf.held

    def wrap(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else OnGpu(leaf)  # what is changed in place stays the same tensor

    inner = torch._C.DispatchKeySet(torch._C.DispatchKey.Python)
    with torch._C._ExcludeDispatchKeyGuard(inner):
        out = function(*tree_map(hold, args), **tree_map(hold, kwargs))
    if name == "aten::copy_" and not isinstance(args[0], OnGpu):
        return args[0]
    return tree_map(wrap, out) if there else out


def gpu() -> torch.device:
    return torch.device("gpu", 0)


def as_on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(device: str, *arguments: Any, **options: Any) -> Any:
        return function("cpu" if device == "gpu" else device, *arguments, **options)

    return called


def uploaded(pixels: Any, device: torch.device) -> Callable[[], Any]:
    there = tree_map(lambda image: image.to(device), pixels)
    return lambda: there


def stand_in() -> Any:
    """From here on the stand-in is this process's GPU."""
    _setup_privateuseone_for_python_backend("gpu")
    default_device.__code__ = gpu.__code__  # wherever it has been imported
    batches.__dict__["upload"] = uploaded
    gpu_cache.__dict__["room"] = lambda _: 10**8
    for name in ("autocast", "get_autocast_dtype", "is_autocast_enabled"):  # these do not know the device
        setattr(torch, name, as_on_cpu(getattr(torch, name)))
    library = torch.library.Library("_", "IMPL")
    library.fallback(computed, "PrivateUse1")
    return library  # it lasts as long as this is kept


def notices_mistakes() -> None:
    """Both devices in an operation fail; a value and a copy to the host are counted."""
    before, x = waited, torch.ones(2, 3, device=gpu())
    x.sum().item()
    x.cpu()
    assert waited == before + 2
    with pytest.raises(RuntimeError, match="both devices"):
        x + torch.ones(2, 3)


def main(folder: Path) -> None:
    kept = stand_in()
    notices_mistakes()
    torch.set_num_threads(1)
    train, test = (stepclr.open_images(f"sample:{split}", limit=48) for split in ("train", "test"))
    settings: dict[str, Any] = {"encoder": "test_resnet", "stem": "small-stride2", "epochs": 1, "precision": "fp32"}
    counts = {}
    for steps in (3, 6):
        before, run = waited, folder / f"{steps}"
        stepclr.pretrain(train, run, **settings, batch_size=48 // steps, progress=False)
        counts[steps] = waited - before
    before = waited
    throughput(Prepared(train, 0.0, cached=True, needed=False), stepclr.Run(run).config)
    assert waited == before + 2, "doctor makes views where training does, and waits for them before and after"
    stepclr.pretrain(train, run, resume=True, epochs=2, progress=False)
    stepclr.evaluate(run, train, test, labels_per_class=2, probe="knn", baselines="random")
    stepclr.finetune(run, train, test, labels_per_class=2, epochs=1, start="head.1")
    stepclr.predict(run, test)
    stepclr.embed(run, test)
    print(json.dumps(counts))
    del kept


if __name__ == "__main__":
    main(Path(sys.argv[1]))
