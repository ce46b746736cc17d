"""Cutters: each thread that cuts crops has a process beside it, for threads of one process take turns at Python's lock.

A thread begins by itself. Once it has cut for as long as pays for the start of a process, it starts one, and from then on lays
encoded images into memory that both share and copies crops out of it. If the process dies, the thread goes on by itself, and in
time starts another. The pixels are the same either way. The process ends when its connection does, so with the worker, however
that ends.
"""

import logging
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from raydino.allocator import keep_freed_memory
from raydino.data.crops import Cropper, Encoded
from raydino.data.draws import room

log = logging.getLogger(__name__)

_Laid = tuple[int, bytes, int | bytes]
"""Epoch and id of an image, and how many bytes of it lie in shared memory, or else the bytes."""

MODULE = "raydino.data.cutters"
"""What a cutting process runs."""
PATIENCE = 10.0  # s of cutting before a process is started, which takes 3 s of a core; short runs never start one
ENCODED_BYTES = 8 << 20  # of encoded images in shared memory at once; what does not fit is sent
END_SECONDS = 5.0  # for one that is dying to tell how


class Cutter:
    """Cuts as a `Cropper` does, for one thread at a time, up to `images` images at once; close it to end its process."""

    def __init__(self, cropper: Cropper, *, images: int) -> None:
        self._cropper, self._images = cropper, images
        self._cut_here, self._patience = 0.0, PATIENCE
        self._process: _Process | None = None

    def cut_encoded(self, images: Sequence[Encoded], *, out: Sequence[Mapping[str, NDArray[Any]]]) -> list[str | None]:
        """As `Cropper.cut_encoded`."""
        try:
            if self._process is None and self._cut_here >= self._patience:
                self._process = _Process(self._cropper, self._images)
            if self._process is not None and self._process.ready():
                return self._process.cut_encoded(images, out=out)
        except (OSError, EOFError) as error:
            self._lose(error)
        begun = time.perf_counter()
        reasons = self._cropper.cut_encoded(images, out=out)
        self._cut_here += time.perf_counter() - begun
        return reasons

    def close(self) -> None:
        """End its process."""
        if self._process is not None:
            self._process.end(0.0)

    def _lose(self, error: OSError | EOFError) -> None:
        why = f"could not start ({error})"
        if self._process is not None:
            why = f"has ended (exit status {self._process.end(END_SECONDS)}; -9: killed, as where memory runs out)"
        self._process, self._cut_here, self._patience = None, 0.0, 10 * self._patience
        log.warning(
            "a process that cuts crops %s; a thread cuts in its place, another starts in %.0f s", why, self._patience
        )


class _Process:
    """The other process, as its thread sees it."""

    def __init__(self, cropper: Cropper, images: int) -> None:
        self._ready = False
        self._connection, theirs = Pipe()
        size = sum(array.nbytes for array in room(cropper.views, images).values()) + ENCODED_BYTES
        with theirs, _shared_file(size) as shared:
            self._shared = _Shared(cropper, images, shared.fileno())
            given = (theirs.fileno(), shared.fileno())
            paths = {"PYTHONPATH": os.pathsep.join(sys.path)}  # a worker has some that its environment does not name
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, *map(str, given)],
                env={**os.environ, **paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.DEVNULL,
                pass_fds=given,
            )
        self._connection.send((cropper, images))

    def ready(self) -> bool:
        """Whether it has loaded what it needs. Raises EOFError or OSError where it has died."""
        if not self._ready and self._connection.poll():
            self._ready = self._connection.recv() == "ready"
        return self._ready

    def cut_encoded(self, images: Sequence[Encoded], *, out: Sequence[Mapping[str, NDArray[Any]]]) -> list[str | None]:
        """As `Cropper.cut_encoded`. Raises EOFError or OSError where it has died, or dies meanwhile."""
        self._connection.send(self._shared.lay(images))
        reasons: list[str | None] = self._connection.recv()
        for name, crops in self._shared.crops.items():
            for image, (into, reason) in enumerate(zip(out, reasons, strict=True)):
                if reason is None:
                    into[name][...] = crops[:, image]
        return reasons

    def end(self, seconds: float) -> int:
        """Its exit status; killed if it has not ended by itself after `seconds`."""
        self._connection.close()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _shared_file(size: int) -> BinaryIO:
    """A file of `size` bytes without a name, so that nothing is left over; on Linux in memory, whatever /dev/shm has room for."""
    if hasattr(os, "memfd_create"):
        file: BinaryIO = os.fdopen(os.memfd_create("crops"), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
    file.truncate(size)
    return file


class _Shared:
    """The memory that a thread and its process share: crops as `room` has them, then encoded images side by side."""

    def __init__(self, cropper: Cropper, images: int, shared: int) -> None:
        memory, begin = np.frombuffer(mmap.mmap(shared, 0), np.uint8), 0
        self.crops: dict[str, NDArray[Any]] = {}
        for name, like in room(cropper.views, images).items():
            self.crops[name] = memory[begin : begin + like.nbytes].view(like.dtype).reshape(like.shape)
            begin += like.nbytes
        self._encoded = memory[begin:]

    def lay(self, images: Sequence[Encoded]) -> list[_Laid]:
        """Lays encoded images into it, as many as fit; what `taken` needs."""
        laid, begin = list[_Laid](), 0
        for epoch, sample, data in images:
            fits = begin + len(data) <= len(self._encoded)
            laid.append((epoch, sample, len(data) if fits else data))
            if fits:
                self._encoded[begin : begin + len(data)] = np.frombuffer(data, np.uint8)
                begin += len(data)
        return laid

    def taken(self, laid: Sequence[_Laid]) -> list[Encoded]:
        """The encoded images, as they were before `lay`."""
        images, begin = list[Encoded](), 0
        for epoch, sample, data in laid:
            if isinstance(data, int):
                begin, data = begin + data, self._encoded[begin : begin + data].tobytes()
            images.append((epoch, sample, data))
        return images


def main(connected: int, shared: int) -> None:
    """What the process does: cut what it is sent, until the connection ends. An error ends it too: the thread meets it again."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; this one ends with its worker
    connection = Connection(connected)
    with suppress(EOFError, ConnectionError):
        cropper, most = connection.recv()
        memory = _Shared(cropper, most, shared)
        out = [{name: array[:, image] for name, array in memory.crops.items()} for image in range(most)]
        connection.send("ready")
        while True:
            images = memory.taken(connection.recv())
            connection.send(cropper.cut_encoded(images, out=out[: len(images)]))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
