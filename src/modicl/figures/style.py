"""What all figures share: column width, type sizes, and the colours of the four sets."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from modicl.files import explain_os_errors

COLUMN = 3.35
"""Width of a paper's column, inches."""

WIDE = 6.9
"""Width of a paper's page, inches."""

# Okabe and Ito's colours, told apart in every common form of colour blindness. Colour says which tasks; held-out
# inputs are dashed and marked, so that the four also differ in print without colour.
SET_STYLES = {
    "id_train": {"color": "#0072B2", "linestyle": "-"},
    "id_test": {"color": "#56B4E9", "linestyle": "--"},
    "ood_train": {"color": "#D55E00", "linestyle": "-"},
    "ood_test": {"color": "#E69F00", "linestyle": "--"},
}

_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "#DDDDDD",
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 300,
}


def use_style() -> AbstractContextManager[None]:
    """Draw in this style while open, and leave matplotlib's global settings as they were."""
    return mpl.rc_context(_SETTINGS)


def make_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, in this style."""
    with use_style():
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write stem.pdf and stem.png and return both. Raises `StorageError`."""
    files = [stem.with_name(f"{stem.name}.{ending}") for ending in ("pdf", "png")]
    with explain_os_errors(stem.parent), use_style():
        stem.parent.mkdir(parents=True, exist_ok=True)
        for file in files:
            # No date in the PDF: the same numbers make the same file.
            figure.savefig(file, metadata={"CreationDate": None} if file.suffix == ".pdf" else None)
    return files
