"""Step 6: images -> a run folder (SimCLR Algorithm 1 and App. B).

`loop.py` is Algorithm 1's loop; `api.py` makes a whole run of it, and `resolve.py` decides what the settings leave
open; `optim.py` has LARS and the schedule; `batches.py` brings the batches, `gpu_cache.py` to a GPU; `gradcache.py`
puts large ones through the encoder in parts; `ddp.py` lets many ranks train one model; `malloc.py` spares a CPU some
work; `classifier.py` is the supervised loop of SupCon's second stage and of evaluation; `monitor.py` watches kNN;
`checkpoint.py`, `run.py` keep what a kill must not lose; `interrupt.py`, `meter.py`, `profile.py`, `progress.py` and
`tensorboard.py` are what a person notices.
"""
