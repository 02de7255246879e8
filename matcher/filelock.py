"""The embedded database belongs to one process: an advisory lock on a file beside it."""

from __future__ import annotations

import fcntl
import os

from matcher.errors import StoreLocked


class FileLock:
    """Held from its making until `release`, or until the process ends in any way.

    Raises StoreLocked where another process (or another store of this one) holds it.
    """

    def __init__(self, path: str) -> None:
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)  # not inherited by children
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 32).decode("ascii", "replace").strip()
            self.release()
            raise StoreLocked(
                f"{path.removesuffix('.lock')} is in use by another hexhail process"
                + (f" (process {holder})" if holder else "")
                + ": stop that one, give this one another data folder, or set HEXHAIL_DATABASE_URL to share a MySQL"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """May be called again. The file stays: removing it would let two processes hold two files."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
