"""Step 7: an encoder and few labels -> scores beside their baselines, a classifier, predictions (SimCLR 4-6, App. B).

`api.py` is the protocol of `evaluate`: predictions first, test labels last. `methods.py` has the rows of its table:
linear evaluation (`linear.py`, solved by `solver.py`) of the encoder and of `baselines.py`'s pixels and random,
`scratch.py`'s supervised training, fine-tuning, weighted kNN; `confusion.py` counts what is taken for what.
`finetune.py` trains the whole network, from where `init_from.py` says; `predict.py` classifies new images; `distill.py`
teaches a student. `splits.py` draws the labels that may be used; `prepare.py` makes labelled images ready.
"""
