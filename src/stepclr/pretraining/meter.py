"""How fast the loop runs, and how much of its time it waits for data."""

import time
from collections.abc import Iterator

from stepclr.pretraining.batches import Batch


class Meter:
    """Counts images and seconds between two readings; `seconds` are those of the whole run, over all resumes."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.restart()
        self._saved = self._clock

    def restart(self) -> None:
        """Start a new count: what lies between two counts (logging, kNN) is not training."""
        self._clock, self._waited, self._seen = time.perf_counter(), 0.0, 0

    def watch(self, feed: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, with the time spent waiting for them and the number of images counted."""
        while True:
            asked = time.perf_counter()
            batch = next(feed, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            self._seen += len(batch.samples)
            yield batch

    def read(self) -> dict[str, float]:
        """Images per second, share of the time spent waiting for data, and training seconds of the run so far."""
        spent = time.perf_counter() - self._clock
        self.seconds += spent
        return {
            "images_per_second": self._seen / spent,
            "waiting": self._waited / spent,
            "seconds": self.seconds,
        }

    def total(self) -> float:
        """Training seconds of the run up to now, including those since the last reading."""
        return self.seconds + time.perf_counter() - self._clock

    def saved(self) -> None:
        """Note that a checkpoint has been written: this is time of the run, but not of the loop."""
        self.seconds = self.total()
        self.restart()
        self._saved = self._clock

    def since_checkpoint(self) -> float:
        """Seconds since the last checkpoint."""
        return time.perf_counter() - self._saved
