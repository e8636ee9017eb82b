"""Steps 3 and 4: a view `[n, 3, S, S]` -> representation h `[n, F]` -> projection z `[n, D]`.

`encoder.py` is f(.), whose output is kept; `build.py` makes it from a timm network or your own module, and `weights.py`
loads checkpoints into it; `foreign.py` understands those of other programs, and `timm_weights.py` finds timm's.
`head.py` is g(.), which is discarded after pretraining; `classifier.py` puts a linear layer in its place. `files.py`
writes and reads encoders and classifiers; `features.py` runs a frozen encoder over an `ImageSet`.

`cpu_conv.py` has faster convolutions in bfloat16 on a CPU, for small feature maps and for filters per channel;
`cpu_norm.py` has BatchNorm in one with ReLU and the addition of a shortcut, by the kernels in `numba/`.
`stand_ins.py` puts both in the places of a network's own layers, and back.
"""
