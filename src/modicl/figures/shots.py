"""Loss and accuracy by the number of examples seen (the paper's k-shot curves)."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from modicl.config import SETS
from modicl.figures.style import COLUMN, SET_STYLES, make_figure, mark_training_length, use_style


def plot_shots(table: dict[str, Any], p: int, n_trained: int) -> Figure:
    """Accuracy and loss of every shot on the four sets, with 95 % intervals; `table` is one of `modicl evaluate`.

    Dotted: chance and, where contexts are longer than the n_trained examples of training, where those ended.
    """
    figure = make_figure(COLUMN, 3.9)
    with use_style():
        top, bottom = figure.subplots(2, 1, sharex=True)
        for name in SETS:
            for axes, measure in ((top, "accuracy_by_shot"), (bottom, "loss_by_shot")):
                estimates = table[name][measure]
                shots = range(len(estimates))
                style = SET_STYLES[name]
                axes.plot(shots, [e["value"] for e in estimates], label=name if axes is top else None, **style)
                low, high = [e["low"] for e in estimates], [e["high"] for e in estimates]
                axes.fill_between(shots, low, high, color=style["color"], alpha=0.18, linewidth=0)
        for axes, chance in ((top, 1 / p), (bottom, math.log(p))):
            axes.axhline(chance, color="#777777", linestyle=":", linewidth=0.9)
            mark_training_length(axes, len(table["id_train"]["loss_by_shot"]), n_trained)
        top.set_ylim(0, 1.02)
        bottom.set_ylim(0, None)
        top.set_ylabel("accuracy")
        bottom.set_ylabel("loss, nats")
        bottom.set_xlabel("examples seen")
        figure.legend(loc="outside upper center", ncols=4, columnspacing=1.0, handlelength=2.2)
    return figure
