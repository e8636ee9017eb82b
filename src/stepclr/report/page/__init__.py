"""The page of a run, `report.html`: eight steps on the user's own pictures, a file a step.

`material.py` is what they share; `page.html`, `page.css`, `page.js` are the page, `plots.py` its charts (Plotly draws).
"""

from stepclr.report.page.writing import write_page

__all__ = ["write_page"]
