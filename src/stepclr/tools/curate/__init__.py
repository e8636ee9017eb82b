"""Which images of an index deserve a look: near duplicates, outliers, wrong labels, and the ones to label next.

`duplicates.py`, `outliers.py`, `mislabeled.py` and `suggest.py` have a public function each; `alignment.py` fits one
thumbnail to another; `table.py` writes findings as a CSV and a contact sheet.
"""
