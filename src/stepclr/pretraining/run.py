"""The run folder: config.json, metrics.jsonl, checkpoint/, encoder.safetensors.

Also skipped.csv if images were skipped, and labels.csv if a table gave the labels.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stepclr.config import CONFIG_FILE, RunConfig
from stepclr.data.images import ImageSet
from stepclr.data.ledger import unreadable_in
from stepclr.data.sources import Source, absolute_source, open_images, open_read_as
from stepclr.distributed import World
from stepclr.errors import StepclrError, choose
from stepclr.io import locked, named, temporary_files, write_csv, write_whole
from stepclr.loss.objectives import OBJECTIVES
from stepclr.model.encoder import Encoder
from stepclr.model.files import load_encoder
from stepclr.model.timm_weights import timm_name

Fields = dict[str, Any]  # one JSON object
LABELS, SKIPPED = "labels.csv", "skipped.csv"
MAX_LOST = 0.05  # of the images; if more can no longer be read, the run ends: it would be another run


@dataclass(frozen=True)
class Run:
    """A run on disk. It can be passed wherever the path of its folder is expected."""

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def config(self) -> RunConfig:
        """config.json: every setting as it was decided, the images, the machine."""
        stored = RunConfig.read(self.folder)
        if stored is None:
            hint = ""
            if timm_name(self) is not None or self.folder.suffix == ".safetensors":
                hint = f"; stepclr evaluate {self.folder} --train LABELED --holdout 0.2 scores an encoder without a run"
            lacks = f"has no {CONFIG_FILE}" if self.folder.exists() else "does not exist"
            raise StepclrError(f"{self.folder} is not a run: it {lacks}{hint}")
        try:
            choose("loss", stored.loss, OBJECTIVES)
        except StepclrError as error:
            raise StepclrError(f"{self.folder / CONFIG_FILE} is corrupt: {error}") from None
        return stored

    @property
    def metrics(self) -> list[Fields]:
        """The lines of metrics.jsonl; a last line that was cut off while it was written is left out."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [_record(line, f"{path}, line {number},") for number, line in enumerate(lines, 1)]

    @property
    def interrupted(self) -> bool:
        """Whether the log ends before the run does: an encoder that is there is the one of before it went on."""
        lines = self.metrics
        return bool(lines) and lines[-1]["step"] < self.config.steps

    @property
    def trains_classifier(self) -> bool:
        """Whether pretraining itself trains classifier.safetensors, which then no other may replace."""
        config = self.config
        return not OBJECTIVES[config.loss].contrastive or config.linear_epochs > 0

    def images(self, source: Source | None = None) -> ImageSet:
        """The images that the run was trained on, as they are now; `source`: where they are if they have moved."""
        config = self.config
        images = self.labeled(open_read_as(source or config.source, config.reading))
        return open_images(images, classes=config.classes or None, limit=config.limit)

    def labeled(self, images: ImageSet) -> ImageSet:
        """The images with the labels of the run's tables, if it has any and `images` have none of another table."""
        config = self.config
        if not config.labels or images.labeling:
            return images
        return open_images(images, labels=self.folder / LABELS, split=config.split)

    def encoder(self, module: nn.Module | None = None) -> Encoder:
        """The pretrained encoder, in eval mode; `module` receives the weights where it was the user's own network."""
        return load_encoder(self, module)

    def exists(self) -> bool:
        """Whether the folder contains a run, finished or not."""
        return (self.folder / CONFIG_FILE).exists()

    def check_free(self, resume: bool) -> None:
        """Raise StepclrError if a new run (or, with `resume`, this one) cannot use the folder."""
        if self.exists() and not resume:
            raise StepclrError(f"{self.folder} already contains a run: resume=True continues it, or choose another out")
        if self.exists() or not self.folder.exists():
            return
        # What a process has left that was killed before it wrote config.json may stay.
        if not self.folder.is_dir() or set(self.folder.iterdir()) != set(temporary_files(self.folder)):
            raise StepclrError(f"{self.folder} exists and is not a run: choose another out")

    @contextmanager
    def held(self, new: bool = False) -> Iterator[None]:
        """Make the folder and lock it against a second process; however this process ends, the lock is released.

        Raises StepclrError if another process holds the lock, or has written a run where a `new` one is to begin. On
        systems without file locks there is no lock.
        """
        busy = f"another process is training in {self.folder}: wait for it to finish, or choose another out"
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder, busy):
            if new:
                self.check_free(resume=False)
            yield

    def write_labels(self, images: ImageSet) -> None:
        """Write labels.csv, all that the tables said that gave the images their labels, if there were any."""
        if images.labeling:
            # Image files that were given one by one are named by their paths from the current folder.
            files = {name: absolute_source(name) for name in images.parts}
            rows = [(files.get(name, name), *row) for name, row in images.labeling.rows.items()]
            write_csv(self.folder / LABELS, [("path", "label", "split"), *rows])

    def left_out(self) -> dict[str, str]:
        """The images that skipped.csv lists as unreadable, and why; none where there is no such file."""
        path = self.folder / SKIPPED
        return unreadable_in(path) if path.is_file() else {}

    def write(self, name: str, text: str) -> None:
        write_whole(self.folder / name, lambda file: file.write(text.encode()))

    def log(self, line: Fields) -> None:
        """Append one line to metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        with named(path), path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def cut_metrics(self, step: int) -> None:
        """Delete the lines after `step`: the run is about to repeat those steps."""
        lines = [line for line in self.metrics if line["step"] <= step]
        self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _record(line: bytes, where: str) -> Fields:
    try:
        record = json.loads(line)
        numbers = all(isinstance(value, int | float) for value in record.values())
        possible = 0 <= record.get("knn", 0) <= 1 and record.get("knn_images", 1) >= 1
        counted = all(isinstance(record[name], int) and record[name] > 0 for name in ("step", "epoch"))
        if numbers and possible and counted:
            return record
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise StepclrError(f"{where} is corrupt: delete that line")


def free_folder(wanted: str | os.PathLike[str]) -> Path:
    """`wanted`, or wanted-2, wanted-3, ...: the first that does not exist."""
    path, number = Path(wanted), 1
    while path.exists():
        number += 1
        path = Path(f"{os.fspath(wanted)}-{number}")
    return path


def list_skipped(images: ImageSet, run: Run, world: World) -> None:
    """Write skipped.csv: what any rank has skipped, ignored or changed when it opened and read the images."""
    images.ledger.unreadable |= world.union(images.skipped)
    images.ledger.remarks |= world.union(images.ledger.remarks.items())
    if world.first:
        images.ledger.write(run.folder / SKIPPED)


class LostImages:
    """Counts the images that are found unreadable from now on: a run that loses many of them is another run."""

    def __init__(self, images: ImageSet, run: Run, world: World) -> None:
        self.images, self.run, self.world = images, run, world
        self.before, self.counted = len(images.skipped), 0.0

    def check(self, step: int, batch: int = 1) -> None:
        """Raise StepclrError, on every rank, if they are more than the share MAX_LOST, or all of a rank's batch.

        batch: how many images this rank has for the step.
        """
        images, world, most = self.images, self.world, MAX_LOST * len(self.images)
        total = world.total(len(images.skipped) - self.before if batch else math.inf)
        if total <= most or total == self.counted:
            return
        # In time every rank meets the same image, which counts once. The names are compared when there are new ones.
        self.counted = total
        lost = len(world.union(images.skipped)) - self.before
        if lost > most or total == math.inf:
            list_skipped(images, self.run, world)
            name, reason = images.skipped[-1]
            raise StepclrError(
                f"{lost} of {len(images)} images of {images.source} cannot be read, for example {name}: {reason}; "
                f"stopped at step {step}: restore the files and resume the run, or remove them and begin a new run"
            )
