"""Signed distance fields: d(p) is the distance in pixels from the point p to an outline, positive inside.

A field is computed once, on a square grid.  An image then takes d at any points by interpolation, which draws the
outline in any place, size and direction, with soft edges.  Read next: mnist.py.
"""

from collections.abc import Sequence

import numpy as np

STEP = 0.5  # pixels between two points of a field: bilinear look-ups show no facets at this spacing
GRID = 57  # points on a side of a field: STEP * (GRID - 1) = 28 pixels


def signed_distance(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Return the distance to closed polygons, (GRID, GRID) float32 in pixels, row 0 at the top.

    polygons: each (P, 2) of x, y in pixels from the centre, y downwards.  The last point repeats the first.
    """
    placed = [p.astype(np.float32) for p in polygons]
    (ax, ay), (bx, by) = np.concatenate([p[:-1] for p in placed]).T, np.concatenate([p[1:] for p in placed]).T

    axis = ((np.arange(GRID) - (GRID - 1) / 2) * STEP).astype(np.float32)
    px, py = axis[None, :, None], axis[:, None, None]  # rows, columns, edges
    dx, dy = bx - ax, by - ay
    along = np.clip(((px - ax) * dx + (py - ay) * dy) / np.maximum(dx * dx + dy * dy, 1e-9), 0, 1)
    distance = np.sqrt(((px - ax - along * dx) ** 2 + (py - ay - along * dy) ** 2).min(-1))
    # A point is inside if the edges wind around it: of the edges that cross the ray from the point to the right, count
    # those that go one way minus those that go the other way.
    left = dx * (py - ay) - dy * (px - ax)
    winding = ((ay <= py) & (by > py) & (left > 0)).sum(-1) - ((by <= py) & (ay > py) & (left < 0)).sum(-1)
    return np.where(winding != 0, distance, -distance).astype(np.float32)


def look_up(fields: np.ndarray, index: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Interpolate fields[index] bilinearly at (x, y), in pixels from the centre: (N,), (N, P), (N, P) -> (N, P).

    A point outside the field takes the nearest value on the border, which is negative.
    """
    x, y = (np.clip(a / STEP + (GRID - 1) / 2, 0, GRID - 1.001) for a in (x, y))
    (x, column), (y, row) = np.modf(x), np.modf(y)
    at = index[:, None].astype(np.int32) * GRID**2 + (row * GRID + column).astype(np.int32)
    upper = fields.take(at) * (1 - x) + fields.take(at + 1) * x
    lower = fields.take(at + GRID) * (1 - x) + fields.take(at + GRID + 1) * x
    return upper * (1 - y) + lower * y
