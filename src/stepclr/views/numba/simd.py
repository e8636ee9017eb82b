"""The innermost loop of the kernels, in vectors: a weighted sum over taps whose totals stay in registers.

Numba vectorizes an innermost loop over pixels. In a sum over taps, however, the taps are innermost, and each partial
sum would travel through memory. This one loop is therefore written in LLVM's terms.
"""

from collections.abc import Callable
from typing import Any, TypeVar, no_type_check

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])
OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": True, "error_model": "numpy"}
LANES = 16  # pixels at a time: whole registers of any processor
LINE = 64  # bytes of a cache line: vectors that lie across two of them are slow
WHOLE, REAL, VECTOR = ir.IntType(64), ir.FloatType(), ir.VectorType(ir.FloatType(), LANES)


def kernel(function: F) -> F:
    """Mark a function as part of the machine code."""
    compiled: F = numba.njit(**OPTIONS)(function)
    return compiled


def _weighted_sum(weight_of_each_pixel: bool) -> Any:
    """An intrinsic `f(out, o, out_plane, x, i, x_plane, stride, weights, k, step, taps, low, high)`.

    It computes, for c in range(3) and l in range(LANES), with [+ l] only if each pixel has a weight of its own:

        out[o + c out_plane + l] = clip(sum_t weights[k + t step [+ l]] x[i + c x_plane + t stride + l], low, high)
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, o, out_plane, _, i, x_plane, stride, _, k, step, taps, low, high = arguments
        out, x, weights = (
            context.make_array(signature.args[n])(context, builder, arguments[n]).data for n in (0, 3, 7)
        )
        fused = {"flags": ("contract",)}  # multiply and add as one instruction where the processor has it

        def at(start: Any, times: Any, step: Any) -> Any:
            return builder.add(start, builder.mul(times, step))

        def load(data: Any, index: Any) -> Any:
            return builder.load(builder.bitcast(builder.gep(data, [index]), VECTOR.as_pointer()), align=4)

        def broadcast(number: Any) -> Any:
            first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), number, ir.Constant(WHOLE, 0))
            everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            return builder.shuffle_vector(first, ir.Constant(VECTOR, ir.Undefined), everywhere)

        channels = [ir.Constant(WHOLE, c) for c in range(3)]
        totals = [cgutils.alloca_once(builder, VECTOR) for _ in channels]  # type: ignore[no-untyped-call]
        for total in totals:
            builder.store(ir.Constant(VECTOR, [0.0] * LANES), total)
        with cgutils.for_range(builder, taps) as loop:
            weight = at(k, loop.index, step)
            one = None if weight_of_each_pixel else builder.load(builder.gep(weights, [weight]))
            w = load(weights, weight) if one is None else broadcast(one)
            for c, total in zip(channels, totals, strict=True):
                product = builder.fmul(load(x, at(at(i, loop.index, stride), c, x_plane)), w, **fused)
                builder.store(builder.fadd(builder.load(total), product, **fused), total)
        for c, total in zip(channels, totals, strict=True):
            value = builder.load(total)
            for beyond, bound in (("<", low), (">", high)):
                limit = broadcast(bound)
                value = builder.select(builder.fcmp_ordered(beyond, value, limit), limit, value)
            place = builder.bitcast(builder.gep(out, [at(o, c, out_plane)]), VECTOR.as_pointer())
            builder.store(value, place, align=4)
        return context.get_dummy_value()

    @no_type_check
    def typed(_, out, o, out_plane, x, i, x_plane, stride, weights, k, step, taps, low, high):  # noqa: ARG001
        n, real = types.int64, types.float32
        return types.void(out, n, n, x, n, n, n, weights, n, n, n, real, real), build

    return intrinsic(typed)


@no_type_check
def _bytes_at(_, address):  # noqa: ARG001
    def build(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.uint8)(types.int64), build


weighted_rows = _weighted_sum(weight_of_each_pixel=False)  # a tap is a row, or a shifted row, with one weight
weighted_lanes = _weighted_sum(weight_of_each_pixel=True)
bytes_at = intrinsic(_bytes_at)  # a pointer to an address: the images of a list are not parts of one array


@kernel
@no_type_check
def up(n):
    """n, rounded up to whole vectors."""
    return (n + LANES - 1) // LANES * LANES


@kernel
@no_type_check
def aligned(n):
    """n zeros that begin at a cache line. Zeros, because a pixel of weight 0 must be a number: 0 times NaN is NaN."""
    array = np.zeros(n + LINE // 4, np.float32)
    first = (-array.ctypes.data) % LINE // 4
    return array[first : first + n]
