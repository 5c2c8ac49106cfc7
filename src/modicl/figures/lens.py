"""The answer that each layer would give (logit lens)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from modicl.config import SETS
from modicl.figures.style import SET_STYLES, WIDE, make_figure, use_style


def plot_lens(table: dict[str, Any], p: int) -> Figure:
    """Accuracy at the last shot by layer on the four sets, and on ood_test by shot; `table` is one of `logit_lens`.

    Bands and bars are 95 % intervals; dotted: chance.
    """
    stops, sets = table["stops"], table["sets"]
    names = [stop.removeprefix("blocks.").replace(".", " ") for stop in stops]
    figure = make_figure(WIDE, 2.6)
    with use_style():
        left, right = figure.subplots(1, 2)
        for name in SETS:
            last = [sets[name][stop]["last_accuracy"] for stop in stops]
            value = np.array([e["value"] for e in last])
            errors = [value - [e["low"] for e in last], [e["high"] for e in last] - value]
            left.errorbar(range(len(stops)), value, errors, label=name, marker="o", markersize=2.5, **SET_STYLES[name])
        left.set_xticks(range(len(stops)), names, rotation=30, ha="right")
        left.set_ylabel("accuracy at the last shot")
        left.legend()
        colours = colormaps["viridis"](np.linspace(0, 0.9, len(stops)))
        for stop, name, colour in zip(stops, names, colours, strict=True):
            by_shot = sets["ood_test"][stop]["accuracy_by_shot"]
            right.plot([e["value"] for e in by_shot], color=colour, label=name)
            low, high = [e["low"] for e in by_shot], [e["high"] for e in by_shot]
            right.fill_between(range(len(by_shot)), low, high, color=colour, alpha=0.15, linewidth=0)
        right.set_xlabel("examples seen")
        right.set_ylabel("accuracy on ood_test")
        right.legend()
        for axes in (left, right):
            axes.axhline(1 / p, color="#777777", linestyle=":", linewidth=0.9)
            axes.set_ylim(0, 1.02)
    return figure
