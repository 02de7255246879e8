"""What a supervised process does before it serves: it reads its settings from a pipe, unless nobody is there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from api import worker


def test_settings_are_one_line_however_they_arrive() -> None:
    reader, writer = os.pipe()
    settings = b'{"a": "' + b"x" * 300_000 + b'"}\n'  # larger than a pipe holds: it arrives in pieces
    sender = threading.Thread(target=lambda: os.write(writer, settings))
    try:
        sender.start()
        assert worker._first_line(reader) == settings
        sender.join()
    finally:
        os.close(reader)
        os.close(writer)


def test_a_worker_whose_supervisor_said_nothing_ends_quietly() -> None:
    command = [sys.executable, "-m", "api.cli", "worker", "--role", "api"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=45, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
