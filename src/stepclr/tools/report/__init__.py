"""The page of a run, `report.html`: the verdict, then the eight steps on the user's own images, one file for each.

`verdict.py` is the top of the page. `context.py` is what the steps share; `data_and_views.py`, `network.py`,
`contrast.py`, `training.py`, `evaluation.py` and `usage.py` are the steps, and `classifier.py` is what was fine-tuned
or distilled. `health.py` describes in words what the metrics show, and `log.py` is their columns; `plots.py` draws the
charts as inline SVG.
`page.html`, `classifier.html`, their `parts.html`, `page.css` and `page.js` are the page; `writing.py` writes it.
"""
