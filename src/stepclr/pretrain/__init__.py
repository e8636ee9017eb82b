"""Step 6: pictures -> a run folder (SimCLR Algorithm 1 and App. B).

`algorithm.py` is Algorithm 1 as code; `runs.py` makes a whole run of it, and `settle.py` decides what the settings
leave open; `optimizer.py` has LARS and the schedule; `feed.py` brings the batches, `resident.py` to a GPU;
`micro_batches.py` puts large ones through the encoder in parts; `one_model.py` lets many ranks train one model;
`kept_memory.py` spares a CPU some work; `monitor.py` watches kNN; `checkpoint.py`, `folder.py` keep what a kill
must not lose; `interrupt.py`, `meter.py`, `profile.py` and `progress.py` are what a person notices.
"""

import sys
from types import ModuleType

from stepclr.pretrain.algorithm import Diverged
from stepclr.pretrain.folder import Run
from stepclr.pretrain.interrupt import Interrupted
from stepclr.pretrain.runs import pretrain

__all__ = ["Diverged", "Interrupted", "Run", "pretrain"]


class _Room(ModuleType):
    """Called, `stepclr.pretrain` is the function; Python gives the room the same name."""

    __call__ = staticmethod(pretrain)


sys.modules[__name__].__class__ = _Room
