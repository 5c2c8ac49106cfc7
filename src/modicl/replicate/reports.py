"""What a measurement reads, the tables that a replication's commands saved, and what it gives: rows of the record.

A measurement is a function of a `Place` to a `Report`. What a table does not hold is `NOTHING`, never a guess, and a
verdict is only ever a comparison of numbers that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modicl.config import UserError
from modicl.files import read_json
from modicl.replicate.findings import Finding
from modicl.replicate.plans import Model, Plan

NOTHING = "not measured"

Estimate = Mapping[str, Any]
"""A value, its interval and its n, as the tables have them."""


@dataclass(frozen=True)
class Row:
    """A line of the record's table."""

    what: str
    paper: str
    ours: str
    n: str = ""
    seeds: str = ""


@dataclass
class Report:
    """What a measurement says."""

    rows: list[Row] = field(default_factory=list)
    verdict: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """A finding at one scale, and the folder of that scale."""

    finding: Finding
    scale: str
    folder: Path

    @property
    def plan(self) -> Plan:
        """The finding's plan at this scale."""
        return self.finding.plans[self.scale]

    def read_table(self, model: Model, kind: str, name: str, which: str = "best") -> Any:
        """A table of a run, of its best checkpoint or another; None where there is none."""
        from modicl.runs import load_run

        path = self.folder / model.run
        try:
            file = path / kind / f"{name.replace('{step}', str(load_run(path).find_step(which)))}.json"
            files = sorted(file.parent.glob(file.name))
            return read_json(files[0]) if files else None
        except UserError:
            return None

    def make_row(self, what: str, ours: str | Estimate | None, n: str = "", seeds: str = "1") -> Row:
        """A row with what the paper says of the same. Without an estimate it says that there is none."""
        if ours is None:
            return Row(what, self.finding.numbers.get(what, ""), NOTHING)
        if isinstance(ours, str):
            return Row(what, self.finding.numbers.get(what, ""), ours, n, seeds)
        return Row(what, self.finding.numbers.get(what, ""), show(ours), f"{ours['n']:,}", seeds)


def dig(table: Any, *path: str | int) -> Any:
    """What a table has at these keys and positions, or None."""
    for key in path:
        try:
            table = table[key]
        except (KeyError, IndexError, TypeError):
            return None
    return table


def show(estimate: Estimate) -> str:
    """A value with its 95 % interval."""
    low, high = estimate["low"], estimate["high"]
    interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{estimate['value']:.3f}{interval}"
