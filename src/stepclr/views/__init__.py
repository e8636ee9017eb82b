"""Step 2: a uint8 batch `[N, 3, H, W]` -> two random views of each picture `[2, N, 3, S, S]` (section 3, App. A).

`keys.py`: every random number is a function of (seed, epoch, sample, view); `ops.py`: what an op draws, on the CPU;
`policies.py`: which ops a policy has; `draw.py`: keys -> parameters of crop, flip and ops; `render.py`: parameters ->
pixels, on any device, with `color.py`, `warp.py` (thin-plate spline) and `levels.py` (the ops of AutoAugment's
`tables.py`): the reference; the same pixels to 1/255, many times as fast: `fused/` by Numba on the CPU, `batched.py`
compiled on a GPU; `views.py`: `Views`, drawing and rendering together; `sheet.py`: some views to see.
"""

from stepclr.views.keys import view_keys
from stepclr.views.ops import AutoAugment, Blur, ColorJitter, Grey, Op, RandAugment, Warp
from stepclr.views.policies import POLICIES, policy_defaults, policy_name, policy_ops
from stepclr.views.sheet import policy_sheet, sheet
from stepclr.views.views import Views

__all__ = [
    "POLICIES",
    "AutoAugment",
    "Blur",
    "ColorJitter",
    "Grey",
    "Op",
    "RandAugment",
    "Views",
    "Warp",
    "policy_defaults",
    "policy_name",
    "policy_ops",
    "policy_sheet",
    "sheet",
    "view_keys",
]
