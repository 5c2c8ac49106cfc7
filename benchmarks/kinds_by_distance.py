"""How well RoPE can tell the three tokens of an example apart by distance alone.

    python benchmarks/kinds_by_distance.py

For a query and a key that say nothing of their tokens, a head's score is a sum of a_j cos(w_j d) + b_j sin(w_j d) over
its pairs j, at distance d. Prints the share of variance (R^2) of "is it a z?", seen from a y, that the best such sum
explains over all distances within a context of n examples: 0 is none, 1 all. A softmax or a layer before can do more.
"""

from __future__ import annotations

import math

import numpy as np
from rich.console import Console
from rich.table import Table

N_EXAMPLES = (8, 12, 20, 34)


def explain_kinds(head_width: int, base: float, period: float, n_examples: int) -> float:
    """R^2 of the best sum of a head's rotations for "every third token", over 3 n_examples distances."""
    distance_T = np.arange(3 * n_examples)
    speed_P = base ** (-np.arange(0, head_width, 2) / head_width) * 2 * math.pi / period
    angle_TP = distance_T[:, None] * speed_P
    parts = np.hstack([np.cos(angle_TP), np.sin(angle_TP), np.ones((len(distance_T), 1))])
    is_z_T = (distance_T % 3 == 2).astype(float)  # the z's before a y are 2, 5, 8, ... tokens back
    weights, *_ = np.linalg.lstsq(parts, is_z_T, rcond=1e-10)
    return float(1 - np.var(is_z_T - parts @ weights) / np.var(is_z_T))


def main() -> None:
    """Print the table."""
    table = Table("head width", "base", "period", *(f"n = {n}" for n in N_EXAMPLES))
    for head_width in (16, 32, 128):
        for base in (1e4, 1e2):
            for period, name in ((2 * math.pi, "2 pi"), (3.0, "3")):
                shares = [explain_kinds(head_width, base, period, n) for n in N_EXAMPLES]
                table.add_row(str(head_width), f"{base:g}", name, *(f"{share:.3f}" for share in shares))
    Console().print(table)


if __name__ == "__main__":
    main()
