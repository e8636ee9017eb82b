"""BatchNorm, the addition of a shortcut and ReLU in training on a CPU, compiled by Numba.

`norm.py` has the kernels: what `model/cpu_norm.py` calls for some rows of the maps at a time.
"""
