"""Step 5: projections -> a scalar.

`reference.py` has the equations as the papers write them, `contrastive.py` SimCLR's and SupCon's loss, `tiles.py` its
sum over all pairs, fast and in little memory, and `logits.py` the losses of logits.
"""

from stepclr.loss.contrastive import contrastive, nt_xent, supcon
from stepclr.loss.logits import cross_entropy, distillation

__all__ = ["contrastive", "cross_entropy", "distillation", "nt_xent", "supcon"]
