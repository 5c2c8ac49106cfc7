"""Arithmetic over Z_p, in exact integers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def is_prime(n: int) -> bool:
    """Whether n is a prime number (trial division: moduli are small)."""
    return n >= 2 and all(n % d for d in range(2, int(n**0.5) + 1))


def make_vectors(p: int, n_vars: int) -> IntArray:
    """All of Z_p^n_vars in lexicographic order, int64 (p^n_vars, n_vars): row i holds the base-p digits of i."""
    return np.stack(np.unravel_index(np.arange(p**n_vars), (p,) * n_vars), axis=1).astype(np.int64)


def index_vectors(vectors: IntArray, p: int) -> IntArray:
    """The inverse of `make_vectors`: (..., n_vars) -> (...), each vector's lexicographic index."""
    n_vars = vectors.shape[-1]
    return vectors @ (p ** np.arange(n_vars - 1, -1, -1, dtype=np.int64))


def find_multiples(vectors: IntArray, p: int) -> tuple[IntArray, IntArray]:
    """For each vector the others among `vectors` that are a multiple c v mod p of it, c = 0 to p - 1.

    For prime p these are the other given points of its line through the origin. (M, n_vars) -> positions (M, K) and
    counts (M,): row i holds the positions in `vectors` of its counts[i] multiples, then zeros.
    """
    position = np.full(p ** vectors.shape[1], -1, dtype=np.int64)
    position[index_vectors(vectors, p)] = np.arange(len(vectors))
    factors = np.arange(p, dtype=np.int64)[:, None]
    rows = []
    for i, vector in enumerate(vectors):
        found = np.unique(position[index_vectors(factors * vector % p, p)])
        rows.append(found[(found >= 0) & (found != i)])
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    table = np.zeros((len(rows), max(1, int(counts.max(initial=0)))), dtype=np.int64)
    for row, found in zip(table, rows, strict=True):
        row[: len(found)] = found
    return table, counts
