"""Step 7: a frozen encoder and few labels -> scores, beside what no pretraining gives (SimCLR sections 4 to 6, App. B).

`protocol.py` is the protocol: predictions first, test labels last. `methods.py` has the rows of the table: linear
evaluation (`linear.py`, solved by `solver.py`) of the encoder and of `baselines.py`'s pixels and random, `scratch.py`'s
supervised training, fine-tuning, weighted kNN. Draws of labels and the pictures themselves come from `classify/`.
"""

import sys
from types import ModuleType

from stepclr.evaluate.protocol import evaluate

__all__ = ["evaluate"]


class _Room(ModuleType):
    """Called, `stepclr.evaluate` is the function; Python gives the room the same name."""

    __call__ = staticmethod(evaluate)


sys.modules[__name__].__class__ = _Room
