"""What parts of a model do: ablation, activation patching and direct contributions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from modicl.config import SETS
from modicl.figures.style import SET_STYLES, WIDE, make_figure, use_style


def plot_ablation(table: dict[str, Any]) -> Figure:
    """Accuracy at the last shot that is lost without each part, on the four sets, with paired 95 % intervals.

    `table` is one of `interp.causal.ablate`.
    """
    parts = list(table["sets"][SETS[0]]["without"])
    figure = make_figure(WIDE, 2.6)
    with use_style():
        axes = figure.subplots()
        for offset, name in zip((-0.24, -0.08, 0.08, 0.24), SETS, strict=True):
            losses = [table["sets"][name]["without"][part]["difference"]["last_accuracy"] for part in parts]
            value = -np.array([e["value"] for e in losses])
            errors = np.abs([value + [_get(e, key) for e in losses] for key in ("high", "low")])
            places = np.arange(len(parts)) + offset
            colour = SET_STYLES[name]["color"]
            axes.bar(places, value, 0.15, yerr=errors, color=colour, label=name, error_kw={"linewidth": 0.7})
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_xticks(range(len(parts)), [_shorten(part) for part in parts], rotation=30, ha="right")
        axes.set_ylabel(f"accuracy lost ({table['method']} instead)")
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside upper center", ncols=4)
    return figure


def plot_patching(table: dict[str, Any], n_vars: int) -> Figure:
    """How much of task A's answer an activation of its run brings into the run on task B, as a share.

    Above, the residual stream by layer and token, the last tokens being the query; below, heads and MLPs at the query's
    last token and at all tokens. `table` is one of `interp.causal.patch`.
    """
    residual = np.array([[_get(e) for e in row] for row in table["residual"]])
    figure = make_figure(WIDE, 0.3 * len(residual) + 3.4)
    with use_style():
        top, bottom = figure.subplots(2, 1, height_ratios=(0.3 * len(residual) + 0.5, 2.0))
        # Nearly logarithmic, since single tokens on the way carry little of what is whole at the stream's end.
        norm = SymLogNorm(0.02, vmin=-1, vmax=1)
        image = top.imshow(residual, cmap="PuOr_r", norm=norm, aspect="auto", interpolation="nearest")
        top.grid(visible=False)
        step = n_vars + 1
        ticks = range(0, residual.shape[1], step * max(1, residual.shape[1] // step // 8))
        top.set_xticks(ticks, [str(tick // step + 1) for tick in ticks])
        top.set_yticks(range(len(residual)), [_shorten(tap) for tap in table["taps"]])
        top.set_xlabel("example whose tokens are patched (its first token at the tick)")
        bar = figure.colorbar(image, ax=top, pad=0.01, ticks=[-1, -0.1, 0, 0.1, 1], format="{x:g}")
        bar.ax.minorticks_off()
        bar.set_label("recovered")
        parts = {
            f"{layer} head {head}": (layer, head)
            for layer, row in enumerate(table["heads"]["all"])
            for head in range(len(row))
        }
        names = [
            name
            for layer in range(len(table["mlps"]["all"]))
            for name in (*[n for n in parts if parts[n][0] == layer], f"{layer} mlp")
        ]
        for offset, which, colour in ((-0.2, "last", "#56B4E9"), (0.2, "all", "#0072B2")):
            estimates = [
                table["heads"][which][parts[name][0]][parts[name][1]]
                if name in parts
                else table["mlps"][which][int(name.split()[0])]
                for name in names
            ]
            value = np.array([_get(e) for e in estimates])
            errors = [value - [_get(e, "low") for e in estimates], [_get(e, "high") for e in estimates] - value]
            label = "query's last token" if which == "last" else "all tokens"
            places = np.arange(len(names)) + offset
            bottom.bar(places, value, 0.38, yerr=errors, color=colour, label=label, error_kw={"linewidth": 0.7})
        bottom.axhline(0, color="black", linewidth=0.6)
        bottom.set_xticks(range(len(names)), names, rotation=30, ha="right")
        bottom.set_ylabel("recovered")
        bottom.grid(visible=False, axis="x")
        bottom.legend()
    return figure


def plot_contributions(table: dict[str, Any]) -> Figure:
    """What each part adds to the right logit over the mean one: at the last shot, and by shot for the largest.

    `table` is one of `interp.contributions.contribute`; with 95 % intervals. The bias is the last LayerNorm's.
    """
    parts = {"embed": table["embed"]}
    for layer, (heads, mlp) in enumerate(zip(table["heads"], table["mlps"], strict=True)):
        parts |= {f"{layer} head {head}": ratios for head, ratios in enumerate(heads)} | {f"{layer} mlp": mlp}
    parts |= {"bias": table["bias"], "total": table["total"]}
    last = {name: ratios["by_shot"][-1] for name, ratios in parts.items()}
    largest = sorted(last, key=lambda name: -abs(_get(last[name])))[:5]
    figure = make_figure(WIDE, max(2.6, 0.15 * len(last) + 0.8))
    with use_style():
        left, right = figure.subplots(1, 2)
        value = np.array([_get(e) for e in last.values()])
        errors = [value - [_get(e, "low") for e in last.values()], [_get(e, "high") for e in last.values()] - value]
        left.barh(range(len(last)), value, xerr=errors, color="#0072B2", error_kw={"linewidth": 0.7})
        left.set_yticks(range(len(last)), list(last))
        left.invert_yaxis()
        left.set_xlabel("logits at the last shot")
        left.grid(visible=False, axis="y")
        for name, colour in zip(largest, colormaps["viridis"](np.linspace(0, 0.9, len(largest))), strict=True):
            right.plot([_get(e) for e in parts[name]["by_shot"]], color=colour, label=name)
        right.set_xlabel("examples seen")
        right.set_ylabel("logits")
        right.legend()
    return figure


def _get(estimate: dict[str, Any] | None, key: str = "value") -> float:
    value = None if estimate is None else estimate[key]
    return math.nan if value is None else value


def _shorten(name: str) -> str:
    return name.removeprefix("blocks.").replace(".", " ").replace("_", " ")
