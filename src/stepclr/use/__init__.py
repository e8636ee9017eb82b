"""Step 8: a pretrained encoder -> embeddings of new pictures, or a file for others (`exports/`).

And `duplicates.py`: which pictures are one.
"""

from stepclr.use.embeddings import embed, write_embeddings
from stepclr.use.exports import export

__all__ = ["embed", "export", "write_embeddings"]
