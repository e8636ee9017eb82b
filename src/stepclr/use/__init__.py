"""Step 8: a pretrained encoder -> embeddings of new pictures. And `duplicates.py`: which pictures are one."""

from stepclr.use.embeddings import embed, write_embeddings

__all__ = ["embed", "write_embeddings"]
