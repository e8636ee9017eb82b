"""stepclr: SimCLR, step by step.

The ground floor is the paper: one room for each of its steps. Data flows one way through the rooms, and a room imports
only from rooms before it.

    step 1   data/             a source -> `ImageSet` -> uint8 images [N, 3, H, W], labels [N] (-1: none)
    step 2   views/            images -> two random views [2, N, 3, S, S], or more
    step 3   model/encoder.py  view -> representation h [N, F]
    step 4   model/head.py     h -> projection z [N, D]
    step 5   loss/             z_i, z_j (, labels) -> scalar
    step 6   pretraining/      all of the above -> a run folder (Algorithm 1)
    step 7   evaluation/       encoder, few labels -> probes, a fine-tuned classifier, scores compared with baselines

Upstairs are the tools: how to use an encoder, in Python and from the command line.

    step 8   tools/            embeddings, search, curation, exports, the report of a run, the doctor for a data set
             cli/              the command line: one function for each command

Foundations: `config.py` (what a user may set), `recipes.py` (named settings), `metrics.py` (metrics computed from
stored h, z and labels), `distributed.py` (the process group), `io.py` (atomic files, checksums, locks), `splitmix.py`
(the counter-based random generator), `device.py`, `threads.py`, `errors.py`.

The names below are the public ones; they load on first use, so that `import stepclr` does not import torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepclr.config import PretrainConfig as PretrainConfig
    from stepclr.data.images import ImageSet as ImageSet
    from stepclr.data.sources import open_images as open_images
    from stepclr.errors import StepclrError as StepclrError
    from stepclr.evaluation.api import evaluate as evaluate
    from stepclr.evaluation.distill import distill as distill
    from stepclr.evaluation.finetune import finetune as finetune
    from stepclr.evaluation.predict import predict as predict
    from stepclr.loss.contrastive import contrastive as contrastive
    from stepclr.loss.contrastive import nt_xent as nt_xent
    from stepclr.loss.contrastive import supcon as supcon
    from stepclr.loss.modules import NTXentLoss as NTXentLoss
    from stepclr.loss.modules import SupConLoss as SupConLoss
    from stepclr.model.build import build_encoder as build_encoder
    from stepclr.model.classifier import Classifier as Classifier
    from stepclr.model.encoder import Encoder as Encoder
    from stepclr.model.files import load_classifier as load_classifier
    from stepclr.model.files import load_encoder as load_encoder
    from stepclr.model.head import ProjectionHead as ProjectionHead
    from stepclr.pretraining.api import pretrain as pretrain
    from stepclr.pretraining.run import Run as Run
    from stepclr.tools.curate.duplicates import find_duplicates as find_duplicates
    from stepclr.tools.curate.mislabeled import find_mislabeled as find_mislabeled
    from stepclr.tools.curate.outliers import find_outliers as find_outliers
    from stepclr.tools.curate.suggest import suggest_labels as suggest_labels
    from stepclr.tools.doctor.examine import doctor as doctor
    from stepclr.tools.embed import embed as embed
    from stepclr.tools.export.convert import export as export
    from stepclr.tools.label.writing import write_label_page as write_label_page
    from stepclr.tools.report.writing import report as report
    from stepclr.tools.search.index import EmbeddingIndex as EmbeddingIndex
    from stepclr.tools.search.index import open_index as open_index
    from stepclr.tools.search.queries import search as search
    from stepclr.tools.sklearn import SimCLRTransformer as SimCLRTransformer
    from stepclr.views.keys import view_keys as view_keys
    from stepclr.views.transform import SimCLRTransform as SimCLRTransform
    from stepclr.views.views import Views as Views

__version__ = "0.1.0"

# The file that defines each public name; a test compares it with the imports above, which are for type checkers.
_DEFINED_IN = {
    "PretrainConfig": "config",
    "ImageSet": "data.images",
    "open_images": "data.sources",
    "StepclrError": "errors",
    "evaluate": "evaluation.api",
    "distill": "evaluation.distill",
    "finetune": "evaluation.finetune",
    "predict": "evaluation.predict",
    "contrastive": "loss.contrastive",
    "nt_xent": "loss.contrastive",
    "supcon": "loss.contrastive",
    "NTXentLoss": "loss.modules",
    "SupConLoss": "loss.modules",
    "Classifier": "model.classifier",
    "Encoder": "model.encoder",
    "build_encoder": "model.build",
    "load_classifier": "model.files",
    "load_encoder": "model.files",
    "ProjectionHead": "model.head",
    "pretrain": "pretraining.api",
    "Run": "pretraining.run",
    "find_duplicates": "tools.curate.duplicates",
    "find_mislabeled": "tools.curate.mislabeled",
    "find_outliers": "tools.curate.outliers",
    "suggest_labels": "tools.curate.suggest",
    "doctor": "tools.doctor.examine",
    "embed": "tools.embed",
    "export": "tools.export.convert",
    "write_label_page": "tools.label.writing",
    "report": "tools.report.writing",
    "EmbeddingIndex": "tools.search.index",
    "open_index": "tools.search.index",
    "search": "tools.search.queries",
    "SimCLRTransformer": "tools.sklearn",
    "view_keys": "views.keys",
    "SimCLRTransform": "views.transform",
    "Views": "views.views",
}

__all__ = sorted(_DEFINED_IN)


def __getattr__(name: str) -> object:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'stepclr' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stepclr.{_DEFINED_IN[name]}"), name)


def __dir__() -> list[str]:
    return __all__
