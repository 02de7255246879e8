"""What large arrays leave behind goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

GROW_AND_FREE = """
import os
import psutil
from api.heap import bound_the_heap

bound_the_heap()
process = psutil.Process(os.getpid())
before = process.memory_info().rss
for _ in range(3):
    blocks = [bytearray(megabytes << 20) for megabytes in (6, 12, 24)]
    small = bytearray(1000)
    del blocks
print(process.memory_info().rss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_process_does_not_keep_what_large_blocks_took() -> None:
    done = subprocess.run([sys.executable, "-c", GROW_AND_FREE], capture_output=True, text=True, check=True, timeout=30)
    assert int(done.stdout) < 5 << 20
