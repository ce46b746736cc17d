"""Files that are on the disk when a call returns, with the hash of what was meant to be in them.

The hash is taken from memory while writing, not from the file afterwards, so a file that came out wrong does not match it.
Tensors are written in the safetensors format piece by piece: its own writer holds Python's lock for the whole file, and the
training beside it would stand still.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedWriter
from pathlib import Path

import torch
from torch import Tensor

PIECE = 16 * 2**20  # bytes between two looks at the lock; hashing and writing one takes some 30 ms without it
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write CPU tensors as safetensors; returns the sha256 of what the file has to hold. Raises OSError."""
    return _write(path, _safetensors(tensors))


def write_text(path: Path, text: str) -> str:
    """Write a text; returns its sha256. Raises OSError."""
    return _write(path, [text.encode()])


def sha256(path: Path, *, from_disk: bool = False) -> str:
    """Hash of a file; `from_disk` first lets go of what memory holds of it, where the system can do so. Raises OSError."""
    with path.open("rb") as file:
        if from_disk and hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # advice that some file systems refuse
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_folder(path: Path) -> None:
    """Names in a folder are on the disk, too, when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces:
            digest.update(piece)
            _put(file, piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _put(file: BufferedWriter, piece: bytes | memoryview) -> None:
    """Every byte of a checkpoint goes through here."""
    file.write(piece)


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The format: length of the header, header as JSON, data of all tensors one after another."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for begin in range(0, len(data), PIECE):
            yield data[begin : begin + PIECE]
