"""Embeddings kept with paths, labels and thumbnails, and the pictures among them that are most like a query.

`table.py` keeps a folder's LanceDB table in step with its source; `index.py` reads what `embed` wrote; `nearest.py`
finds rows, and measures how often an approximate search is right; `queries.py` goes from a picture to those most like
it; `sheet.py` draws them.
"""

from stepclr.use.search.index import Index, open_index
from stepclr.use.search.queries import Hit, Search, search
from stepclr.use.search.sheet import contact_sheet
from stepclr.use.search.table import Built, build_index

__all__ = ["Built", "Hit", "Index", "Search", "build_index", "contact_sheet", "open_index", "search"]
