"""Step 5: projections -> a scalar.

`reference.py` has the equations as the papers write them. `contrastive.py` has SimCLR's and SupCon's loss, `tiles.py`
its sum over all pairs, fast and in little memory, `modules.py` the same losses as `nn.Module`s. `logits.py` has the
losses of logits, and `objectives.py` the table of all that a run can minimize.
"""
