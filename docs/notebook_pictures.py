"""`python docs/notebook_pictures.py`: writes the pictures of the notebooks, as they are committed, to docs/pictures/."""

import base64
import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "pictures"
NAMES = {"01_illustrated_lsh": "hashing", "02_reversible_layers": "reversible"}


def pictures():
    """{file name: bytes of the PNG}, numbered in the order in which they stand in each notebook."""
    found = {}
    for notebook, name in NAMES.items():
        cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        encoded = ["".join(data["image/png"]) for data in outputs if "image/png" in data]
        found |= {f"{name}-{i}.png": base64.b64decode(text) for i, text in enumerate(encoded, 1)}
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, content in pictures().items():
        (FOLDER / file).write_bytes(content)
