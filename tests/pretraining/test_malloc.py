"""What glibc is told before and after a training; that it helps is benchmarks/train_step.py's to say."""

import ctypes
import sys
from typing import Any

import pytest

from stepclr.pretraining.malloc import DEFAULTS, KEEP, freed_memory_kept


class Libc:
    def __init__(self, has_mallopt: bool) -> None:
        self.told: list[Any] = []
        if has_mallopt:
            self.mallopt = lambda *pair: self.told.append(pair)
            self.malloc_trim = lambda pad: self.told.append(("trim", pad))


@pytest.mark.parametrize("has_mallopt", [True, False])
def test_the_thresholds_are_set_and_put_back_even_after_an_error(
    has_mallopt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    libc = Libc(has_mallopt)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    with freed_memory_kept():
        assert libc.told == (list(KEEP.items()) if has_mallopt else [])
    assert libc.told[2:] == ([*DEFAULTS.items(), ("trim", 0)] if has_mallopt else [])
    libc.told.clear()
    with pytest.raises(ArithmeticError), freed_memory_kept():
        raise ArithmeticError
    assert libc.told[2:] == ([*DEFAULTS.items(), ("trim", 0)] if has_mallopt else [])


def test_elsewhere_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", None)
    with freed_memory_kept():
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_the_real_library_takes_these_values() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        assert all(libc.mallopt(*pair) == 1 for pair in [*KEEP.items(), *DEFAULTS.items()])
