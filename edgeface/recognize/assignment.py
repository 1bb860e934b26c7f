"""What every pairing of a face and a person is worth in, the best choice out that uses nobody twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError

__all__ = ["assign", "linear_assignment"]


def assign(gains: NDArray[np.floating]) -> NDArray[np.intp]:
    """Choose pairs so that the sum of their gains is as large as it can be.

    Parameters
    ----------
    gains : (F, P) float
        What is won by pairing face and person. A pair whose gain is not positive is never chosen.

    Returns
    -------
    (F,) intp
        The person of each face, -1 for none; nobody twice. There may be more faces than people.
    """
    faces, people = np.shape(gains)
    cost = np.zeros((faces, people + faces))  # a place of its own for every face that gets nobody
    cost[:, :people] = np.where(np.asarray(gains) > 0, -np.asarray(gains, np.float64), 1.0)
    chosen = linear_assignment(cost)
    return np.where(chosen < people, chosen, -1)


def linear_assignment(cost: NDArray[np.floating]) -> NDArray[np.intp]:
    """Give every row a column of its own at the least total cost.

    Shortest augmenting paths (Jonker and Volgenant 1987; Crouse, On implementing 2D rectangular assignment
    algorithms, IEEE TAES 52(4), 2016, which SciPy follows too): O(R^2 C).

    Parameters
    ----------
    cost : (R, C) float
        Finite, R at most C.

    Returns
    -------
    (R,) intp
        The column of each row.

    Raises
    ------
    InputError
        If there are more rows than columns, or a cost is not finite.
    """
    doubles = np.asarray(cost, np.float64)
    if doubles.ndim != 2 or doubles.shape[0] > doubles.shape[1] or not np.isfinite(doubles).all():
        raise InputError(f"assignment: expected finite costs (R, C) with R <= C, found shape {doubles.shape}")
    rows, columns = doubles.shape
    row_of = np.full(columns, -1, np.intp)
    column_of = np.full(rows, -1, np.intp)
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    for start in range(rows):
        distance = np.full(columns, np.inf)
        before = np.full(columns, -1, np.intp)  # the row by which a column is reached
        done = np.zeros(columns, bool)
        seen = [start]
        row, lowest = start, 0.0
        while True:
            reach = lowest + doubles[row] - row_price[row] - column_price
            shorter = ~done & (reach < distance)
            distance[shorter], before[shorter] = reach[shorter], row
            column = int(np.argmin(np.where(done, np.inf, distance)))
            lowest = float(distance[column])
            done[column] = True
            if row_of[column] < 0:
                break
            row = int(row_of[column])
            seen.append(row)
        row_price[start] += lowest
        others = np.array(seen[1:], np.intp)
        row_price[others] += lowest - distance[column_of[others]]
        column_price[done] -= lowest - distance[done]
        while True:
            row = int(before[column])
            row_of[column] = row
            column_of[row], column = column, int(column_of[row])
            if row == start:
                break
    return column_of
