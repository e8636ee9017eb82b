"""TensorBoard's event files in RUN/tensorboard/: a copy of the lines of metrics.jsonl."""

from typing import Any

from stepclr.errors import StepclrError
from stepclr.pretraining.run import Fields, Run


class Events:
    """Writes the lines that metrics.jsonl contains at the start, then each new line; older event files are replaced."""

    def __init__(self, run: Run) -> None:
        folder = run.folder / "tensorboard"
        for path in folder.glob("events.out.tfevents.*"):  # they may describe steps that a resumed run repeats
            path.unlink()
        self.writer = summary_writer()(str(folder))
        for line in run.metrics:
            self.add(line)

    def add(self, line: Fields) -> None:
        """One line of metrics.jsonl."""
        for name, value in line.items():
            if name != "step":
                self.writer.add_scalar(name, value, line["step"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def summary_writer() -> Any:
    """TensorBoard's class; raises StepclrError if the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise StepclrError("tensorboard=True needs its package: pip install 'stepclr[tensorboard]'") from None
    return SummaryWriter
