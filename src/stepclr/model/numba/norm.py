"""The four passes of BatchNorm in training over rows of maps: two forward and two back.

    x, y, g      rows [positions, C] of maps that lie in memory channels last: of the input, of the output, and of the
                 gradient of y. bfloat16 comes as the 16 bits of each number, uint16.
    scale, shift of each channel [C]: y = max(x scale + shift (+ other), floor), with floor = 0 for ReLU, else -inf
    total, product
                 float64 [C], to which the sums over these rows are added

All is computed in the type of scale, float32 for bfloat16. Sums run over `FEW` rows in that type, and over these in
float64. Numba infers the types of all arguments, so that the functions have none in their signatures.
"""

from typing import Any, no_type_check

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.extending import intrinsic

# Of what `fastmath` allows, only multiplying and adding as one instruction: NaN has to stay NaN.
OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
FEW = 128
ZERO = np.float32(0)  # of no wider type than what it stands beside
HALF, WORD = 16, ir.IntType(32)  # bits of bfloat16; those of float32


@no_type_check
def moments(x, pivot, total, squares):
    """Add the sums of x - pivot and of its squares; a pivot near the mean keeps the squares small."""
    few, few_squares = np.empty_like(pivot), np.empty_like(pivot)
    for first in range(0, len(x), FEW):
        few[:] = 0
        few_squares[:] = 0
        for row in range(first, min(first + FEW, len(x))):
            for c in range(x.shape[1]):
                v = widened(x[row, c]) - pivot[c]
                few[c] += v
                few_squares[c] += v * v
        total += few
        squares += few_squares


@no_type_check
def normalize(x, scale, shift, other, floor, y):
    """Write y. other: what is added before the floor, rows like x, or None."""
    for row in range(len(x)):
        for c in range(x.shape[1]):
            v = widened(x[row, c]) * scale[c] + shift[c]
            if other is not None:
                v += widened(other[row, c])
            y[row, c] = narrowed(floor if v < floor else v, x[row, c])


@no_type_check
def gradient_sums(g, x, y, scale, shift, floor, mean, passed, total, product):
    """Add the sums of what passes ReLU of g, and of its products with x - mean.

    What passes is where y > 0, and is written to `passed`; or y and `passed` are None, where nothing was added to x,
    and it is where x scale + shift > floor.
    """
    few, few_products = np.empty_like(mean), np.empty_like(mean)
    for first in range(0, len(x), FEW):
        few[:] = 0
        few_products[:] = 0
        for row in range(first, min(first + FEW, len(x))):
            for c in range(x.shape[1]):
                v, back = widened(x[row, c]), widened(g[row, c])
                if y is not None:
                    back = back if widened(y[row, c]) > 0 else ZERO
                    passed[row, c] = narrowed(back, x[row, c])
                else:
                    back = back if v * scale[c] + shift[c] > floor else ZERO
                few[c] += back
                few_products[c] += back * (v - mean[c])
        total += few
        product += few_products


@no_type_check
def gradient(g, x, scale, shift, floor, of_x, constant, to_x):
    """Write the gradient of x: scale times what passes of g, plus of_x times x, plus the constant; g as above."""
    for row in range(len(x)):
        for c in range(x.shape[1]):
            v, back = widened(x[row, c]), widened(g[row, c])
            back = back if v * scale[c] + shift[c] > floor else ZERO
            to_x[row, c] = narrowed(scale[c] * back + of_x[c] * v + constant[c], x[row, c])


@intrinsic
@no_type_check
def widened(_, v):
    """A number of x, y or g as a float; the bits of a bfloat16 are the upper half of those of its float32."""
    if v != types.uint16:
        return v(v), lambda context, builder, signature, arguments: arguments[0]  # noqa: ARG005

    def build(context, builder, signature, arguments):  # noqa: ARG001
        bits = builder.shl(builder.zext(arguments[0], WORD), WORD(HALF))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(v), build


@intrinsic
@no_type_check
def narrowed(_, v, like):
    """A float in the form of `like`, a number of x; to bfloat16 it is rounded to nearest, ties to even."""
    if like != types.uint16:
        return v(v, like), lambda context, builder, signature, arguments: arguments[0]  # noqa: ARG005

    def build(context, builder, signature, arguments):  # noqa: ARG001
        bits = builder.bitcast(arguments[0], WORD)
        odd = builder.and_(builder.lshr(bits, WORD(HALF)), WORD(1))
        rounded = builder.add(builder.add(bits, WORD(0x7FFF)), odd)
        return builder.trunc(builder.lshr(rounded, WORD(HALF)), ir.IntType(16))

    return like(v, like), build


ROWS, NUMBERS, SUMS, NONE = types.uint16[:, ::1], types.float32[::1], types.float64[::1], types.none
REAL = types.float32
ENTRIES = (
    (moments, (ROWS, NUMBERS, SUMS, SUMS)),
    (normalize, (ROWS, NUMBERS, NUMBERS, NONE, REAL, ROWS)),
    (normalize, (ROWS, NUMBERS, NUMBERS, ROWS, REAL, ROWS)),
    (gradient_sums, (ROWS, ROWS, NONE, NUMBERS, NUMBERS, REAL, NUMBERS, NONE, SUMS, SUMS)),
    (gradient_sums, (ROWS, ROWS, ROWS, NUMBERS, NUMBERS, REAL, NUMBERS, ROWS, SUMS, SUMS)),
    (gradient, (ROWS, ROWS, NUMBERS, NUMBERS, REAL, NUMBERS, NUMBERS, ROWS)),
)
