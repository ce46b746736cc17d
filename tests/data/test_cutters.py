"""A cutting thread's process: the same pixels, and what happens when it is not there, dies, or is left."""

import io
import logging
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import psutil
import pytest
from PIL import Image

from raydino.data import cutters
from raydino.data.crops import Cropper
from raydino.data.cutters import MODULE, Cutter
from raydino.data.decode import decode
from raydino.data.draws import room
from raydino.views import Crops, Views

VIEWS = Views(
    crops={
        "global": Crops(count=2, size=24, scale=(0.3, 1), blur=(0.0, 0.9), solarize=(0, 0.2)),
        "local": Crops(count=3, size=9, scale=(0.05, 0.3)),
    }
)
BROKEN = b"no image"


def encoded(number):
    pixels = np.random.default_rng(number).integers(0, 256, (30 + number, 40, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="PNG")
    return number % 2, bytes([number]) * 16, data.getvalue()


IMAGES = [encoded(number) for number in range(5)]


def space(views, count):
    """Zeros for `count` images, and the part of each."""
    arrays = room(views, count)
    for array in arrays.values():
        array[...] = 0
    return arrays, [{name: array[:, image] for name, array in arrays.items()} for image in range(count)]


def require_cut(images, arrays, views):
    """Against the slow version: decode the image, cut it by itself."""
    cropper = Cropper(views, seed=3)
    for column, (epoch, sample, data) in enumerate(images):
        expected = cropper(decode(data, least=cropper.least), epoch=epoch, sample=sample)
        for name, crop in expected.items():
            assert np.array_equal(crop, arrays[name][:, column])


def processes():
    return [child for child in psutil.Process().children() if MODULE in child.cmdline()]


def with_process(views=VIEWS, *, images=5):
    """A cutter whose process is there."""
    cutter = Cutter(Cropper(views, seed=3), images=images)
    until = time.monotonic() + 60
    while cutter._process is None or not cutter._process.ready():
        assert time.monotonic() < until
        cutter.cut_encoded(IMAGES[:1], out=space(views, 1)[1])
    return cutter


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cutters, "PATIENCE", 0.0)


def test_cutter__its_process_cuts_the_same_pixels_and_tells_what_cannot_be_decoded(monkeypatch: pytest.MonkeyPatch):
    """Whether encoded images lie in shared memory, as two of five do here, or are sent."""
    monkeypatch.setattr(cutters, "ENCODED_BYTES", len(IMAGES[0][2]) + len(IMAGES[1][2]))
    broken = [IMAGES[0], (0, b"b" * 16, BROKEN), IMAGES[2], (0, b"e" * 16, b"")]
    here = Cropper(VIEWS, seed=3).cut_encoded(broken, out=space(VIEWS, 4)[1])
    cutter = with_process(VIEWS)
    with closing(cutter), monkeypatch.context() as patched:
        patched.setattr(Cropper, "cut_encoded", lambda *_, **__: pytest.fail("cut in this process"))
        for images in (IMAGES, IMAGES[3:], IMAGES[1:2]):
            arrays, out = space(VIEWS, len(images))
            assert cutter.cut_encoded(images, out=out) == [None] * len(images)
            require_cut(images, arrays, VIEWS)
        arrays, out = space(VIEWS, 4)
        assert cutter.cut_encoded(broken, out=out) == here == [None, "not an image", None, "empty"]
        assert not arrays["global"][:, [1, 3]].any()
        require_cut([broken[0], broken[2]], {name: array[:, [0, 2]] for name, array in arrays.items()}, VIEWS)
    assert processes() == []


def test_cutter__has_no_process_before_it_has_cut_for_long_enough(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cutters, "PATIENCE", 3600.0)
    with closing(Cutter(Cropper(VIEWS, seed=3), images=5)) as cutter:
        arrays, out = space(VIEWS, 5)
        assert cutter.cut_encoded(IMAGES, out=out) == [None] * 5 and processes() == []
        require_cut(IMAGES, arrays, VIEWS)


def test_cutter__whose_process_dies_goes_on_by_itself_and_starts_another_later(caplog: pytest.LogCaptureFixture):
    """Killed while it waits, then, the other, by an error in the midst of its work, which is met here again."""
    with closing(with_process()) as cutter, caplog.at_level(logging.WARNING):
        cutter._process._process.kill()
        cutter._process._process.wait()
        cutter._patience = 3600.0
        arrays, out = space(VIEWS, 5)
        assert cutter.cut_encoded(IMAGES, out=out) == [None] * 5
        require_cut(IMAGES, arrays, VIEWS)
        assert "exit status -9" in caplog.text and "36000 s" in caplog.text and processes() == []
        cutter._cut_here = 36000.0
        until = time.monotonic() + 60
        while cutter._process is None or not cutter._process.ready():
            assert time.monotonic() < until
            assert cutter.cut_encoded(IMAGES, out=out) == [None] * 5
        with pytest.raises(UnicodeEncodeError, match="surrogates"):
            cutter.cut_encoded([(0, "\ud800", IMAGES[0][2])], out=out[:1])  # type: ignore[list-item]  no such id
        assert "exit status 1" in caplog.text and processes() == []


def test_cutter__that_cannot_start_a_process_goes_on_by_itself(monkeypatch, caplog: pytest.LogCaptureFixture):
    def refused(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(cutters.subprocess, "Popen", refused)
    with closing(Cutter(Cropper(VIEWS, seed=3), images=5)) as cutter, caplog.at_level(logging.WARNING):
        arrays, out = space(VIEWS, 5)
        assert cutter.cut_encoded(IMAGES, out=out) == [None] * 5
        require_cut(IMAGES, arrays, VIEWS)
        assert "could not start" in caplog.text and "Resource temporarily unavailable" in caplog.text


WORKER = """
import sys
from raydino.data import cutters
from raydino.data.crops import Cropper
from raydino.views import Crops, Views
cutters.PATIENCE = 0.0
cutter = cutters.Cutter(Cropper(Views(crops={"global": Crops(count=1, size=8, scale=(0.3, 1))}), seed=0), images=1)
cutter.cut_encoded([], out=[])
print(cutter._process._process.pid, flush=True)
sys.stdin.read()
"""


def test_cutter__its_process_ends_with_a_worker_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        process = psutil.Process(int(worker.stdout.readline()))
        worker.kill()
    psutil.wait_procs([process], timeout=60)
    assert not process.is_running()
