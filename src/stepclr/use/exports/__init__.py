"""A run -> one file that others load without stepclr, and a card that says what it is.

`formats.py` writes each format and has the code that the other party loads it with; `exporting.py` writes the file and
compares it with the original; `card.py` tells of data, recipe, scores, protocol and limits.
"""

from stepclr.use.exports.exporting import Differs, Export, export

__all__ = ["Differs", "Export", "export"]
