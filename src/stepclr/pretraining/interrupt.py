"""Ctrl-C and SIGTERM end a run at the end of its step, with a checkpoint."""

import signal
import threading
from pathlib import Path
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and has written a checkpoint. `signal` is the signal's number."""

    def __init__(self, number: int, step: int, steps: int, folder: Path) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step} of {steps}, and everything is saved in "
            f"{folder}: repeat the command with resume=True to continue"
        )
        self.signal = number


class Interruption:
    """A context in which the first SIGINT or SIGTERM is only noted in `requested`; a second one acts as usual."""

    def __init__(self) -> None:
        self.requested = 0
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.requested = number
        self.__exit__()
