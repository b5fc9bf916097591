"""Arrays that stay as they are: what frozen data is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["frozen_array"]


def frozen_array(values: ArrayLike, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """A copy of ``values`` (any shape, as ``dtype`` where it is given) that cannot be written to.

    An array that is frozen already and owns its memory is taken as it is.
    """
    array = np.asarray(values, dtype)
    if array.flags.writeable or array.base is not None:
        array = array.copy()
        array.flags.writeable = False
    return array
