"""Step 7: an encoder and few labels -> a classifier; a classifier and new pictures -> predictions.

`finetuning.py` trains the whole network, from where `start.py` says; `predictions.py` names new pictures;
`distillation.py` teaches a student. `draws.py` says which labels may be used, `material.py` makes labelled pictures
ready: evaluation uses both too.
"""

from stepclr.classify.distillation import distill
from stepclr.classify.finetuning import finetune
from stepclr.classify.predictions import predict, write_predictions

__all__ = ["distill", "finetune", "predict", "write_predictions"]
