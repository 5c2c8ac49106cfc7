"""Which inputs look alike to a place of the model: the matrix of similarities, and the groups of inputs it follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from modicl.figures.style import WIDE, make_figure, use_style

FloatArray = npt.NDArray[np.float64]

_COLOURS = "PuOr"
_SHARES = colormaps["Blues"]
_UNSURE = "#D9D9D9"
_MARK = "#D55E00"
_RING = "#009E73"
_SIGNIFICANT = 0.05
_ORDER = ("x", "y", "ratio", "z", "sum")
_LABELS = {"ratio": "y/x", "sum": "x+y"}


def plot_similarity(table: dict[str, Any], reference: tuple[int, int] = (1, 2)) -> Figure:
    """The similarity of all pairs of inputs at one place, and two maps of it over x and y.

    `table` has the odd prime `p`, the `place`, the token `read` and the `similarity` of
    `modicl.interp.similarity.compute_similarity` (I, I). Left is that matrix, with a tick where x begins. Right, above,
    is its row of the reference input (a ring). Below is the average over all pairs: the similarity of (u x, v y) to
    (x, y), over all x, y != 0. There a place that sees the ratio alone has one colour on each line through the origin,
    one that sees x on each column, one that sees y on each row. A scale ends where 1 % of the numbers (an input's
    likeness to itself aside) lie beyond.
    """
    p = table["p"]
    matrix = np.asarray(table["similarity"], dtype=np.float64)
    row = matrix[reference[0] % p * p + reference[1] % p].reshape(p, p)
    average = _average_pairs(matrix, p)
    limit = _find_limit(matrix, np.eye(len(matrix), dtype=bool))
    itself = np.zeros((p, p), dtype=bool)
    itself[1, 1] = True
    figure = make_figure(WIDE, 4.0)
    with use_style():
        grid = figure.add_gridspec(2, 2, width_ratios=(2.3, 1))
        axes, above, below = (figure.add_subplot(where) for where in (grid[:, 0], grid[0, 1], grid[1, 1]))
        drawn = axes.imshow(matrix, cmap=_COLOURS, vmin=-limit, vmax=limit)
        axes.grid(visible=False)
        step = -(-p // 12)
        numbers = np.arange(0, p, step)
        axes.set_xticks(numbers * p - 0.5, [str(n) for n in numbers])
        axes.set_yticks(numbers * p - 0.5, [str(n) for n in numbers])
        axes.set_xlabel("x of the input (within it, y from 0)")
        axes.set_ylabel("x of the other input")
        axes.set_title(f"{table['place']}, read at {table['read']}")
        bar = figure.colorbar(
            drawn, ax=axes, shrink=0.8, aspect=30, pad=0.02, extend="both" if limit < 1 else "neither"
        )
        bar.set_label("cosine similarity")
        drawn = _draw_map(above, row, limit, reference)
        above.set_title(f"with input ({reference[0]}, {reference[1]})")
        above.set_xlabel("x")
        above.set_ylabel("y")
        figure.colorbar(drawn, ax=above, pad=0.03, extend="both" if limit < 1 else "neither")
        limit = _find_limit(average, itself)
        drawn = _draw_map(below, average, limit, (1, 1))
        below.set_title("mean: (ux, vy) with (x, y)")
        below.set_xlabel("u")
        below.set_ylabel("v")
        figure.colorbar(drawn, ax=below, pad=0.03, extend="both" if limit < 1 else "neither")
    return figure


def plot_similarity_scores(table: dict[str, Any]) -> Figure:
    """How far every place follows each grouping of the inputs: a panel for each token read.

    `table` is one of `modicl.interp.similarity.analyze_similarity`. A cell is the adjusted share of the variance: where
    there is one, of what the other groupings leave (`beyond`, a mark in the corner), else of all (`alone`). Grey: as
    large a share is in more than 5 % of the permutations. Empty: nothing varies, or there is nothing to tell.
    """
    entries = table["places"]
    places = list(dict.fromkeys(entry["place"] for entry in entries))
    reads = list(dict.fromkeys(entry["read"] for entry in entries))
    found = {(entry["place"], entry["read"]): entry["scores"] for entry in entries}
    scale = ScalarMappable(Normalize(0, 1), _SHARES)
    height = 0.135 * len(places) + 1.05
    figure = make_figure(WIDE, height)
    with use_style():
        panels = figure.subplots(1, len(reads), sharey=True, squeeze=False)[0]
        for axes, read in zip(panels, reads, strict=True):
            colours = np.ones((len(places), len(_ORDER), 4))
            for i, place in enumerate(places):
                for j, name in enumerate(_ORDER):
                    colours[i, j] = _write_cell(axes, i, j, found.get((place, read), {}).get(name))
            axes.imshow(colours, aspect="auto", interpolation="nearest")
            axes.set_title(f"read at {read}")
            axes.set_xticks(range(len(_ORDER)), [_LABELS.get(name, name) for name in _ORDER])
            axes.set_yticks(range(len(places)), [place.removeprefix("blocks.") for place in places], fontsize=6.5)
            axes.grid(visible=False)
            axes.tick_params(length=0)
            for i in range(1, len(places)):
                if places[i].split(".")[:2] != places[i - 1].split(".")[:2]:
                    axes.axhline(i - 0.5, color="#000000", linewidth=0.8)
        panels[0].set_ylabel("block and place")
        bar = figure.colorbar(scale, ax=list(panels), pad=0.01, aspect=height / 0.1)
        bar.set_label("adjusted share of variance")
        marks = [
            Line2D([], [], color=_MARK, marker="^", linestyle="", ms=3.5, label="of what the other groupings leave"),
            Patch(facecolor=_SHARES(0.5), label="without mark: of all"),
            Patch(facecolor=_UNSURE, label=f"p > {_SIGNIFICANT}"),
        ]
        figure.legend(handles=marks, loc="outside upper center", ncols=len(marks))
    return figure


def _write_cell(axes: Axes, i: int, j: int, scores: dict[str, Any] | None) -> Any:
    """Write the number of a cell and return its colour."""
    kind = next((kind for kind in ("beyond", "alone") if scores and scores[kind]["adjusted"] is not None), None)
    if scores is None or kind is None:
        return to_rgba("#FFFFFF")
    value, p_value = scores[kind]["adjusted"], scores[kind]["p_value"]
    is_sure = p_value <= _SIGNIFICANT
    colour = _SHARES(min(1.0, max(0.0, value))) if is_sure else to_rgba(_UNSURE)
    ink = "#555555" if not is_sure else "#FFFFFF" if value > 0.6 else "#000000"
    text = f"{value:.2f}".replace("-0.00", "0.00").replace("-", "\N{MINUS SIGN}")
    axes.text(j, i, text, ha="center", va="center_baseline", fontsize=6, color=ink)
    if kind == "beyond":
        axes.plot(j + 0.42, i - 0.22, "^", color=_MARK, ms=1.8, mew=0)
    return colour


def _average_pairs(matrix: FloatArray, p: int) -> FloatArray:
    """The mean similarity of (u x, v y) to (x, y) over all x, y != 0, at [u, v]."""
    pairs = matrix.reshape(p, p, p, p)
    units = np.arange(1, p)
    x, y = units[:, None], units
    average = [[pairs[x, y, u * x % p, v * y % p].mean() for v in range(p)] for u in range(p)]
    return np.array(average)


def _find_limit(values: FloatArray, left_out: npt.NDArray[np.bool_]) -> float:
    """The end of a scale on both sides of 0."""
    return min(1.0, max(0.01, float(np.quantile(np.abs(values[~left_out]), 0.99))))


def _draw_map(axes: Axes, values: FloatArray, limit: float, ring: tuple[int, int]) -> AxesImage:
    """A map of values[x, y] with x to the right and y upwards."""
    drawn = axes.imshow(values.T, cmap=_COLOURS, vmin=-limit, vmax=limit, origin="lower", interpolation="nearest")
    axes.grid(visible=False)
    axes.plot(*ring, "o", ms=4, mfc="none", mec=_RING, mew=1.1)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return drawn
