"""TensorBoard's event files, RUN/tensorboard/: the lines of metrics.jsonl once more, for those who watch runs there."""

from typing import Any

from stepclr.errors import StepclrError
from stepclr.pretraining.run import Fields, Run


class Events:
    """What is in metrics.jsonl when it begins, and each line that is added, in place of what is there already."""

    def __init__(self, run: Run) -> None:
        folder = run.folder / "tensorboard"
        for path in folder.glob("events.out.tfevents.*"):  # it may tell of steps that a resumed run takes again
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
    """TensorBoard's class; StepclrError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise StepclrError("--tensorboard needs its package: pip install 'stepclr[tensorboard]'") from None
    return SummaryWriter
