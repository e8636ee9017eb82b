"""Step 2: a uint8 batch `[N, 3, H, W]` -> two random views of each image `[2, N, 3, S, S]` (section 3, App. A).

`keys.py`: every random number is a function of (seed, epoch, sample, view); `ops.py`: what an op draws, on the CPU;
`policies.py`: which ops a policy has; `sample.py`: keys -> parameters of crop, flip and ops; `reference.py`: parameters
-> pixels, on any device, with `color.py`, `warp.py` (thin-plate spline) and `levels.py` (the ops of AutoAugment's
`tables.py`). The same pixels to 1/255, many times as fast: `numba/` on the CPU, `cuda.py` compiled on a GPU.
`views.py`: `Views`, sampling and rendering together; `transform.py`: the same for one image, in anyone's `Dataset`.
"""

from stepclr.views.keys import view_keys
from stepclr.views.ops import AutoAugment, Blur, ColorJitter, Grey, Op, RandAugment, Warp
from stepclr.views.policies import POLICIES, policy_defaults, policy_name, policy_ops
from stepclr.views.transform import SimCLRTransform
from stepclr.views.views import Views

__all__ = [
    "POLICIES",
    "AutoAugment",
    "Blur",
    "ColorJitter",
    "Grey",
    "Op",
    "RandAugment",
    "SimCLRTransform",
    "Views",
    "Warp",
    "policy_defaults",
    "policy_name",
    "policy_ops",
    "view_keys",
]
