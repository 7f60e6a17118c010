"""The elements under each position of a sliding window, with strides, padding and dilations, as positions."""

from collections.abc import Sequence

import numpy as np


def windows(
    shape: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base_dilation: Sequence[int],
    window_dilation: Sequence[int],
) -> tuple[np.ndarray, tuple[int, ...]]:
    """(output positions, window positions) of flat positions in an array of `shape`, -1 in padding and between elements;
    the shape of the outputs."""
    places = np.zeros((1, 1), int)
    outputs = []
    for size, w, stride, (low, high), base, dilation in zip(
        shape, window, strides, padding, base_dilation, window_dilation, strict=True
    ):
        dilated = (size - 1) * base + 1 if size else 0
        reach = (w - 1) * dilation + 1 if w else 0
        count = max((dilated + low + high - reach) // stride + 1, 0)
        at = np.arange(count)[:, None] * stride + np.arange(w) * dilation - low
        inside = (at >= 0) & (at < dilated) & (at % base == 0)
        at = np.where(inside, at // base, -1)
        new = np.where(at < 0, -1, at)[None, :, None, :]
        old = places[:, None, :, None]
        places = np.where((old < 0) | (new < 0), -1, old * size + new)
        places = places.reshape(places.shape[0] * count, -1)
        outputs.append(count)
    return places, tuple(outputs)
