"""What to know before training: what is wrong with the images, how fast and how large a run would be, a recipe.

`examine.py` does it all. `look.py` looks at each image once; `findings.py` and `copies.py` say what is wrong;
`trial.py` trains a little in a process of its own, from which `estimate.py` estimates a run; `advice.py` suggests one;
`screen.py` puts it in words. Nothing is changed: no file of the source, no run, no cache.
"""
