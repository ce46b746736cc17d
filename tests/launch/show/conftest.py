"""Image files for pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two photographs of one name in two folders, a broken one and a text."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "other").mkdir()
    numbers = np.random.default_rng(0)
    found = {"wide": folder / "cat (1).png", "high": folder / "other" / "cat (1).png"}
    Image.fromarray(numbers.integers(0, 256, (40, 80, 3), dtype=np.uint8)).save(found["wide"])
    Image.fromarray(numbers.integers(0, 256, (60, 40, 3), dtype=np.uint8)).save(found["high"])
    found["broken"], found["text"] = folder / "broken.png", folder / "text.png"
    found["broken"].write_bytes(found["wide"].read_bytes()[:2000])
    found["text"].write_text("no image")
    return found
