"""Which images of an index to look at: `duplicates.py` finds near duplicates, `find.py` outliers and what to label."""
