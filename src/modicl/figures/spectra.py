"""Which waves the embedding and the neurons are made of, and which of them the answers need (finding 7)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from modicl.config import SETS
from modicl.figures.style import SET_STYLES, WIDE, make_figure, use_style

_BASES = ("additive", "multiplicative")
_EVEN, _ODD, _GREY = "#0072B2", "#D55E00", "#777777"


def plot_embedding(table: dict[str, Any]) -> Figure:
    """Spectra of the embedding, and its principal components; `table` is one of `analyze_embedding`.

    Above, the share of each frequency in both bases; dashed, that of power spread evenly over dimensions, of which the
    last multiplicative frequency has one and all others two. Below, every residue in components 1 and 2 and, where
    there are that many, 3 and 4: even ones in circles, odd ones in squares.
    """
    coordinates, explained = np.array(table["pca"]["coordinates"]), table["pca"]["explained"]
    planes = [(i, i + 1) for i in (0, 2) if i + 1 < coordinates.shape[1]]
    figure = make_figure(WIDE, 5.0)
    with use_style():
        grid = figure.subplots(2, 2, height_ratios=[1, 1.75])
        for axes, basis in zip(grid[0], _BASES, strict=True):
            _plot_power(axes, table[basis], basis, table["p"])
        grid[0][0].set_ylabel("share of power")
        for axes, plane in zip(grid[1], planes, strict=False):
            _plot_residues(axes, coordinates[:, plane], [explained[i] for i in plane], plane)
        for axes in grid[1][len(planes) :]:
            axes.set_axis_off()
        parity = table["parity"]
        grid[1][0].set_title(
            f"even (circles) against odd (squares): share of variance {parity['share']:.3f}\n"
            f"(by chance {parity['chance']:.3f}, p = {parity['p_value']:.2g})",
        )
    return figure


def plot_neurons(table: dict[str, Any], kind: str = "neurons") -> Figure:
    """Waves over (x, y) in each layer's units where z is predicted; `table` is one of `analyze_neurons`.

    `kind` is "neurons" or "heads". Left, the share of every wave, mean over units, at frequency f in x and g in y, of
    values (additive) and of logarithms (multiplicative), where the falling diagonal g = -f has the ratios; grey:
    conjugates of others. One scale for all, by the square root. Right, how many units are mostly one wave, beside the
    same where the numbers change places (chance).
    """
    layers = table["layers"]
    figure = make_figure(WIDE, 1.55 * len(layers) + 0.4)
    powers = [layer[kind][basis]["power"] for layer in layers for basis in _BASES]
    top = max([float(np.max(power)) for power in powers if power is not None], default=1.0)
    with use_style():
        grid = figure.subplots(len(layers), 3, squeeze=False, width_ratios=[2, 2, 1])
        image = None
        for number, (line, layer) in enumerate(zip(grid, layers, strict=True)):
            for axes, basis in zip(line, _BASES, strict=False):
                image = _plot_waves(axes, layer[kind][basis], top) or image
                if number == 0:
                    axes.set_title(basis)
                if number == len(layers) - 1:
                    axes.set_xlabel("frequency g in y")
            line[0].set_ylabel(f"layer {number}\nfrequency f in x")
            _plot_single(line[2], layer[kind])
            line[2].set_ylabel(f"share of {kind}")
        grid[0][2].set_title(f"one wave over {table['threshold']:g}")
        grid[0][2].legend([kind, "chance"], handlelength=1.0)
        if image is not None:
            bar = figure.colorbar(image, ax=list(grid[:, :2].flat), pad=0.01, fraction=0.03, aspect=30)
            bar.set_label(f"share, mean over {kind}")
    return figure


def plot_spectrum_ablation(table: dict[str, Any]) -> Figure:
    """Accuracy at the last shot on the four sets with parts of the embedding's spectrum; `table`: `ablate_spectrum`.

    Left, without one frequency each (lines across: the whole embedding); right, with the best alone. Bars are 95 %
    intervals; dotted: chance.
    """
    n = len(table["removed"])
    figure = make_figure(WIDE, 2.6)
    with use_style():
        left, right = figure.subplots(1, 2, sharey=True)
        shifts = np.linspace(-0.27, 0.27, len(SETS))
        for name, shift in zip(SETS, shifts, strict=True):
            colour = SET_STYLES[name]["color"]
            marker = {"color": colour, "marker": "o" if SET_STYLES[name]["linestyle"] == "-" else "s", "markersize": 3}
            filled = {} if marker["marker"] == "o" else {"markerfacecolor": "white"}
            values, errors = _read_accuracy(table["removed"], name)
            left.errorbar(np.arange(1, n + 1) + shift, values, errors, linestyle="", elinewidth=0.8, **marker, **filled)
            left.axhline(table["whole"][name]["accuracy"]["value"], **SET_STYLES[name] | {"linewidth": 0.7})
            values, errors = _read_accuracy([entry["scores"] for entry in table["kept"]], name)
            counts = [len(entry["frequencies"]) for entry in table["kept"]]
            style = {"linestyle": SET_STYLES[name]["linestyle"], "elinewidth": 0.8, "label": name}
            right.errorbar(counts, values, errors, **style, **marker, **filled)
        for axes in (left, right):
            axes.axhline(1 / (2 * n + 1), color=_GREY, linestyle=":", linewidth=0.9)
        left.set_ylim(0, 1.02)
        left.set_ylabel("accuracy at the last shot")
        left.set_xlabel(f"{table['basis']} frequency removed")
        left.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        right.set_xscale("log", base=2)
        right.set_xticks(counts, [str(k) for k in counts])
        right.xaxis.set_minor_locator(NullLocator())
        right.xaxis.set_minor_formatter(NullFormatter())
        first = ", ".join(map(str, table["order"][:10])) + (", ..." if n > 10 else "")
        right.set_xlabel(f"{table['basis']} frequencies kept\n(best first: {first})")
        parts = {"both": "input and output", "input": "input alone", "output": "output alone"}
        left.set_title(f"embedding edited: {parts[table['part']]}", loc="left")
        figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=len(SETS), handlelength=2.4)
    return figure


def _plot_power(axes: Any, part: dict[str, Any], basis: str, p: int) -> None:
    n = len(part["share"])
    dimensions = np.full(n, 2.0)
    if basis == "multiplicative":
        dimensions[-1] = 1.0
    axes.bar(np.arange(1, n + 1), part["share"], width=0.75, color=_EVEN, zorder=2)
    axes.stairs(
        dimensions / dimensions.sum(), np.arange(n + 1) + 0.5, baseline=None, color="black", linestyle="--", zorder=3
    )
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14))
    axes.set_xlim(0.4, n + 0.6)
    axes.set_xlabel(f"{basis} frequency (period {p if basis == 'additive' else p - 1})")
    axes.set_title(f"{basis}: Gini {part['gini']:.2f} (by chance {part['chance']:.2f}, p = {part['p_value']:.2g})")


def _plot_residues(axes: Any, points: Any, explained: list[float], plane: tuple[int, int]) -> None:
    size = 8.5 if len(points) < 20 else 7.0
    for number, point in enumerate(points):  # each number over its marker, and both over or under the others
        marker, colour = ("s", _ODD) if number % 2 else ("o", _EVEN)
        layer = 2 + number / len(points)
        axes.plot(*point, marker, markersize=size, mfc="white", mec=colour, mew=0.9, zorder=layer)
        axes.text(
            *point, str(number), fontsize=0.7 * size, ha="center", va="center_baseline", color=colour, zorder=layer
        )
    reach = 1.12 * np.abs(points).max() or 1.0
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_box_aspect(1)
    axes.set_xlabel(f"PC {plane[0] + 1} ({100 * explained[0]:.0f} % of variance)")
    axes.set_ylabel(f"PC {plane[1] + 1} ({100 * explained[1]:.0f} % of variance)")


def _plot_waves(axes: Any, part: dict[str, Any], top: float) -> Any:
    """A map over f (upwards) and g, from -n / 2 to n / 2; None where no unit varies."""
    axes.grid(visible=False)
    if part["power"] is None:
        axes.text(0.5, 0.5, "all constant", ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return None
    power = np.array(part["power"])
    n = power.shape[1]
    f, g = np.indices(power.shape)
    power[f * n + g > (-f % n) * n + (-g % n)] = np.nan  # conjugates of others
    power[0, 0] = np.nan
    half = (n - 1) // 2
    axes.set_facecolor("#CCCCCC")
    extent = (-half - 0.5, n - half - 0.5, -0.5, len(power) - 0.5)
    image = axes.imshow(
        np.roll(power, half, axis=1),
        origin="lower",
        extent=extent,
        cmap="viridis",
        norm=PowerNorm(0.5, 0, top),
        interpolation="nearest",
        aspect="auto",
    )
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return image


def _plot_single(axes: Any, part: dict[str, Any]) -> None:
    """Two bars a basis: the share of units that are mostly one wave, and the same by chance."""
    for place, basis in enumerate(_BASES):
        for shift, key, colour in ((-0.2, "single", _EVEN), (0.2, "chance", "#BBBBBB")):
            value = part[basis][key] or 0.0
            axes.bar(place + shift, value, width=0.36, color=colour, zorder=2)
    axes.set_xticks([0, 1], ["add.", "mult."])
    axes.set_ylim(0, 1.5)  # the legend is above 1
    axes.set_yticks([0, 0.5, 1])
    axes.grid(visible=False, axis="x")


def _read_accuracy(scores: list[dict[str, Any]], name: str) -> tuple[Any, Any]:
    estimates = [score[name]["accuracy"] for score in scores]
    value, low, high = (np.array([e[key] for e in estimates]) for key in ("value", "low", "high"))
    return value, np.maximum([value - low, high - value], 0)
