"""The answer that each layer would give (logit lens)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from modicl.config import SETS
from modicl.figures.style import SET_STYLES, WIDE, make_figure, use_style


def plot_lens(table: dict[str, Any], p: int) -> Figure:
    """Accuracy and loss at the last shot by layer on the four sets, and accuracy on ood_test by shot.

    `table` is one of `interp.lens.logit_lens`. Bands and bars are 95 % intervals; dotted: chance.
    """
    stops, sets = table["stops"], table["sets"]
    names = [stop.removeprefix("blocks.").replace(".", " ").replace("_", " ") for stop in stops]
    n_shots = len(sets["ood_test"][stops[0]]["accuracy_by_shot"]) - 1
    figure = make_figure(WIDE, 2.7)
    with use_style():
        left, middle, right = figure.subplots(1, 3)
        for axes, measure, chance in ((left, "last_accuracy", 1 / p), (middle, "last_loss", math.log(p))):
            for name in SETS:
                last = [sets[name][stop][measure] for stop in stops]
                value = np.array([e["value"] for e in last])
                errors = np.abs([value - [e[key] for e in last] for key in ("low", "high")])
                axes.errorbar(range(len(stops)), value, errors, label=name, marker="o", ms=2.5, **SET_STYLES[name])
            axes.axhline(chance, color="#777777", linestyle=":", linewidth=0.9)
            axes.set_xticks(range(len(stops)), names, rotation=40, ha="right")
        left.set_ylabel(f"accuracy after {n_shots} examples")
        left.legend()
        middle.set_ylabel(f"loss after {n_shots} examples, nats")
        middle.set_ylim(0, None)
        colours = colormaps["viridis"](np.linspace(0, 0.9, len(stops)))
        for stop, name, colour in zip(stops, names, colours, strict=True):
            by_shot = sets["ood_test"][stop]["accuracy_by_shot"]
            right.plot([e["value"] for e in by_shot], color=colour, label=name)
            low, high = [e["low"] for e in by_shot], [e["high"] for e in by_shot]
            right.fill_between(range(len(by_shot)), low, high, color=colour, alpha=0.15, linewidth=0)
        right.axhline(1 / p, color="#777777", linestyle=":", linewidth=0.9)
        right.set_xlabel("examples seen")
        right.set_ylabel("accuracy on ood_test")
        right.legend()
        for axes in (left, right):
            axes.set_ylim(0, 1.02)
    return figure
