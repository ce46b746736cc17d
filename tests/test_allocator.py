"""Memory that a process keeps for its next step."""

import os
import platform
import resource
import subprocess
import sys

import pytest

from raydino import allocator

FAULTS = """
import resource, torch
from raydino.allocator import keep_freed_memory

def fresh_pages():
    for step in range(20):
        if step == 16:  # the first steps, up to five, grow the heap where small blocks lie between large ones
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(size * 1_000_000) for size in (11, 13, 17)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = fresh_pages()
keep_freed_memory()
print(given_back, fresh_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_keep_freed_memory__steps_after_the_first_take_no_fresh_pages():
    chosen = {name: value for name, value in os.environ.items() if name not in allocator.MALLOC_VARIABLES}
    words = [sys.executable, "-c", FAULTS]
    told = subprocess.run(words, env=chosen, capture_output=True, text=True, check=True).stdout
    given_back, kept = map(int, told.split())
    pages = 4 * 41 * 4_000_000 // resource.getpagesize()  # four steps of 164 MB
    assert given_back > 0.9 * pages
    assert kept < pages / 100


@pytest.mark.parametrize("name", allocator.MALLOC_VARIABLES)
def test_keep_freed_memory__leaves_an_allocator_alone_that_the_environment_sets(name, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: pytest.fail("asked for the allocator"))
    monkeypatch.setenv(name, "")
    allocator.keep_freed_memory()
