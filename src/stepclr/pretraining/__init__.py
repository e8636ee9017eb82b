"""Step 6: images -> a run folder (SimCLR Algorithm 1 and App. B).

`step.py` is Algorithm 1, and `loop.py` repeats it. `api.py` makes a whole run: `resolve.py` decides what the settings
leave open, `model.py` builds encoder and head, `resume.py` says what a resumed run keeps, `run.py` is its folder.
`batches.py` reads the images; `gpu_cache.py` copies them to a GPU; `optim.py` has LARS and the learning rate;
`gradcache.py` puts large batches through the encoder in parts; `ddp.py` trains one model on many ranks; `malloc.py`
avoids repeated memory allocation; `checkpoint.py` keeps the state that a resumed run needs. `classifier.py` is the
supervised loop of SupCon's second stage, which evaluation uses too. `monitor.py` measures, `pace.py`
turns minutes into epochs, `logging.py` and `profile.py` report, and `interrupt.py` ends a run at the end of a step.
"""
