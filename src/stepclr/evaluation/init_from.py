"""Where fine-tuning starts: at a run's encoder (SimCLR App. B.5), or at some of its head too (SimCLRv2 section 3)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stepclr.device import seeded
from stepclr.errors import StepclrError, choose, fault_of
from stepclr.loss.objectives import OBJECTIVES
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import Encoder
from stepclr.model.files import load_encoder
from stepclr.model.head import ProjectionHead
from stepclr.pretraining.checkpoint import checkpoints
from stepclr.pretraining.run import Run

STARTS = ("encoder", "head.1", "head.2")


@dataclass(frozen=True, eq=False)
class InitialWeights:
    """An encoder and, if some are kept, the first layers of the projection head."""

    encoder: Encoder
    head: str = ""  # the whole head, as `Classifier` takes it
    kept_layers: int = 0
    neck: dict[str, Tensor] = field(default_factory=dict)  # state_dict of the kept layers

    def classifier(self, classes: Sequence[str], seed: int) -> Classifier:
        """A copy with a new linear layer on top, a function of `seed`; torch's generator is left alone."""
        with seeded(seed):
            encoder = copy.deepcopy(self.encoder).cpu()
            classifier = Classifier(encoder, classes, self.head, self.kept_layers)
        classifier.neck.load_state_dict(self.neck)
        return classifier.to(self.encoder.mean.device)


def initial_weights(run: Run, start: str = "encoder", module: nn.Module | None = None) -> InitialWeights:
    """The run's encoder and, for "head.K", the first K layers of its projection head from its newest checkpoint.

    Raises StepclrError where there is no such head, or it does not belong to the encoder.
    """
    choose("start", start, STARTS)
    encoder = load_encoder(run, module)
    if start == "encoder":
        return InitialWeights(encoder)
    kept_layers = int(start.removeprefix("head."))
    try:
        head = trained_head(run, encoder)
        neck = head.first_layers(kept_layers).state_dict()
    except StepclrError as error:
        raise StepclrError(f"start is {start!r}, but {error}") from None
    return InitialWeights(encoder, str(run.config.head), kept_layers, neck)


def trained_head(run: Run, encoder: Encoder) -> ProjectionHead:
    """The projection head that belongs to the run's `encoder`, from its newest checkpoint.

    Raises StepclrError where there is no such head, or it does not belong to the encoder.
    """
    if not run.exists():
        raise StepclrError(f"{run.folder} is not the folder of a run: the head is in a run's checkpoints")
    config, paths = run.config, checkpoints(run.folder / "checkpoint")
    if not OBJECTIVES[config.loss].contrastive:
        raise StepclrError(f"{run.folder} was trained with loss {config.loss}, which has no projection head")
    if not paths:
        raise StepclrError(f"{run.folder} has no checkpoint, which would contain the head")
    try:
        tensors = load_file(paths[-1])
    except (SafetensorError, OSError) as error:
        raise StepclrError(f"{paths[-1]} cannot be read: {fault_of(error)}") from None
    for name, value in encoder.state_dict().items():
        stored = tensors.get(f"model.encoder.{name}")
        if stored is None or not torch.equal(value.cpu(), stored):
            raise StepclrError(f"{paths[-1]} contains a different encoder from the run; resume the run to finish it")
    with torch.device("meta"):  # nothing to initialize: the weights are in the checkpoint
        head = ProjectionHead.of_text(encoder.num_features, str(config.head))
    prefix = "model.head."
    of_head = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        head.load_state_dict(of_head, assign=True)
    except RuntimeError:
        raise StepclrError(f"the head in {paths[-1]} is not {config.head}, as config.json says") from None
    return head
