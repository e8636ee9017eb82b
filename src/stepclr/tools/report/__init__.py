"""The page of a run, `report.html`: the eight steps on the user's own images, one file for each step.

`context.py` is what the steps share; `data_and_views.py`, `network.py`, `contrast.py`, `training.py`, `evaluation.py`
and `usage.py` are the steps; `health.py` describes in words what the metrics show; `plots.py` makes the charts, which
Plotly draws; `page.html`, `page.css`, `page.js` are the page, and `writing.py` writes it.
"""
