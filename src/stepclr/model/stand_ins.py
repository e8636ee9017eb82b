"""Modules that stand in the places of a network's own for a while, and compute the same in another way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

Swaps = list[tuple[nn.Module, str, nn.Module]]  # (parent, name, what was there)


class SharesAll:
    """The first base of a module that shares parameters, hooks and everything else with the `plain` one."""

    def __init__(self, plain: nn.Module) -> None:
        object.__setattr__(self, "__dict__", plain.__dict__)


def put_in(network: nn.Module, stand_in: Callable[[nn.Module], nn.Module | None]) -> Swaps:
    """Put `stand_in(child)` in the place of each module below a network for which it is not None."""
    swapped: Swaps = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            other = stand_in(child)
            if other is not None:
                swapped.append((parent, name, child))
                setattr(parent, name, other)
    return swapped


@contextmanager
def standing_in(network: nn.Module, stand_in: Callable[[nn.Module], nn.Module | None]) -> Iterator[None]:
    """A context of `put_in`, at whose end the network's own modules are put back."""
    swapped = put_in(network, stand_in)
    try:
        yield
    finally:
        for parent, name, child in swapped:
            setattr(parent, name, child)
