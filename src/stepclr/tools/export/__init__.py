"""A run -> one file that others load without stepclr, and a card that describes it.

`formats.py` writes each format and has the code that loads it elsewhere; `convert.py` writes the file and compares it
with the original; `card.py` describes data, recipe, scores, protocol and limits.
"""
