"""What a resumed run may change, and what it must find as it was."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stepclr.config import SETTINGS, PretrainConfig, RunConfig, total_steps
from stepclr.data.decode import source_side
from stepclr.data.images import ImageSet, class_names
from stepclr.errors import StepclrError
from stepclr.pretraining.checkpoint import checkpoints, step_of
from stepclr.pretraining.resolve import fitting_warmup
from stepclr.pretraining.run import Run

CHANGEABLE = {"epochs", "keep_every", "monitor", "cache_gib"}  # all else stays as the run began


def resumed(config: PretrainConfig, stored: RunConfig, run: Run) -> PretrainConfig:
    """The settings of a run about to be resumed: its own, but for the CHANGEABLE ones.

    Raises StepclrError if `config` asks for another value of one of its own; None and "auto" ask for nothing.
    """
    if config.epochs is None:
        config = replace(config, epochs=stored.epochs)
    # As when the run began: a larger batch than there are images is all of them.
    asked = replace(config, batch_size=min(config.batch_size, stored.images), warmup=fitting_warmup(config))
    kept: dict[str, Any] = {name: getattr(stored, name) for name in SETTINGS if name not in CHANGEABLE}
    for name, began in kept.items():
        value = getattr(asked, name)
        if value not in (began, None, "auto"):
            raise StepclrError(
                f"{run.folder} was started with {name} {began}, not {value}; a resumed run keeps its settings (except "
                f"{', '.join(sorted(CHANGEABLE))}): leave {name} out, or choose another output folder"
            )
    return replace(config, **kept | {"minutes": None})  # they have become epochs


def check_same_choice(classes: str | Sequence[str] | None, limit: int | None, stored: RunConfig, run: Run) -> None:
    """Raise StepclrError if a run about to be resumed chose other images; None asks for those that it chose."""
    if classes is not None and (names := class_names(classes, stored.classes)) != stored.classes:
        began = ", ".join(stored.classes) or "all"
        raise StepclrError(f"{run.folder} was started with the classes {began}, not {', '.join(names)}")
    if limit is not None and limit != stored.limit:
        raise StepclrError(f"{run.folder} was started with limit {stored.limit}, not {limit}")


def as_it_began(given: ImageSet, readable: ImageSet, size: int, stored: RunConfig, run: Run) -> ImageSet:
    """The images of a run about to be resumed: the readable ones, or those that it began with among the given ones.

    The two differ where a run that kept its images decoded, and left out those that it could not decode, no longer
    keeps them, or the other way round. Where they are other images, `extended` says so.
    """
    if readable.names_checksum() == stored.names_checksum:
        return readable
    left_out = run.left_out()
    whole = given.decoded(source_side(size), budget=0)  # decoded each time they are read
    others = whole.take([i for i, name in enumerate(whole.names) if name not in left_out])
    for images in (whole.openable(), whole, others):
        if images.names_checksum() == stored.names_checksum:
            images.ledger.unreadable |= left_out
            return images
    return readable


def extended(stored: RunConfig, run_config: RunConfig, run: Run) -> RunConfig:
    """config.json of a run about to be resumed: as it began, with the changed settings and where its images are now.

    Raises StepclrError if it began on other images, or is past the end that `run_config` wants.
    """
    if run_config.names_checksum != stored.names_checksum:
        raise StepclrError(
            f"{run.folder} was started on {stored.images} images of {stored.source_text}; the {run_config.images} "
            f"images of {run_config.source_text} have other names; weights={run.folder} begins a new run from it"
        )
    if stored.labels_checksum not in (None, run_config.labels_checksum):
        raise StepclrError(
            f"{run.folder} was started with other labels; leave labels out to resume with its own, or choose another "
            "output folder"
        )
    done = max((step_of(path) for path in checkpoints(run.folder / "checkpoint")), default=0)
    if done > total_steps(run_config.epochs, stored.steps_per_epoch):
        raise StepclrError(
            f"{run.folder} has done {done / stored.steps_per_epoch:.4g} epochs, so epochs must be at least that, not "
            f"{run_config.epochs}"
        )
    changed = {name: getattr(run_config, name) for name in (*CHANGEABLE, "warmup")}
    if run_config.epochs != stored.epochs:
        changed["minutes"] = None
    return replace(stored, source=run_config.source, **changed)
