"""Files made to run code or to write elsewhere (F29): each would create a marker, none may; each is refused with its reason."""

import hashlib
import io
import json
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raydino.config import ConfigError, read_yaml_file
from raydino.curation.embed import open_descriptor
from raydino.curation.sources import open_source, read_source
from raydino.data.claims import Claims
from raydino.data.decode import Undecodable, decode
from raydino.launch.cluster import ClusterConfig
from raydino.launch.terminal.command import parse
from raydino.recipe import Recipe
from raydino.shards.reader import open_collection
from raydino.train import checkpoint as checkpoints


class Bomb:
    """Creates the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def yaml_tag(folder: Path, marker: Path) -> None:
    (folder / "my.yaml").write_text(f"name: !!python/object/apply:os.system ['touch {marker}']\n")
    Recipe().override(read_yaml_file(folder / "my.yaml"))


def yaml_object(folder: Path, marker: Path) -> None:
    (folder / "my.yaml").write_text(f"!!python/object/new:subprocess.Popen [[touch, {marker}]]\n")
    ClusterConfig().override(read_yaml_file(folder / "my.yaml"))


def target(folder: Path, marker: Path) -> None:
    Recipe().from_yaml(f"method: {{_target_: os.system, command: touch {marker}}}")


def flag(folder: Path, marker: Path) -> None:
    words = ["--method._target_", "os.system", "--method.command", f"touch {marker}"]
    try:
        parse(Recipe(), {}, description="Train.", argv=words)
    except SystemExit as left:
        raise ConfigError(f"exit status {left.code}") from None


def run_name(folder: Path, marker: Path) -> None:
    Recipe().override({"name": f"$(touch {marker})"})


def _commit(folder: Path) -> None:
    """Make the hashes agree, as whoever writes the file can."""
    manifest = {}
    for path in folder.iterdir():
        if path.name not in ("MANIFEST.json", "COMMIT"):
            data = path.read_bytes()
            manifest[path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    (folder / "COMMIT").write_text(hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest())


def _checkpoint(folder: Path) -> Path:
    state = {"w": torch.zeros(2, 3)}
    return checkpoints.save(folder, checkpoints.Checkpoint(step=3, model=state, optimizer=state, meta={}), keep=3)


def checkpoint_tensors(folder: Path, marker: Path) -> None:
    saved = _checkpoint(folder)
    (saved / "model.safetensors").write_bytes(pickle.dumps(Bomb(marker)))
    _commit(saved)
    checkpoints.load_newest(folder)


def checkpoint_torch(folder: Path, marker: Path) -> None:
    saved = _checkpoint(folder)
    torch.save({"w": Bomb(marker)}, saved / "optimizer.safetensors")
    _commit(saved)
    checkpoints.load_newest(folder)


def checkpoint_distributed(folder: Path, marker: Path) -> None:
    """The index of torch's distributed checkpoints is a pickle, whatever its tensors are; here it is a file too many."""
    (_checkpoint(folder) / ".metadata").write_bytes(pickle.dumps(Bomb(marker)))
    checkpoints.load_newest(folder)


def weights(folder: Path, marker: Path) -> None:
    torch.save({"w": Bomb(marker)}, folder / "weights.safetensors")
    open_descriptor(f"timm:test_vit@{folder / 'weights.safetensors'}")


def claims(folder: Path, marker: Path) -> None:
    with (folder / "claims.npz").open("wb") as file:
        np.savez(file, ids=np.array([Bomb(marker)], dtype=object), owners=np.array([1]), data=np.array("d"))
    Claims(folder / "claims.npz", "d")


def parquet_extension(folder: Path, marker: Path) -> None:
    """Arrow once unpickled an extension type that a file declares (CVE-2023-47248)."""
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Bomb(marker)),
    }
    field = pa.field("image", pa.int64(), metadata=extension)
    pq.write_table(pa.table([pa.array([1])], schema=pa.schema([field])), folder / "train.parquet")
    open_collection(str(folder)).read(0)


def _tar(folder: Path, *members: tuple[str, bytes, str]) -> str:
    with tarfile.open(folder / "t.tar", "w") as archive:
        for name, kind, aim in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, aim, 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"gone"))
    return str(folder / "t.tar")


def tar_outside(folder: Path, marker: Path) -> None:
    list(read_source(_tar(folder, (f"../{marker.name}", tarfile.REGTYPE, ""))))


def tar_absolute(folder: Path, marker: Path) -> None:
    list(read_source(_tar(folder, (str(marker), tarfile.REGTYPE, ""))))


def tar_through_a_link(folder: Path, marker: Path) -> None:
    list(
        read_source(
            _tar(folder, ("out", tarfile.SYMTYPE, str(marker.parent)), (f"out/{marker.name}", tarfile.REGTYPE, ""))
        )
    )


def zip_outside(folder: Path, marker: Path) -> None:
    with zipfile.ZipFile(folder / "t.zip", "w") as archive:
        archive.writestr(f"../{marker.name}", b"gone")
    open_source(str(folder / "t.zip"))


def postscript(folder: Path, marker: Path) -> None:
    decode(f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n({marker}) (w) file closefile\nshowpage\n".encode())


ATTACKS: dict[Callable[[Path, Path], None], str] = {  # and the reason it is refused with
    yaml_tag: r"my\.yaml: not valid YAML: could not determine a constructor",
    yaml_object: r"my\.yaml: not valid YAML: could not determine a constructor",
    target: r"method\._target_: there is no field '_target_'",
    flag: "exit status 2",
    run_name: "name = .*pattern",
    checkpoint_tensors: "not in the safetensors format",
    checkpoint_torch: "not in the safetensors format",
    checkpoint_distributed: r"\.metadata is a pickle",
    weights: "safetensors",
    claims: r"claims\.npz.*(allow_pickle|pickle)",
    parquet_extension: "column 'image' is",
    tar_outside: "points outside the archive",
    tar_absolute: "points outside the archive",
    tar_through_a_link: "is a link or a device",
    zip_outside: "points outside the archive",
    postscript: "format not allowed",
}


@pytest.mark.parametrize(("attack", "reason"), ATTACKS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_f29__the_marker_never_appears(attack: Callable[[Path, Path], None], reason: str, tmp_path: Path) -> None:
    folder, marker = tmp_path / "in" / "folder", tmp_path / "in" / "marker"
    folder.mkdir(parents=True)
    with pytest.raises((ConfigError, Undecodable, checkpoints.CheckpointError, Exception), match=reason):
        attack(folder, marker)
    assert not marker.exists()
    assert not list(tmp_path.rglob("marker"))


def test_f29__the_bombs_are_live(tmp_path: Path) -> None:
    """What is not refused would have created the marker: else the test above could not fail."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()
    (tmp_path / "marker").unlink()
    torch.save(Bomb(tmp_path / "marker"), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "marker").exists()
    (tmp_path / "marker").unlink()
    archive = _tar(tmp_path, ("marker", tarfile.REGTYPE, ""))
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, **({"filter": "fully_trusted"} if sys.version_info >= (3, 11, 4) else {}))
    assert (tmp_path / "marker").exists()
