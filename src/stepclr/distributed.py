"""The process group: the ranks that torchrun starts for one job, and everything that they exchange.

By default a process is alone, and gathering returns its own tensors. Host numbers are exchanged by gloo, even where the
tensors of GPUs are exchanged by NCCL, so that no process waits for a GPU. Nothing is pickled.
"""

import atexit
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from stepclr.errors import StepclrError

TIMEOUT = timedelta(hours=1)  # of an exchange; torchrun reports dead ranks at once
PATIENCE = timedelta(days=30)  # for what one rank does alone: decoding, or a second stage


@dataclass(frozen=True)
class World:
    """A process and its group: rank `rank` of `size` ranks."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This rank's part of n items: the parts are contiguous, and their lengths differ by at most one."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def numbers(self, value: float | int) -> list[float | int]:
        """Every rank's number, in the order of the ranks."""
        if self.size == 1:
            return [value]
        return self._exchange(torch.tensor([value], dtype=torch.float64), [1] * self.size).tolist()

    def sizes(self, n: int) -> list[int]:
        """How many rows each rank has, for `gather` and `gather_with_gradient`."""
        return [int(size) for size in self.numbers(n)]

    def total(self, value: float | int) -> float | int:
        """The sum of every rank's number."""
        return sum(self.numbers(value))

    def rows(self, sizes: Sequence[int]) -> slice:
        """Where this rank's rows are among those of all."""
        ends = [0, *accumulate(sizes)]
        return slice(ends[self.rank], ends[self.rank + 1])

    def gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Every rank's rows, in the order of the ranks, without a gradient."""
        return x.detach() if self.size == 1 else self._exchange(x.detach(), sizes)

    def gather_with_gradient(self, x: Float[Tensor, "n ..."], sizes: Sequence[int]) -> Float[Tensor, "m ..."]:
        """`gather` for a loss that each rank computes from the rows of all: the gradient is exact, times `size`.

        Each rank computes the same loss L, so its backward pass arrives here with dL/dx for the rows of all ranks. It
        keeps those of its own rows, the only ones that its parameters have made, and nothing is exchanged. What then
        reaches its parameters is one summand of L's gradient; the gradient is the sum over the ranks. But
        DistributedDataParallel takes the mean over them, so each summand is multiplied by the number of ranks.
        """
        if self.size == 1:
            return x
        return _GatherWithGradient.apply(x, self, sizes)

    def sum(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The sum over the ranks; the gradient is summed too."""
        if self.size == 1:
            return x
        return _Sum.apply(x)

    def objects(self, value: Any) -> list[Any]:
        """Every rank's value; it must be one that JSON can hold."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = self.sizes(len(text))
        return [json.loads(part.numpy().tobytes()) for part in self.gather(text, sizes).split(sizes)]

    def union(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Every rank's pairs, each once."""
        return list(dict.fromkeys((a, b) for own in self.objects(list(pairs)) for a, b in own))

    def check_same(self, facts: dict[str, Any]) -> None:
        """Raise StepclrError, on every rank, if the facts of any rank differ from those of rank 0."""
        every = self.objects(facts)
        for rank, others in enumerate(every):
            for name, value in every[0].items():
                if others.get(name) != value:
                    raise StepclrError(f"rank {rank} has {name} {others.get(name)}, but rank 0 has {value}")

    def wait(self) -> None:
        """Wait until every rank has called this, however long one of them takes."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1), group=_patient_group(dist.group.WORLD))

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """One process of each machine goes first; the others follow, and use its cache."""
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        if not first:
            self.wait()
        yield
        if first:
            self.wait()

    def _exchange(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        # A process group that the user has made may have NCCL alone, which does not exchange tensors of the host.
        by_gpu = x.is_cpu and "cpu:" not in dist.get_backend_config()
        longest = max(sizes)
        mine = x.new_zeros(longest, *x.shape[1:], device="cuda" if by_gpu else x.device)
        mine[: len(x)] = x
        every = mine.new_empty(self.size * longest, *x.shape[1:])
        dist.all_gather_into_tensor(every, mine)
        every = every.to(x.device)
        if min(sizes) == longest:
            return every
        return torch.cat([part[:size] for part, size in zip(every.split(longest), sizes, strict=True)])


@cache
def _patient_group(_: object) -> Any:
    """A group of all ranks of this process group, whose exchanges do not give up after TIMEOUT."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


ALONE = World()


def join() -> World:
    """Join the process group that torchrun started, if any; idempotent."""
    if not dist.is_initialized() and {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        if os.environ["WORLD_SIZE"] == "1":
            return ALONE
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        store, rank, world = next(rendezvous("env://", timeout=TIMEOUT))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # torchrun's own store outlives a restart, and what the last attempt left there would mislead this one.
            store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
        atexit.register(dist.destroy_process_group)
    return process_group()


def process_group() -> World:
    """This process in torch's default process group, whoever initialized it; ALONE where there is none."""
    if not dist.is_initialized():
        return ALONE
    return World(dist.get_rank(), dist.get_world_size())


def begins(run: Path) -> None:
    """Note, for `restarted`, that this job has begun or resumed this run."""
    store = _store_of_the_job()
    if store:
        store.set(_begun(run), "yes")


def restarted(run: Path) -> bool:
    """Whether torchrun has restarted this job after one of its processes died (--max-restarts), with this run begun.

    A run that lay there before is not the job's: it is refused again, as the first time.
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0:
        return False
    store = _store_of_the_job()
    return store is None or store.check([_begun(run)])


def _begun(run: Path) -> str:
    return f"stepclr has begun {run.resolve()}"


def _store_of_the_job() -> Store | None:
    """torchrun's own store, which outlives a restart; None where it shares none, or does not restart."""
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shared or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=TIMEOUT)  # type: ignore[attr-defined]


def lost_the_others(error: BaseException) -> bool:
    """Whether an exchange failed because another rank has ended; gloo has no error class for that."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World, sizes: Sequence[int]) -> Tensor:
        ctx.rows, ctx.size = world.rows(sizes), world.size
        return world.gather(x, sizes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.rows] * ctx.size, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return _added(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _added(gradient)


def _added(x: Tensor) -> Tensor:
    x = x.contiguous().clone()
    dist.all_reduce(x)
    return x
