"""The model that pretraining trains: an encoder, and the head that is discarded after pretraining."""

from collections.abc import Callable
from typing import Any

from timm.models.resnet import ResNet
from torch import nn

from stepclr.config import ResolvedConfig
from stepclr.data.images import ImageSet
from stepclr.errors import StepclrError
from stepclr.loss.objectives import OBJECTIVES
from stepclr.model.build import build_encoder, checkpoint_activations
from stepclr.model.classifier import Classifier
from stepclr.model.encoder import Encoder
from stepclr.model.head import ProjectionHead


class SimCLR(nn.Module):
    """Encoder and head as one module, which DistributedDataParallel wraps: called, it takes a step of Algorithm 1."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, step: Callable[..., Any], *batch: Any) -> Any:
        return step(self.encoder, self.head, *batch)


def build_model(
    config: ResolvedConfig, images: ImageSet, teacher: Classifier | None = None, module: nn.Module | None = None
) -> SimCLR:
    """Encoder and head of a run, newly initialized from torch's generator (or with `weights`).

    module: the encoder's network, where it is the user's own.
    The head is a linear layer with one output for each class where the loss is one of logits.
    Raises StepclrError for settings that the network does not have.
    """
    encoder = build_encoder(
        config.encoder if module is None else module,
        config.stem,
        config.weights,
        config.size,
        config.normalize_h,
        mean_std=config.mean_std,
        channels=images.channels,
    )
    encoder.classes = list(images.chosen or [])
    encoder.value_range = config.value_range
    encoder.frozen_statistics = config.batchnorm == "frozen"
    if config.test_scale != 1:
        encoder.represent_at(config.test_size)
    if config.progressive and not isinstance(encoder.body, ResNet):
        raise StepclrError(
            f"progressive is for ResNets, which take views of any size; {config.encoder} takes one size: set "
            "progressive=False"
        )
    if config.checkpoint_activations:
        checkpoint_activations(encoder)
    if OBJECTIVES[config.loss].contrastive:
        head: nn.Module = ProjectionHead.of_text(encoder.num_features, head_text(config, encoder))
    else:
        classes = teacher.classes if teacher else images.classes
        head = nn.Linear(encoder.num_features, len(classes))
    return SimCLR(encoder, head)


def head_text(config: ResolvedConfig, encoder: Encoder) -> str:
    """The projection head as `parse_head` reads it; its hidden layer is as wide as h by default."""
    return config.head or f"{encoder.num_features}-128"
