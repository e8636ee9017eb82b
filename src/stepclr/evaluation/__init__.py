"""Step 7: an encoder and few labels -> scores compared with baselines, a classifier, predictions (SimCLR 4-6, App. B).

`api.py` is `evaluate`: every method predicts, then the test labels are read. `methods.py` has the methods of its table:
linear evaluation (`linear.py`, solved by `solver.py`) and weighted kNN of the frozen encoder, fine-tuning, and the
baselines (`baselines.py`: raw pixels, an untrained encoder, training from scratch). `prepare.py` prepares the
labeled images, `overlap.py` counts the test images that are in train too, `holdout.py` makes test images of train where
there are none, `splits.py` draws the labels that may be used, `running.py` runs the fits, `work.py` says how long it
still takes, `results.py` holds the scores, `stored.py` reads them back, and `seeds.py` has those over runs with other
seeds.

`finetune.py` trains the whole network, from the weights that `init_from.py` loads; `predict.py` classifies new images;
`distill.py` trains a student on a teacher's predictions.
"""
