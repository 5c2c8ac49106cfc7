"""Where linear probes read the task, the ratio and "seen before", by place in the model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modicl.figures.style import COLUMN, WIDE, make_figure, use_style

_COLUMNS = 4
_FITS = ("probe", "shuffled")
_ORDER = ("a", "b", "ratio", "seen", "log_a", "log_b", "value_a", "value_b")
_LABELS = {
    "ratio": "ratio y/x",
    "seen": "ratio seen before",
    "log_a": "waves in log a",
    "log_b": "waves in log b",
    "value_a": "waves in a",
    "value_b": "waves in b",
}
_KINDS = {"resid_mid": "attn", "resid_post": "mlp"}
_LOWEST = -0.25  # an R^2 far below 0 says no more than one below it
_DODGE = 0.14


def plot_probes(table: dict[str, Any]) -> Figure:
    """The score of every probe by place: a panel for each target, a line for each shot, with 95 % intervals.

    `table` is one of `modicl.interp.probes.probe`. Places are the embedding and the residual after each attention and
    MLP. Of a target with waves, the score is R^2 at the frequency where it is largest at that place; the shuffled
    labels (dashed) choose theirs likewise. Dotted: the accuracy without the residual, or R^2 = 0. An R^2 below -0.25 is
    drawn there; its axis ends where the largest does.
    """
    found: dict[tuple[str, int, str], dict[str, Any]] = {
        (entry["target"], entry["shot"], entry["place"]): entry for entry in table["scores"]
    }
    targets = sorted({target for target, _, _ in found}, key=_ORDER.index)
    shots = sorted({shot for _, shot, _ in found})
    places = list(dict.fromkeys(place for _, _, place in found))
    n_columns = min(_COLUMNS, max(1, len(targets)))
    n_rows = -(-len(targets) // n_columns) or 1
    figure = make_figure(COLUMN if n_columns <= 2 else WIDE, 1.5 * n_rows + 0.8)
    waves = [_choose_best(entry[kind]) for (target, _, _), entry in found.items() if _is_wave(target) for kind in _FITS]
    bottom = max(_LOWEST, min([0.0, *(b["low"] for b in waves if not math.isnan(b["low"]))])) - 0.03
    top = min(1.04, max([0.25, *(1.05 * b["high"] for b in waves if not math.isnan(b["high"]))]))
    colours = colormaps["viridis"](np.linspace(0, 0.85, max(1, len(shots))))
    with use_style():
        grid = figure.subplots(n_rows, n_columns, sharex=True, squeeze=False)
        for axes in list(grid.flat)[len(targets) :]:
            axes.set_axis_off()
        for i, (axes, target) in enumerate(zip(grid.flat, targets, strict=False)):
            for number, (shot, colour) in enumerate(zip(shots, colours, strict=True)):
                shift = _DODGE * (number - (len(shots) - 1) / 2) / max(1, (len(shots) - 1) / 2)
                _plot_shot(axes, [found.get((target, shot, place)) for place in places], shift, colour)
            axes.set_title(_LABELS.get(target, target))
            axes.set_ylim(*((bottom, top) if _is_wave(target) else (0, 1.04)))
            if i % n_columns == 0 or _is_wave(target) != _is_wave(targets[i - 1]):
                axes.set_ylabel("best $R^2$" if _is_wave(target) else "accuracy")
            axes.set_xticks(range(len(places)), [_shorten(place) for place in places], rotation=90, fontsize=6.5)
            axes.tick_params(axis="x", labelbottom=i + n_columns >= len(targets))
        keys = [
            Line2D([], [], color=colour, marker="o", ms=2.5, label=f"{shot} shot" + ("s" if shot != 1 else ""))
            for shot, colour in zip(shots, colours, strict=True)
        ]
        keys += [
            Line2D([], [], color="#444444", linestyle=(0, (3, 1.5)), linewidth=0.9, label="shuffled labels"),
            Line2D([], [], color="#444444", linestyle=":", linewidth=0.9, label="no residual"),
        ]
        figure.legend(handles=keys, loc="outside upper center", ncols=min(len(keys), 2 if n_columns <= 2 else 8))
    return figure


def _plot_shot(axes: Axes, entries: list[dict[str, Any] | None], shift: float, colour: Any) -> None:
    """One shot's scores, shuffled labels and baseline, by place."""
    at = np.arange(len(entries)) + shift
    best = [_choose_best(entry["probe"] if entry else None) for entry in entries]
    value, low, high = (np.array([b[key] for b in best]) for key in ("value", "low", "high"))
    mixed = [_choose_best(entry["shuffled"] if entry else None)["value"] for entry in entries]
    baselines = [entry["baseline"] for entry in entries if entry and entry["baseline"] is not None]
    is_wave = any(entry and _is_wave(entry["target"]) for entry in entries)
    axes.plot(at, np.maximum(mixed, _LOWEST), color=colour, linestyle=(0, (3, 1.5)), linewidth=0.9)
    if baselines or is_wave:
        axes.axhline(baselines[0] if baselines else 0, color=colour, linestyle=":", linewidth=0.9)
    axes.vlines(at, np.maximum(low, _LOWEST), np.maximum(high, _LOWEST), color=colour, linewidth=1.0)
    axes.plot(at, np.maximum(value, _LOWEST), color=colour, marker="o", ms=2.5, linewidth=1.1)


def _choose_best(scores: list[dict[str, Any]] | None) -> dict[str, Any]:
    """The largest score of all frequencies; of classes there is one."""
    missing = dict.fromkeys(("value", "low", "high"), math.nan)
    return max(scores, key=lambda score: score["value"]) if scores else missing


def _is_wave(target: str) -> bool:
    return target.startswith(("log", "value"))


def _shorten(place: str) -> str:
    if not place.startswith("blocks."):
        return place
    _, layer, kind = place.split(".")
    return f"{_KINDS.get(kind, kind)} {layer}"
