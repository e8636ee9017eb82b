"""Step 5: projections -> a scalar.

`contrastive.py` is SimCLR's and SupCon's loss, `tiles.py` the same sums in blocks, fast and in little memory;
`supervised.py` has the losses of logits.
"""

from stepclr.loss.contrastive import contrastive, nt_xent, supcon
from stepclr.loss.supervised import cross_entropy, distillation

__all__ = ["contrastive", "cross_entropy", "distillation", "nt_xent", "supcon"]
