"""What a resumed run may change, and what it must find as it was."""

from dataclasses import replace

from stepclr.config import SETTINGS, PretrainConfig, RunConfig
from stepclr.errors import StepclrError
from stepclr.pretraining.run import Run

CHANGEABLE = {"epochs", "keep_every", "monitor", "cache_gib"}  # all else stays as the run began


def resumed(config: PretrainConfig, stored: RunConfig, run: Run) -> PretrainConfig:
    """The settings of a run about to be resumed: its own, but for the CHANGEABLE ones.

    Raises StepclrError if `config` asks for another value of one of its own; None and "auto" ask for nothing.
    """
    kept = {name: getattr(stored, name) for name in SETTINGS if name not in CHANGEABLE}
    for name, began in kept.items():
        asked = getattr(config, name)
        if asked not in (began, None, "auto"):
            raise StepclrError(
                f"{run.folder} was started with {name} {began}, not {asked}; a resumed run keeps its settings (except "
                f"{', '.join(sorted(CHANGEABLE))}): leave {name} out, or choose another output folder"
            )
    return replace(config, **kept)


def check_same_images(run_config: RunConfig, stored: RunConfig, run: Run) -> None:
    """Raise StepclrError if a run about to be resumed began on other images."""
    if run_config.names_checksum != stored.names_checksum:
        raise StepclrError(
            f"{run.folder} was started on {stored.images} images of {stored.source}; the {run_config.images} images of "
            f"{run_config.source} have other names"
        )
