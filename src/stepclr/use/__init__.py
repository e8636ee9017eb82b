"""Step 8: a pretrained encoder -> embeddings of new pictures."""

from stepclr.use.embed import embed, write_embeddings

__all__ = ["embed", "write_embeddings"]
