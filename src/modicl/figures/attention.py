"""Where the heads look: mean attention maps, and attention by what the tokens are."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from modicl.figures.style import WIDE, make_figure, use_style


def plot_patterns(table: dict[str, Any], n_vars: int) -> Figure:
    """The mean attention map of every head, a row a layer; `table` is one of `interp.attention.average_patterns`.

    Rows of a map are the tokens that look, columns those that are looked at; an example's first token is at its tick.
    Colour goes by the square root, so that thin structure shows.
    """
    mean = np.array(table["mean"])  # (L, H, T, T)
    n_layers, n_heads, n_tokens, _ = mean.shape
    n_examples = n_tokens // (n_vars + 1)
    ticks = range(0, n_tokens, (n_vars + 1) * max(1, round(n_examples / 3)))
    labels = [str(tick // (n_vars + 1) + 1) for tick in ticks]
    size = min(1.7, (WIDE - 0.9) / n_heads)
    figure = make_figure(WIDE, size * n_layers + 0.5)
    with use_style():
        grid = figure.subplots(n_layers, n_heads, sharex=True, sharey=True, squeeze=False)
        for layer, row in enumerate(grid):
            for head, axes in enumerate(row):
                image = axes.imshow(
                    mean[layer, head], cmap="viridis", norm=PowerNorm(0.5, 0, 1), interpolation="nearest"
                )
                axes.set_title(f"layer {layer}, head {head}", fontsize=7)
                axes.grid(visible=False)
                axes.set_xticks(ticks, labels)
                axes.set_yticks(ticks, labels)
        figure.supxlabel("example looked at", fontsize=8)
        figure.supylabel("example that looks", fontsize=8)
        bar = figure.colorbar(image, ax=list(grid.flat), pad=0.01)
        bar.set_label("attention")
    return figure


def plot_head_scores(table: dict[str, Any]) -> Figure:
    """Each head's attention by what the tokens are; `table` is one of `interp.attention.score_heads`.

    Colour: the share of its attention, over all examples. Number: how many times what even attention would give.
    """
    heads = [(layer, head, scores) for layer, row in enumerate(table["heads"]) for head, scores in enumerate(row)]
    groups = list(table["uniform"])
    mass = np.array([[_get(scores[group]["mass"]) for group in groups] for _, _, scores in heads])
    figure = make_figure(WIDE, 0.26 * len(heads) + 1.1)
    with use_style():
        axes = figure.subplots()
        axes.grid(visible=False)
        image = axes.imshow(mass, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, (_, _, scores) in enumerate(heads):
            for column, group in enumerate(groups):
                ratio = scores[group]["ratio"]["overall"]
                if ratio is not None:
                    colour = "white" if mass[row, column] > 0.6 else "black"
                    axes.text(
                        column, row, f"{ratio['value']:.1f}", ha="center", va="center", fontsize=6.5, color=colour
                    )
        axes.set_xticks(range(len(groups)), [group.replace("_", " ") for group in groups], rotation=25, ha="right")
        axes.set_yticks(range(len(heads)), [f"layer {layer}, head {head}" for layer, head, _ in heads])
        for layer in range(1, len(table["heads"])):
            axes.axhline(layer * len(table["heads"][0]) - 0.5, color="black", linewidth=0.8)
        bar = figure.colorbar(image, ax=axes, pad=0.01)
        bar.set_label("share of attention")
        where = "where z is predicted" if table["read"] == "input" else "at z"
        axes.set_title(f"attention {where}; numbers: times even attention")
    return figure


def _get(ratios: dict[str, Any]) -> float:
    return ratios["overall"]["value"] if ratios["overall"] is not None else 0.0
