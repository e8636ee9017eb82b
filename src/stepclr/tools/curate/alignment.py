"""How alike two thumbnails are once one of them is cropped, blurred and mirrored as the other may have been."""

from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from stepclr.data.details import BLOCK, COARSE_PX, COARSE_SLACK, PLACES, blur, detail, stretch

# A warp is (top, height cut, left, width cut, blur): shares of a side, and 0 as it is, 1 blurred, below 0 sharpened.
Warps = Float[Tensor, "n 5"]
MAX_CUT = 0.15  # share of each side
MIN_BLUR, MAX_BLUR = -0.5, 1.0
STARTS = torch.tensor(
    [(0.0, 0.0, 0.0, 0.0, 0.0)]
    + [(cut * y, cut, cut * x, cut, 0.0) for cut, y, x in product((0.05, 0.1), PLACES, PLACES)]
)
DELTAS = torch.tensor((0.01, 0.01, 0.01, 0.01, 0.1)).diag()  # a third of a pixel, a tenth of the blur
STEPS = 3  # six find no more
DAMPING = 0.01
SMOOTHING = 3  # pixels; twice this box leaves out what a smaller size or a JPEG loses


def aligned_likeness(
    a: UInt8[Tensor, "n side side"], b: UInt8[Tensor, "n side side"], least: float
) -> Float[Tensor, " n"]:
    """The cosine of the smoothed details of each pair, after either image is warped to fit the other.

    The warp starts from the crop among STARTS that fits best at low resolution, mirrored or not, and is refined by
    STEPS of Gauss-Newton. A pair that is hopeless by the first (below `least` - COARSE_SLACK) has the cosine -1.
    """
    best = torch.full((len(a),), -1.0)
    for rows in torch.arange(len(a)).split(BLOCK):
        x, y = a[rows].float(), b[rows].float()
        both = torch.cat([x, y, x.flip(2), y]), torch.cat([y, x, y, x.flip(2)])
        cosines, starts = _roughly(*both)
        way = cosines.view(4, len(rows)).argmax(0)
        chosen = way * len(rows) + torch.arange(len(rows))
        hopeful = cosines[chosen] >= least - COARSE_SLACK
        chosen = chosen[hopeful]
        if len(chosen):
            best[rows[hopeful]] = _refined(both[0][chosen], both[1][chosen], STARTS[starts[chosen]])
    return best


def _roughly(whole: Float[Tensor, "n s s"], part: Float[Tensor, "n s s"]) -> tuple[Tensor, Tensor]:
    """The largest cosine of coarse details over STARTS, and the number of that start, of each pair."""
    coarse, target = F.adaptive_avg_pool2d(whole, COARSE_PX), detail(F.adaptive_avg_pool2d(part, COARSE_PX))
    fits = torch.stack([(detail(_cropped(coarse, start[None])) * target).sum(1) for start in STARTS])
    largest = fits.max(0)
    return largest.values, largest.indices


def _refined(whole: Float[Tensor, "n s s"], part: Float[Tensor, "n s s"], warps: Warps) -> Float[Tensor, " n"]:
    """The largest cosine on the way from `warps` to a better fit of the details (Gauss-Newton with damping)."""
    target = detail(_smooth(part))
    best = torch.full((len(whole),), -1.0)
    for step in range(STEPS + 1):
        now = _warped_detail(whole, warps)
        best = torch.maximum(best, (now * target).sum(1))
        if step == STEPS:
            break
        slopes = [
            (_warped_detail(whole, warps + delta) - _warped_detail(whole, warps - delta)) / (2 * delta.sum())
            for delta in DELTAS
        ]
        jacobian = torch.stack(slopes, 2)
        normal = jacobian.mT @ jacobian
        # Each parameter is damped on its own scale; one without effect (an image without detail) stays.
        normal += torch.diag_embed(DAMPING * normal.diagonal(dim1=1, dim2=2) + 1e-6)
        change = torch.linalg.solve(normal, jacobian.mT @ (target - now)[:, :, None])
        warps = _bounded(warps + change[:, :, 0])
    return best


def _bounded(warps: Warps) -> Warps:
    top, height, left, width, blurred = warps.unbind(1)
    height, width = height.clamp(0, MAX_CUT), width.clamp(0, MAX_CUT)
    top, left = top.clamp(min=0).minimum(height), left.clamp(min=0).minimum(width)
    return torch.stack([top, height, left, width, blurred.clamp(MIN_BLUR, MAX_BLUR)], 1)


def _warped_detail(x: Float[Tensor, "n s s"], warps: Warps) -> Float[Tensor, "n pixels"]:
    cropped = _cropped(x, warps)
    return detail(_smooth(cropped + warps[:, 4, None, None] * (_smooth(cropped) - cropped)))


def _smooth(x: Float[Tensor, "n s s"]) -> Float[Tensor, "n s s"]:
    box = blur(x.shape[-1], SMOOTHING)
    twice = box @ box
    return twice @ x @ twice.T


def _cropped(x: Float[Tensor, "n s s"], warps: Float[Tensor, "m 5"]) -> Float[Tensor, "n s s"]:
    """Images cropped and resized back, without the blur."""
    side, (top, height, left, width) = x.shape[-1], warps[:, :4, None].unbind(1)
    return stretch(side, top, height) @ x @ stretch(side, left, width).mT
