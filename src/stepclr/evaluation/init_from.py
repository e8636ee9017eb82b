"""Where fine-tuning starts: a run's encoder (SimCLR App. B.5), or some of its head too (SimCLRv2 section 3)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stepclr.errors import StepclrError, choose
from stepclr.model.classifier import Classifier, first_layers
from stepclr.model.encoder import Encoder
from stepclr.model.files import load_encoder
from stepclr.model.head import ProjectionHead
from stepclr.pretraining.checkpoint import checkpoints
from stepclr.pretraining.resolve import CONTRASTIVE
from stepclr.pretraining.run import Run

STARTS = ("encoder", "head.1", "head.2")


@dataclass(frozen=True, eq=False)
class Start:
    """Where fine-tuning starts: an encoder and, if any stay, the first layers of the projection head."""

    encoder: Encoder
    kept: list[int] = field(default_factory=list)  # as `Classifier` takes it
    neck: dict[str, Tensor] = field(default_factory=dict)

    def classifier(self, classes: Sequence[str], seed: int) -> Classifier:
        """Copies of these below a new linear layer, a function of `seed`; torch's generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            made = Classifier(copy.deepcopy(self.encoder).cpu(), classes, self.kept)
        made.neck.load_state_dict(self.neck)
        return made.to(self.encoder.mean.device)


def starting_point(run: Run, start: str = "encoder") -> Start:
    """The run's encoder and, for "head.K", the first K layers of its projection head from its newest checkpoint.

    Raises StepclrError where there is no such head, or it does not belong to the encoder.
    """
    choose("start", start, STARTS)
    encoder = load_encoder(run)
    if start == "encoder":
        return Start(encoder)
    try:
        head = trained_head(run, encoder)
    except StepclrError as error:
        raise StepclrError(f"--from {start}: {error}") from None
    layers = int(start.removeprefix("head."))
    widths = [encoder.num_features, *map(int, run.config["head"].split("-"))]
    return Start(encoder, [*widths, layers], first_layers(head, layers).state_dict())


def trained_head(run: Run, encoder: Encoder) -> ProjectionHead:
    """The projection head that belongs to the run's `encoder`, from its newest checkpoint.

    Raises StepclrError where there is no such head, or it does not belong to the encoder.
    """
    if not run.exists():
        raise StepclrError(f"the head needs the folder of a run, with its checkpoints; {run.folder} is none")
    config, paths = run.config, checkpoints(run.folder / "checkpoint")
    if config["loss"] not in CONTRASTIVE:
        raise StepclrError(f"{run.folder} was trained with --loss {config['loss']}, with no head")
    if not paths:
        raise StepclrError(f"{run.folder} has no checkpoint, and the head's weights are in there")
    tensors = _model_tensors(paths[-1])
    own, stored = encoder.state_dict(), tensors["encoder"]
    if own.keys() != stored.keys() or not all(torch.equal(value.cpu(), stored[name]) for name, value in own.items()):
        raise StepclrError(f"{paths[-1]} has another encoder than the run; finish the run with --resume")
    widths = [encoder.num_features, *map(int, config["head"].split("-"))]
    with torch.device("meta"):  # nothing to initialize: the weights are there
        head = ProjectionHead(widths[0], widths[1], widths[-1], len(widths) - 1)
    try:
        head.load_state_dict(tensors["head"], assign=True)
    except RuntimeError:
        raise StepclrError(f"the head in {paths[-1]} is not {config['head']}, as config.json has it") from None
    return head


def _model_tensors(path: Path) -> dict[str, dict[str, Tensor]]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise StepclrError(f"{path} cannot be read: {error}") from None
    return {
        part: {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        for part, prefix in (("encoder", "model.encoder."), ("head", "model.head."))
    }
