"""How the geo kernels are compiled: to machine code by numba, kept on disk between runs.

A function is compiled when it is first called (`geo.warm` does so before anybody waits), or loaded from what an
earlier process of the same user compiled. Callers give columns of one type and layout only, so that nothing is ever
compiled twice: of arrays that others own, read-only views (`read_only`), as numba tells these from writable ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """The function as machine code. The GIL stays held: nobody may change columns while they are read."""
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written: kept by this process alone
        return njit(function)


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same memory, contiguous and not to be written to."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
