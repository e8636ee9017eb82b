"""Ctrl-C and SIGTERM end a run at the end of its step, with a checkpoint."""

import signal
import threading
from pathlib import Path
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and has written a checkpoint. `signal` is the signal's number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class Interruption:
    """While entered, the first SIGINT or SIGTERM is noted in `requested`; a second one acts as it always does."""

    def __init__(self) -> None:
        self.requested = 0
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread do this
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.requested = number
        self.__exit__()


def interrupted(number: int, step: int, steps: int, folder: Path) -> Interrupted:
    """What to raise once the checkpoint is written."""
    name = signal.Signals(number).name
    return Interrupted(
        f"stopped by {name} after step {step} of {steps}, all saved: the same command with --resume goes on "
        f"(--out {folder} --resume)",
        number,
    )
