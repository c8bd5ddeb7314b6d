"""Freed memory that is kept: asked for again it costs no new pages, and at the end it is given back."""

import os
import subprocess
import sys

import pytest

from fewshot_nam import heap, keep_freed_memory

WORK = """
import resource, torch
from fewshot_nam import keep_freed_memory

def new_pages():  # of blocks that are asked for and freed, once the heap has found its form
    def block(): torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(12): block()
    before = faults()
    for _ in range(4): block()
    return faults() - before

def megabytes(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

outside, small = new_pages(), megabytes()
with keep_freed_memory():
    with keep_freed_memory():
        inner = new_pages()
    between, large = new_pages(), megabytes()
print(outside, inner, between, large - small, megabytes() - small)
"""

needs_glibc = pytest.mark.skipif(heap._libc() is None, reason="no glibc here, or its settings say how to keep memory")


def measured(**environment: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", WORK], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return [int(number) for number in done.stdout.split()]


@needs_glibc
def test_freed_memory_is_asked_for_again_without_new_pages():
    outside, inner, between, kept, left = measured()
    pages = (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    if outside < 4 * pages:
        pytest.skip("blocks of 64 MiB are kept, or come in huge pages, by themselves")
    assert inner < pages / 10
    assert between < pages / 10, "the outer one still stands"
    assert kept >= 60
    assert left < 32, "given back at the end"


@needs_glibc
def test_what_the_environment_says_stands():
    ours, theirs = measured(), measured(MALLOC_MMAP_THRESHOLD_="131072", MALLOC_TRIM_THRESHOLD_="131072")
    assert theirs[1] == pytest.approx(theirs[0], abs=200)
    assert theirs[1] > ours[1] or ours[0] < 100


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_other_systems_go_on_as_they_do(monkeypatch, error):
    def refuse(name):
        raise error("no such thing")

    monkeypatch.setattr(heap.ctypes, "CDLL", refuse)
    with keep_freed_memory():
        assert heap._inside == 0


def test_an_error_inside_ends_it():
    with pytest.raises(RuntimeError, match="inside"), keep_freed_memory():
        raise RuntimeError("inside")
    assert heap._inside == 0


THREADS = """
import ctypes, sys, threading
from fewshot_nam.heap import few_heaps

if sys.argv[1] == "few": few_heaps()
inside, done = threading.Barrier(13), threading.Barrier(13)

def work():
    kept = [bytearray(1000) for _ in range(100)]
    inside.wait()
    done.wait()

for _ in range(12): threading.Thread(target=work).start()
inside.wait()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, stream)
libc.fflush(stream)
done.wait()
"""


@needs_glibc
def test_threads_share_a_few_heaps():
    def heaps(how: str) -> int:
        command = [sys.executable, "-c", THREADS, how]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("<heap nr=")

    assert heaps("few") <= 2 < heaps("many")
