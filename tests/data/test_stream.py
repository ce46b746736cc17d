"""What Ray's tasks load to read windows; that they bring the right ones is in test_batches.py."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

from raydino.curation.synthetic import write_builtin
from raydino.data.fetch import Fetch
from raydino.data.stream import Pace
from raydino.shards.reader import open_collection

PLATFORM = Path(__file__).resolve().parents[2] / "platform"


def test_tasks_that_read__import_no_torch(tmp_path: Path):
    """Four processes that did took half a minute of two cores at every start. What Ray sends them is the function and the context
    of the dataset, with its callback."""
    write_builtin(str(tmp_path / "images"), train=16, test=8)
    fetch = Fetch(open_collection(str(tmp_path / "images"), split="train"), None)
    (tmp_path / "sent").write_bytes(pickle.dumps((fetch.asked, Pace)))
    script = (
        "import pickle, sys\n"
        "pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "print([name for name in ('torch', 'albumentations', 'timm', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "sent")],
        env={**os.environ, "PYTHONPATH": str(PLATFORM)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
