"""Step 8: a pretrained encoder -> embeddings of new pictures, searched (`search/`), or a file for others (`exports/`).

And `duplicates.py`: which pictures are one.
"""

from stepclr.use.embeddings import embed, write_embeddings
from stepclr.use.exports import export
from stepclr.use.search import build_index, open_index, search
from stepclr.use.transformer import SimCLRTransformer

__all__ = ["SimCLRTransformer", "build_index", "embed", "export", "open_index", "search", "write_embeddings"]
