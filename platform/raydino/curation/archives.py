"""Members of tar and zip files, read as streams and never extracted, so that no name in an archive becomes a path on
disk.

Names that point outside, links and devices are refused all the same: an archive that holds them was not made for this.
"""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from raydino.config import ConfigError
from raydino.shards.schema import Folder

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVES = (*TARS, ".zip")
BUFFER = 1 << 20  # object storage is asked for a megabyte at a time, not for each 512-byte header
_REGULAR = (0, 0o10)  # kinds of file in a Unix mode: unset, regular

Read = Callable[[int], bytes]
"""Reads at most so many bytes of a member."""


class SourceError(ConfigError):
    """A source that cannot be read. The message names the source, the member if any, and the remedy."""


def members(folder: Folder, name: str) -> Iterator[tuple[str, Read]]:
    """Regular members of a tar or zip as (path, read), in the archive's order; read each before asking for the next.

    Raises SourceError for a missing or damaged archive and for a member that is a link, a device or points outside.
    """
    place = f"{folder}/{name}"
    try:
        with folder.fs.open_input_file(folder.where(name)) as raw:
            stream = io.BufferedReader(cast("io.RawIOBase", raw), BUFFER)
            yield from _zip(stream, place) if name.lower().endswith(".zip") else _tar(stream, place)
    except FileNotFoundError:
        raise SourceError(f"{place}: there is no such file; check the path.") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        raise _damaged(place, error) from None


def _tar(stream: IO[bytes], place: str) -> Iterator[tuple[str, Read]]:
    with tarfile.open(fileobj=stream, mode="r:*") as archive:
        for info in archive:
            if info.isdir():
                continue
            if not info.isreg():
                raise _refused(place, info.name, "is a link or a device")
            path, member = _safe(place, info.name), archive.extractfile(info)
            if member is not None:
                yield path, _reader(member, place)
            cast("Any", archive).members.clear()  # else a tar of millions keeps every header


def _zip(stream: IO[bytes], place: str) -> Iterator[tuple[str, Read]]:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if (info.external_attr >> 28) not in _REGULAR:  # the upper four bits of the Unix mode
                raise _refused(place, info.filename, "is a link or a device")
            path = _safe(place, info.filename)
            with archive.open(info) as member:
                yield path, _reader(member, place)


def _reader(member: IO[bytes], place: str) -> Read:
    def read(size: int) -> bytes:
        try:
            return member.read(size)
        except Exception as error:  # zlib, lzma and tarfile each have errors of their own for a torn stream
            raise _damaged(place, error) from None

    return read


def _safe(place: str, name: str) -> str:
    path = name.removeprefix("./")
    if not path or path.startswith(("/", "\\")) or ".." in path.replace("\\", "/").split("/") or "\0" in path:
        raise _refused(place, name, "points outside the archive")
    return path


def _refused(place: str, member: str, why: str) -> SourceError:
    return SourceError(f"{place}: member {member!r} {why}; make the archive again without it.")


def _damaged(place: str, error: Any) -> SourceError:
    return SourceError(f"{place}: damaged or encrypted archive ({error}); fetch it again.")
