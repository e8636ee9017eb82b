"""stepclr: SimCLR, step by step.

Data flows one way through its rooms; a room imports only from rooms before it.

    step 1   data/             a source -> `ImageSet` -> uint8 batch [N, 3, H, W], labels [N]
    step 2   views/            uint8 batch -> two random views [2, N, 3, S, S], or more
    step 3   model/encoder.py  view -> representation h [N, F]
    step 4   model/head.py     h -> projection z [N, D]
    step 5   loss/             z_i, z_j (, labels) -> scalar
    step 5b  signals.py        stored h, z, labels -> kNN, contrastive top-1, alignment, uniformity, rank
    step 6   pretrain/         all of the above -> a run folder (Algorithm 1)
    step 7   classify/         encoder, few labels -> classifier -> predictions; teacher -> student
    step 7b  evaluate/         frozen encoder, few labels -> scores beside their baselines
    step 8   use/, report/     encoder -> embeddings, search, exports; run -> a page, tables; doctor's findings

Around them: `config.py` (settings), `recipes.py` (named settings), `cli/` (one function a command), `ranks.py` (many
processes on one job), `errors.py`.

The names below are the public ones; they load on first use, so that `import stepclr` does not import torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepclr.classify import distill as distill
    from stepclr.classify import finetune as finetune
    from stepclr.classify import predict as predict
    from stepclr.config import PretrainConfig as PretrainConfig
    from stepclr.data import ImageSet as ImageSet
    from stepclr.data import open_images as open_images
    from stepclr.errors import StepclrError as StepclrError
    from stepclr.evaluate import evaluate as evaluate
    from stepclr.loss import contrastive as contrastive
    from stepclr.loss import nt_xent as nt_xent
    from stepclr.loss import supcon as supcon
    from stepclr.model import Classifier as Classifier
    from stepclr.model import Encoder as Encoder
    from stepclr.model import ProjectionHead as ProjectionHead
    from stepclr.model import build_encoder as build_encoder
    from stepclr.model import load_classifier as load_classifier
    from stepclr.model import load_encoder as load_encoder
    from stepclr.pretrain import Run as Run
    from stepclr.pretrain import pretrain as pretrain
    from stepclr.use import SimCLRTransformer as SimCLRTransformer
    from stepclr.use import embed as embed
    from stepclr.use import export as export
    from stepclr.views import Views as Views
    from stepclr.views import view_keys as view_keys

__version__ = "0.1.0"

_ROOM_OF = {
    "PretrainConfig": "config",
    "StepclrError": "errors",
    "ImageSet": "data",
    "open_images": "data",
    "Views": "views",
    "view_keys": "views",
    "Encoder": "model",
    "ProjectionHead": "model",
    "build_encoder": "model",
    "load_encoder": "model",
    "Classifier": "model",
    "load_classifier": "model",
    "contrastive": "loss",
    "nt_xent": "loss",
    "supcon": "loss",
    "Run": "pretrain",
    "pretrain": "pretrain",
    "finetune": "classify",
    "predict": "classify",
    "distill": "classify",
    "evaluate": "evaluate",
    "SimCLRTransformer": "use",
    "embed": "use",
    "export": "use",
}

__all__ = sorted(_ROOM_OF)


def __getattr__(name: str) -> object:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'stepclr' has no attribute {name!r}")
    room = importlib.import_module(f"stepclr.{_ROOM_OF[name]}")
    return room if _ROOM_OF[name] == name else getattr(room, name)  # the rooms pretrain and evaluate can be called


def __dir__() -> list[str]:
    return __all__
