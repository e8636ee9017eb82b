"""What to know before training: what is wrong with the images, how long and large a run would be, a recipe.

`examine.py` does it all. `scan.py` reads each image once; `findings.py` says what is wrong; `trial.py` trains briefly
in a separate process, from which `estimate.py` estimates a run; `advice.py` suggests one, which `memory.py` fits into
memory, and whether to begin with weights that exist; `screen.py` puts it into words. Nothing is changed: no file of the
source, no run, no cache.
"""
