"""Step 2: a uint8 batch `[N, 3, H, W]` -> two random views of each picture `[2, N, 3, S, S]` (section 3, App. A).

`keys.py`: every random number is a function of (seed, epoch, sample, view); `draw.py`: keys -> parameters, on the CPU;
`render.py`: parameters -> pixels, on any device; `views.py`: `Views`, the two together; `sheet.py`: some views to see.
"""

from stepclr.views.keys import view_keys
from stepclr.views.sheet import sheet
from stepclr.views.views import POLICIES, Views, size_defaults

__all__ = ["POLICIES", "Views", "sheet", "size_defaults", "view_keys"]
