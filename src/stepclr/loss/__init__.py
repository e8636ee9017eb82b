"""Step 5: projections -> a scalar. `contrastive.py` is SimCLR's and SupCon's loss; `supervised.py` those of logits."""

from stepclr.loss.contrastive import contrastive, nt_xent, supcon
from stepclr.loss.supervised import cross_entropy, distillation

__all__ = ["contrastive", "cross_entropy", "distillation", "nt_xent", "supcon"]
