"""Circles of circles: what a head writes for every input, in its first two principal components (finding 6)."""

from __future__ import annotations

from textwrap import fill
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgba
from matplotlib.figure import Figure

from modicl.figures.style import COLUMN, WIDE, make_figure, use_style
from modicl.residues import make_logarithms, make_vectors

_SIGNIFICANT = 0.05
_CYCLE = "twilight_shifted"
_ZERO = "#009E73"  # in the order of logarithms 0 has no place on the ring; no colour of the cycle is green
_SAME = 1e-6  # points closer than this part of the axes are drawn on top of each other
_MOST_COLUMNS = 10
_CELLS = (
    "in a cell: number, order (values, logarithms), frequency; (in brackets: a line of 2 places); hatched: p > 0.05"
)
_SHORT = {"value": "val", "logarithm": "log"}


def plot_circles(table: dict[str, Any], n_heads: int = 4, by: str | int = "score") -> Figure:
    """The p^2 inputs as points, for one head a panel; `table` is one of `analyze_heads` with coordinates.

    `by` is "score", the n_heads heads with the largest significant ring (p <= 0.05, of more than two places), or the
    number of a layer, all its heads. A head is shown where its ring is largest, over shots, tokens and pairs. Colour is
    the place on the ring of the number that labels it, whose values stand beside the colours; the number in a point
    (tiny: zoom in) is the other one. The line joins the mean of each place to the next around the ring, so it is round
    only where a circle lies in these two components. Points at the same place have no number. Significance is of the
    ring in all dimensions and not corrected for looking at many heads.
    """
    entries = _choose_entries(table["heads"], n_heads, by)
    columns = 1 if len(entries) < 2 else 2
    rows = -(-len(entries) // columns) or 1
    figure = make_figure(COLUMN if columns == 1 else WIDE, 3.05 * rows if entries else 1.0)
    with use_style():
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, entry in zip(grid, entries, strict=False):
            _plot_points(figure, axes, table, entry)
        for axes in grid[len(entries) :]:
            axes.set_axis_off()
        if not entries:
            grid[0].text(0.5, 0.5, f"no head has a circle with p <= {_SIGNIFICANT}", ha="center", va="center")
    return figure


def plot_circle_scores(table: dict[str, Any]) -> Figure:
    """The share of each head's largest ring (rows) after so many shots, by the token read and the pair of numbers.

    In a cell: the number whose ring it is, in the order of values (val) or of logarithms (log), and the frequency; in
    brackets if it is a line of two places. Grey and hatched: p > 0.05 (not corrected for looking at many heads).
    `table` is one of `analyze_heads`.
    """
    heads = table["heads"]
    names = sorted({(h["layer"], h["head"]) for h in heads})
    kinds = list(dict.fromkeys((h["read"], tuple(h["pair"])) for h in heads))
    shots = list(dict.fromkeys(h["shot"] for h in heads))
    in_band = max(1, _MOST_COLUMNS // len(kinds))
    bands = [shots[start : start + in_band] for start in range(0, len(shots), in_band)]
    cells = {(h["layer"], h["head"], h["shot"], h["read"], tuple(h["pair"])): h["scores"]["outer"] for h in heads}
    top = max([0.1, *(ring["share"] for ring in cells.values() if ring["p_value"] <= _SIGNIFICANT)])
    n_columns = len(bands[0]) * len(kinds)
    width = WIDE if n_columns > 4 else COLUMN
    notes = 0.2 if width == WIDE else 0.45
    figure = make_figure(width, len(bands) * max(1.3, 0.19 * len(names) + 0.65) + notes)
    with use_style():
        grid = figure.subplots(len(bands), 1, squeeze=False)[:, 0]
        for axes, band in zip(grid, bands, strict=True):
            columns = [(shot, *kind) for shot in band for kind in kinds]
            image = _plot_cells(axes, cells, names, columns, n_columns, top)
            for place in range(len(band)):
                middle = (place + 0.5) * len(kinds)
                axes.text(middle, -0.15, f"shot {band[place]}", ha="center", va="bottom", fontsize=7)
                if place:
                    axes.axvline(place * len(kinds), color="white", linewidth=2.5)
            for row in range(1, len(names)):
                if names[row][0] != names[row - 1][0]:
                    axes.axhline(row, xmax=len(columns) / n_columns, color="white", linewidth=2.5)
        bar = figure.colorbar(image, ax=list(grid), pad=0.01, fraction=0.04, aspect=30)
        bar.set_label("share of variance\nin the largest ring")
        figure.supxlabel(_CELLS if width == WIDE else _CELLS.replace("; ", ";\n"), fontsize=7)
    return figure


def _choose_entries(heads: list[dict[str, Any]], n_heads: int, by: str | int) -> list[dict[str, Any]]:
    """Of each head its entry with the largest ring, the best heads first or those of a layer in order."""
    ranked = sorted(heads, key=lambda h: -h["scores"]["outer"]["share"])
    if by == "score":
        ranked = [h for h in ranked if _is_significant_circle(h["scores"]["outer"])]
    elif isinstance(by, int):
        ranked = [h for h in ranked if h["layer"] == by]
    else:
        raise ValueError(f"Heads are chosen by 'score' or by the number of a layer, not by {by!r}.")
    best: dict[tuple[int, int], dict[str, Any]] = {}
    for entry in ranked:
        best.setdefault((entry["layer"], entry["head"]), entry)
    return list(best.values())[:n_heads] if by == "score" else [best[name] for name in sorted(best)]


def _is_significant_circle(ring: dict[str, Any]) -> bool:
    return bool(ring["circle"] and ring["p_value"] <= _SIGNIFICANT)


def _plot_points(figure: Figure, axes: Any, table: dict[str, Any], entry: dict[str, Any]) -> None:
    p, ring = table["p"], entry["scores"]["outer"]
    inputs = make_vectors(p, 2)
    numbers = {"x": inputs[:, 0], "y": inputs[:, 1], "z": inputs @ np.array(table["task"]) % p}
    first, second = entry["pair"] if entry["pair"][0] == ring["label"] else entry["pair"][::-1]
    label = numbers[first]
    points = np.array(entry["coordinates"])[:, :2]
    is_log = ring["order"] == "logarithm"
    order = make_logarithms(p, table["root"]) if is_log else np.arange(p)  # of each value; -1 for 0
    period = p - 1 if is_log else p
    # Values of the same place on the ring have the same colour.
    place = np.where(order < 0, -1, ring["frequency"] * order % period // (period // ring["points"]))
    colours = np.vstack([colormaps[_CYCLE](np.arange(ring["points"]) / ring["points"]), to_rgba(_ZERO)])

    reach = 1.06 * np.abs(points).max() or 1.0
    panel = 2.35 * 72  # points, about
    nearest, alone = _find_neighbours(points, _SAME * reach)
    diameter = float(np.clip(0.85 * nearest / (2 * reach) * panel, 1.2, 7.0))
    dots = colours[place[label]]
    axes.scatter(*points.T, s=diameter**2, c=dots, linewidths=0.05 * diameter, edgecolors="#555555", zorder=2)
    dark = dots[:, :3] @ [0.299, 0.587, 0.114] < 0.5
    for point, value, is_dark, is_alone in zip(points, numbers[second], dark, alone, strict=True):
        if is_alone:
            text = axes.text(
                *point,
                value,
                fontsize=0.55 * diameter,
                ha="center",
                va="center_baseline",
                color="w" if is_dark else "k",
            )
            text.set_in_layout(False)
    means = np.array([points[place[label] == k].mean(0) for k in range(ring["points"])])
    axes.plot(*np.vstack([means, means[:1]]).T, "-", color="black", linewidth=0.6, zorder=1.5)
    axes.scatter(*means.T, s=9, c=colours[: len(means)], edgecolors="black", linewidths=0.6, zorder=1.6)

    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_box_aspect(1)
    axes.set_axisbelow(True)
    axes.locator_params(nbins=5)
    for name, axis, share in zip(("PC 1", "PC 2"), (axes.xaxis, axes.yaxis), entry["explained"], strict=False):
        axis.set_label_text(f"{name} ({100 * share:.0f} % of variance)")
    where = f"layer {entry['layer']}, head {entry['head']}, shot {entry['shot']}, read at {entry['read']}"
    ring_name = f"{first} by {ring['order']}, frequency {ring['frequency']}"
    p_value = f"p = {ring['p_value']:.2g}"
    axes.set_title(f"{where}, pair ({', '.join(entry['pair'])})\n{ring_name}: share {ring['share']:.2f}, {p_value}")
    values = [", ".join(str(v) for v in range(p) if place[v] == k) for k in range(len(means))]
    base = f"by logarithm, base {table['root']} (0: green)" if is_log else "by value"
    _draw_key(figure, axes, colours[:-1], values, f"{first} {base}")


def _draw_key(figure: Figure, axes: Any, colours: npt.NDArray[np.float64], values: list[str], label: str) -> None:
    """The colours of a ring's places with the numbers that lie there, as many as have room."""
    n = len(values)
    mappable = ScalarMappable(Normalize(0, n), ListedColormap(colours.tolist()))
    bar = figure.colorbar(mappable, cax=axes.inset_axes((1.03, 0, 0.035, 1)))
    step = -(-n // 29)  # one line of 6 pt needs 1/29 of the height
    bar.set_ticks([k + 0.5 for k in range(0, n, step)], labels=[fill(text, 8) for text in values[::step]], fontsize=6)
    bar.ax.tick_params(length=0, pad=2)
    bar.ax.grid(visible=False)
    bar.set_label(label, fontsize=7)


def _find_neighbours(points: npt.NDArray[np.float64], same: float) -> tuple[float, npt.NDArray[np.bool_]]:
    """The median distance to the nearest point that lies elsewhere, and which points are alone in their place."""
    squared = (points**2).sum(1)
    distance = np.sqrt(np.maximum(squared[:, None] + squared - 2 * points @ points.T, 0))
    elsewhere = np.where(distance > same, distance, np.inf).min(1)
    finite = elsewhere[np.isfinite(elsewhere)]
    return float(np.median(finite)) if len(finite) else np.inf, (distance <= same).sum(1) == 1


def _plot_cells(
    axes: Any,
    cells: dict[Any, dict[str, Any]],
    names: list[tuple[int, int]],
    columns: list[tuple[int, str, tuple[str, ...]]],
    n_columns: int,
    top: float,
) -> Any:
    shares = np.full((len(names), len(columns)), np.nan)
    for row, name in enumerate(names):
        for column, kind in enumerate(columns):
            ring = cells[(*name, *kind)]
            is_sure = ring["p_value"] <= _SIGNIFICANT
            if is_sure:
                shares[row, column] = ring["share"]
            else:
                axes.fill_between(
                    [column, column + 1],
                    row,
                    row + 1,
                    facecolor="#E4E4E4",
                    edgecolor="#CFCFCF",
                    hatch="////",
                    linewidth=0,
                )
            text = f"{ring['label']} {_SHORT[ring['order']]} {ring['frequency']}"
            is_dark = is_sure and ring["share"] < 0.6 * top
            axes.text(
                column + 0.5,
                row + 0.5,
                text if ring["circle"] else f"({text})",
                ha="center",
                va="center",
                fontsize=6,
                color="white" if is_dark else "black" if is_sure else "#555555",
            )
    image = axes.pcolormesh(np.ma.masked_invalid(shares), cmap="viridis", vmin=0, vmax=top)
    axes.grid(visible=False)
    axes.set_xlim(0, n_columns)
    axes.set_ylim(len(names), 0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xticks(
        [c + 0.5 for c in range(len(columns))], [f"at {read}\n{', '.join(pair)}" for _, read, pair in columns]
    )
    axes.set_yticks([r + 0.5 for r in range(len(names))], [f"layer {layer}, head {head}" for layer, head in names])
    axes.tick_params(length=0)
    return image
