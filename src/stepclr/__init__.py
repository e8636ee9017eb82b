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
(the counter-based random generator), `machine_code.py` (what Numba compiles), `device.py`, `threads.py`, `errors.py`.

The public names are in `__init__.pyi`; they load on first use, so that `import stepclr` does not import torch.
"""

import importlib
import re
from pathlib import Path

__version__ = "0.1.0"

# A name stands once, in the stub that type checkers read: `from stepclr.FILE import NAME as NAME`.
_STUB = Path(__file__).with_suffix(".pyi").read_text()
_FILE_OF = {name: file for file, name in re.findall(r"^from (\S+) import (\w+) as", _STUB, re.MULTILINE)}

__all__ = sorted(_FILE_OF)


def __getattr__(name: str) -> object:
    if name not in _FILE_OF:
        raise AttributeError(f"module 'stepclr' has no attribute {name!r}")
    return getattr(importlib.import_module(_FILE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
