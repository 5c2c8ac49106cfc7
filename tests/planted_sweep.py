"""Rows of a sweep's table with a phase diagram in them that is known: the paper's, at depth 6."""

import csv
import random
from pathlib import Path
from typing import Any

from modicl.config import SETS

TASKS = (8, 16, 32, 64, 128, 256, 512)
ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
GOOD: dict[str, tuple[str, ...]] = {
    "id_memorization": ("id_train",),
    "id_generalization": ("id_train", "id_test"),
    "ood_memorization": ("id_train", "ood_train"),
    "ood_generalization": SETS,
}


def plant_phase(n_tasks: int, alpha: float) -> str:
    if n_tasks >= 256:
        return "ood_generalization" if alpha >= {256: 0.4, 512: 0.3}[n_tasks] else "ood_memorization"
    return "id_generalization" if alpha >= {32: 0.7, 64: 0.6, 128: 0.4}.get(n_tasks, 1) else "id_memorization"


def make_row(n_tasks: int, alpha: float, seed: int, phase: str, last: str | None = None) -> dict[str, Any]:
    """A finished cell in this phase when stopped early and, if not the same, in another at the end."""
    rng = random.Random(f"{n_tasks} {alpha} {seed}")
    row: dict[str, Any] = {"cell": f"n_tasks={n_tasks}_alpha={alpha}_seed={seed}"}
    row |= {"task.n_tasks": n_tasks, "task.alpha": alpha, "seed": seed, "state": "finished", "step": 2000}
    row |= {"steps": 2000, "stopped_by": "steps", "best_step": rng.randrange(100, 2001, 100)}
    for which, where in (("best", phase), ("last", last or phase)):
        for name in SETS:
            good = name in GOOD[where]
            row[f"{which}.{name}.last_accuracy"] = round(rng.uniform(0.8, 1) if good else rng.uniform(0, 0.6), 4)
    for name in SETS:
        row[f"reached.0.75.{name}"] = rng.randrange(100, 1001, 100) if name in GOOD[phase] else None
    return row


def empty(row: dict[str, Any], state: str = "pending") -> dict[str, Any]:
    """The same cell, not finished."""
    results = ("best", "last", "reached", "step", "stopped_by")
    return {name: None if name.startswith(results) else value for name, value in row.items()} | {"state": state}


def make_rows(seeds: int = 1) -> list[dict[str, Any]]:
    """The whole diagram, every seed agreeing."""
    return [make_row(n, a, s, plant_phase(n, a)) for n in TASKS for a in ALPHAS for s in range(seeds)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as a sweep folder that has its table.csv alone."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
