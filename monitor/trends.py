"""What robust trends (`client_callback.wire.trends`) are taken of here: means of blocks of a column."""

from __future__ import annotations

import numpy as np

from client_callback.wire.protocol import Float64
from monitor.series import Column


def block_means(column: Column, first: int, block: int, count: int) -> Float64:
    """Means of `count` blocks of `block` steps, the first beginning at step `first`; float64 `[count]`.

    The column must reach that far. Only finite values count; NaN where a block has none.
    """
    return column.block_means(first, block, count) if count >= 1 else np.empty(0)
