"""What robust trends (`client_callback.wire.trends`) are taken of here: means of blocks of a column."""

from __future__ import annotations

import numpy as np

from client_callback.wire.protocol import Float64
from monitor.series import Column


def block_means(column: Column, first: int, block: int, count: int) -> Float64:
    """Means of `count` blocks of `block` steps, the first beginning at step `first`; float64 `[count]`.

    The column must reach that far. Only finite values count; NaN where a block has none.
    """
    if count < 1:
        return np.empty(0)
    # Centred windows of one block's length, one block apart, are exactly the blocks.
    middle = first + block // 2
    _, means = column.smoothed(middle, middle + (count - 1) * block + 1, count, block)
    return means
