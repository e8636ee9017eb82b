"""The rows that a script has measured, in a file to which each is added as it comes: a later call skips those."""

import json
from pathlib import Path
from typing import Any

import torch

import stepclr


class Stored:
    """`done` has the rows that `path` says were measured on this card, with these versions, in these sizes."""

    def __init__(self, path: Path | None, device: str, quick: bool) -> None:
        self.path = path
        self.card = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else "no GPU"
        self.here = {"card": self.card, "torch": torch.__version__, "stepclr": stepclr.__version__, "quick": quick}
        self.done: dict[str, Any] = {}
        lines = path.read_text().splitlines() if path and path.exists() else []
        for line in map(json.loads, lines):
            if line["measured"] and all(line[name] == value for name, value in self.here.items()):
                self.done[line["row"]] = line["result"]

    def add(self, row: str, result: object, measured: bool) -> None:
        """Note a row at once: whatever ends the script later, it stays."""
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(self.here | {"row": row, "result": result, "measured": measured}) + "\n")
