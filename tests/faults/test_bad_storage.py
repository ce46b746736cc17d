"""Rows 37, 38 and 40 of the matrix of bad input (docs/reliability.md): archives, object stores and names."""

import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydino.config import ConfigError
from raydino.curation.archives import SourceError
from raydino.curation.ingest import ingest
from raydino.curation.sources import open_source, read_source
from raydino.shards import retries
from raydino.shards.reader import open_collection


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses before another try, which are noted and not kept."""
    noted: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", noted.append)
    return noted


@pytest.mark.parametrize("name", ["../../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "..\\x.jpg", "link", "device", "pipe"])
def test_row_37__members_that_point_outside_or_are_no_files(name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        info = tarfile.TarInfo(name)
        kinds = {"link": tarfile.SYMTYPE, "device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE}
        info.type, info.linkname = kinds.get(name, tarfile.REGTYPE), "/etc/passwd"
        archive.addfile(info, io.BytesIO(b""))
    with pytest.raises(SourceError, match="make the archive again without it") as refused:
        open_source(str(tmp_path / "t.tar"))
    assert repr(name) in str(refused.value)


@pytest.fixture
def bucket() -> Iterator[Callable[[int, str], tuple[str, list[str]]]]:
    """An object store on this machine that answers every request with one error; returns an address and what was asked."""
    servers = []

    def start(status: int, code: str) -> tuple[str, list[str]]:
        asked: list[str] = []

        class Refuse(BaseHTTPRequestHandler):
            def answer(self) -> None:
                asked.append(f"{self.command} {self.path}")
                body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        servers.append(server := ThreadingHTTPServer(("127.0.0.1", 0), Refuse))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1%3A{server.server_port}&scheme=http&region=us-east-1"
        return f"s3://AKIAIOSFODNN7EXAMPLE:hunter2@bucket/images?endpoint_override={place}", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "InvalidAccessKeyId"), (403, "AccessDenied"), (403, "SignatureDoesNotMatch"), (404, "NoSuchBucket")],
)
def test_row_38__refused_credentials_and_missing_buckets_are_no_loop(status: int, code: str, bucket, waits) -> None:
    address, asked = bucket(status, code)
    with pytest.raises(ConfigError) as refused:
        open_collection(address)
    assert len(asked) <= 3 and not waits, asked
    assert "bucket" in str(refused.value)
    assert "hunter2" not in str(refused.value) and "AKIA" not in str(refused.value)


def test_row_40__names_with_line_breaks_and_bytes_that_are_no_text(tmp_path: Path, capfd) -> None:
    (tmp_path / "in").mkdir()
    folder = bytes(tmp_path / "in")
    for name, data in ((b"a\nERROR fake\x1b[31m.png", png(1)), (b"b\xff\xfe.png", png(2)), (b"c\r.png", b"")):
        Path((folder + b"/" + name).decode("utf-8", "surrogateescape")).write_bytes(data)
    paths = [image.path for image in read_source(str(tmp_path / "in"))]
    assert paths == [r"a\nERROR fake\x1b[31m.png", r"b\udcff\udcfe.png", r"c\r.png"]
    ingest([str(tmp_path / "in")], str(tmp_path / "out"), max_bad=0.5)
    assert pq.read_table(tmp_path / "out" / "quarantine.parquet")["path"].to_pylist() == [r"c\r.png"]
    assert "fake" not in "".join(capfd.readouterr())
