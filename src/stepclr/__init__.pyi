"""The public names, each with the file that defines it; `__init__.py` looks them up here."""

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
from stepclr.model.files import save_encoder as save_encoder
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

__version__: str
__all__: list[str]
