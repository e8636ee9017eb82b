"""Steps 3 and 4: a view `[n, 3, S, S]` -> representation h `[n, F]` -> projection z `[n, D]`.

`encoder.py` holds f(.), whose output is kept; `head.py` holds g(.), which is thrown away after pretraining;
`files.py` writes and reads `encoder.safetensors`; `represent.py` runs a frozen encoder over an `ImageSet`.
"""

from stepclr.model.encoder import Encoder, build_encoder
from stepclr.model.files import load_encoder, save_encoder
from stepclr.model.head import ProjectionHead
from stepclr.model.represent import represent

__all__ = ["Encoder", "ProjectionHead", "build_encoder", "load_encoder", "represent", "save_encoder"]
