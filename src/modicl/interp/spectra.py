"""Which characters the token embedding, the neurons and the heads are made of, and which of them the answers need.

`analyze_embedding` and `analyze_neurons` look (the paper has the embedding's PCA; the spectra are an extension), both
for waves in a number's value and in its logarithm (`modicl.interp.characters`). `ablate_spectrum` takes waves out of
the embedding and scores the model without them, which tells whether they are used.

Shapes: P residues, U units (neurons, or heads with all they write), D residual width.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from modicl.config import RunConfig, UserError
from modicl.contexts import make_grid_tokens
from modicl.evaluation import evaluate
from modicl.interp.characters import (
    FloatArray,
    additive_spectrum,
    choose_root,
    compress,
    gini,
    inverse_participation_ratio,
    keep_characters,
    make_powers,
    multiplicative_spectrum,
)
from modicl.interp.pca import collect_head_outputs, principal_components
from modicl.model import GPT
from modicl.predictors import ModelPredictor
from modicl.randomness import Stream, draw_permutations, make_key
from modicl.residues import IntArray
from modicl.taps import collect
from modicl.tasks import TaskSplit

PARTS = ("both", "input", "output")
"""Where an embedding is edited: as it is looked up, as the matrix of the output head, or both."""

_ALIVE = 1e-10  # a unit whose variance is a smaller part of its mean square is constant up to rounding
_CHUNK = 2**22  # complex numbers at once
_SHUFFLES = 10


def analyze_embedding(
    model: GPT, root: int | None = None, n_components: int = 4, n_permutations: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """The token embedding of the p numbers: its two spectra, its principal components, and its parity.

    - `additive` and `multiplicative`: the `share` of each frequency 1 to (p - 1) / 2 in what is not constant, with the
      shares' `gini` and `ipr`; of the whole squared norm, the part that is `constant` and, in the second basis, that of
      number 0 (`at_zero`). `p_value` and the mean `chance` are of as large a Gini coefficient where the numbers but 0
      change places (by chance, the last multiplicative share is half of the others, as it is one dimension).
    - `pca`: `explained` and `coordinates` [p][n] of the first n_components.
    - `parity`: the `share` of the variance that lies between the means of even and odd numbers. In as many dimensions
      some direction always separates them, so a share is what can be judged: `p_value` and the mean `chance` are those
      of random halves of the same sizes. Parity is mostly the additive frequency (p - 1) / 2 (the part `wave` of it),
      so a ring of that frequency alone parts even from odd.

    Raises `UserError` for a modulus without primitive roots, or a root that is none.
    """
    p, root = model.p, choose_root(model.p, root)
    weight_PD = model.tok_embed.weight.detach().cpu().double().numpy()[:p]
    total = (weight_PD**2).sum()
    orders = draw_permutations(make_key(seed, 0, Stream.SPECTRA_NULL), n_permutations, p - 1).numpy() + 1
    orders = np.pad(orders, ((1, 0), (1, 0)))  # 0 stays
    orders[0] = np.arange(p)
    shuffled = compress(weight_PD)[orders]
    additive = additive_spectrum(shuffled, axis=1).sum(-1)
    multiplicative, zero = (power.sum(-1) for power in multiplicative_spectrum(shuffled, root, axis=1))
    pca = principal_components(weight_PD, n_components)
    return {
        "p": p,
        "root": root,
        "additive": _describe_power(additive, total),
        "multiplicative": {**_describe_power(multiplicative, total), "at_zero": float(zero[0] / total)},
        "pca": {name: pca[name].tolist() for name in ("explained", "coordinates")},
        "parity": _score_parity(weight_PD, n_permutations, seed),
    }


def _describe_power(powers: FloatArray, total: float) -> dict[str, Any]:
    """Of the embedding's power by frequency, and that of shuffled ones after it."""
    power, ginis = powers[0], gini(powers[:, 1:])
    return {
        "share": (power[1:] / power[1:].sum()).tolist(),
        "constant": float(power[0] / total),
        "gini": float(ginis[0]),
        "ipr": float(inverse_participation_ratio(power[1:])),
        "p_value": float((ginis >= ginis[0] - 1e-9).mean()),
        "chance": float(ginis.mean()),
    }


def _score_parity(weight_PD: FloatArray, n_permutations: int, seed: int) -> dict[str, float]:
    p = len(weight_PD)
    centred_PD = weight_PD - weight_PD.mean(0)
    even = np.where(np.arange(p) % 2 == 0, 1.0, 0.0) - (p + 1) / (2 * p)
    orders = draw_permutations(make_key(seed, 1, Stream.SPECTRA_NULL), n_permutations, p).numpy()
    contrasts = np.concatenate([even[None], even[orders]]) / np.linalg.norm(even)  # each centred, of length 1
    shares = ((contrasts @ centred_PD) ** 2).sum(1) / (centred_PD**2).sum()
    share, null = float(shares[0]), shares[1:]
    wave = additive_spectrum(even)
    return {
        "share": share,
        "p_value": (1 + int((null >= share - 1e-9).sum())) / (1 + n_permutations),
        "chance": 1 / (p - 1),
        "wave": float(wave[-1] / wave.sum()),
    }


def analyze_neurons(
    model: GPT,
    split: TaskSplit,
    task: list[int],
    shot: int,
    root: int | None = None,
    threshold: float = 0.5,
    which_inputs: str = "train",
    seed: int = 0,
) -> dict[str, Any]:
    """The waves over (x, y) of every neuron and head where z is predicted, after `shot` fixed examples of a task.

    Each unit's value at the y token (the tap `mlp.post`, or what the head writes, its power summed over the residual
    stream) is a function on the p^2 inputs. `layers[l][kind][basis]` for the kinds "neurons" and "heads", the bases
    "additive" and "multiplicative" (there on the inputs without a 0), has of the units that are not constant, whose
    numbers are `units`, out of `n_units`:

    - `frequencies` (f, g) of the strongest wave in x and y, exp(2 pi i (f x + g y) / n) and its conjugate, f = 0 to
      n / 2 and g = 0 to n - 1, where x and y are values and n = p, or logarithms and n = p - 1: g = 0 is a wave of x
      alone, and the multiplicative (f, n - f) one of x / y;
    - `share`: what part of the unit's variance it is; `single`: the part of the units with more than `threshold`, and
      `chance`, the mean of `single` where the numbers but 0 change places (a neuron of one number has few frequencies,
      at small p often half of it in the best);
    - `gini` and `ipr` of the power over all waves;
    - `power` [f][g]: share of each wave, averaged over units (0 for conjugates of others);
    - `off_grid`: the mean share of a unit's squared deviation at inputs that are left out.

    Raises `UserError` for a modulus without primitive roots, other than two variables, or a task that is none.
    """
    root = choose_root(split.p, root)
    heads = collect_head_outputs(model, split, task, shot, "y", which_inputs, seed)
    tokens_IT = make_grid_tokens(split, task, shot, which_inputs, seed).to(model.tok_embed.weight.device)
    taps = [f"blocks.{layer}.mlp.post" for layer in range(len(model.blocks))]
    neurons = collect(model, tokens_IT, dict.fromkeys(taps, _take_last_y))
    layers = []
    for tap, outputs_IHD in zip(taps, heads, strict=True):
        kinds = {"neurons": neurons[tap].double().numpy()[..., None], "heads": outputs_IHD}
        layers.append({kind: _describe_units(values, split.p, root, threshold, seed) for kind, values in kinds.items()})
    request = {"task": task, "shot": shot, "inputs": which_inputs, "seed": seed, "threshold": threshold}
    return {"p": split.p, "root": root, **request, "layers": layers}


def _take_last_y(value_BTF: Tensor) -> Tensor:
    return value_BTF[:, -2]


def _describe_units(values_IUD: FloatArray, p: int, root: int, threshold: float, seed: int) -> dict[str, Any]:
    grid = values_IUD.reshape(p, p, *values_IUD.shape[1:])
    shuffled = draw_permutations(make_key(seed, 2, Stream.SPECTRA_NULL), _SHUFFLES, p - 1).numpy() + 1
    orders = {
        "additive": np.vstack([np.arange(p), np.pad(shuffled, ((0, 0), (1, 0)))]),  # 0 stays
        "multiplicative": np.vstack([make_powers(p, root), shuffled]),
    }
    return {basis: _describe_waves(grid, rows, threshold) for basis, rows in orders.items()}


def _describe_waves(grid: FloatArray, orders: IntArray, threshold: float) -> dict[str, Any]:
    """The waves of units (P, P, U, D) on x and y in the first order of some residues, and by chance in the others."""
    inside, *shuffled = (grid[np.ix_(rows, rows)] for rows in orders)
    variance_U = ((inside - inside.mean((0, 1))) ** 2).sum((0, 1, 3))
    units = np.flatnonzero(variance_U > _ALIVE * (inside**2).sum((0, 1, 3)))
    table: dict[str, Any] = {"n_units": grid.shape[2], "units": units.tolist()}
    if not len(units):
        nothing = dict.fromkeys(("single", "chance", "power", "off_grid"))
        return table | {"frequencies": [], "share": [], "gini": [], "ipr": []} | nothing
    power_Uff, *by_chance = (_measure_waves(values[:, :, units]) for values in (inside, *shuffled))
    strongest = [np.unravel_index(i, power_Uff.shape[1:]) for i in power_Uff.reshape(len(units), -1).argmax(1)]
    waves_UW = power_Uff[:, find_waves(len(inside))][:, 1:]  # all but the constant
    deviation_U, within_U = (((values - grid.mean((0, 1))) ** 2).sum((0, 1, 3))[units] for values in (grid, inside))
    return table | {
        "frequencies": [[int(f), int(g)] for f, g in strongest],
        "share": power_Uff.max((1, 2)).tolist(),
        "single": float((power_Uff.max((1, 2)) > threshold).mean()),
        "chance": float(np.mean([power.max((1, 2)) > threshold for power in by_chance])),
        "gini": gini(waves_UW).tolist(),
        "ipr": inverse_participation_ratio(waves_UW).tolist(),
        "power": power_Uff.mean(0).tolist(),
        "off_grid": float(1 - (within_U / deviation_U).mean()),
    }


def _measure_waves(values: FloatArray) -> FloatArray:
    """The share of each wave in what is not constant, (U, f, g)."""
    power_Uff = pair_spectrum(values)
    power_Uff[:, 0, 0] = 0.0
    return np.asarray(power_Uff / power_Uff.sum((1, 2), keepdims=True))


def find_waves(n: int) -> npt.NDArray[np.bool_]:
    """Which (f, g), f = 0 to n / 2 and g = 0 to n - 1, stand for a wave and its conjugate (-f, -g): bool (f, g)."""
    f, g = np.indices((n // 2 + 1, n))
    return np.asarray(f * n + g <= (-f % n) * n + (-g % n))


def pair_spectrum(values: FloatArray) -> FloatArray:
    """Power of each wave in two residues of real functions, (n, n, U, D) -> (U, n // 2 + 1, n), summed over D.

    At (f, g) lies exp(2 pi i (f x + g y) / n) with its conjugate, and 0 where another entry stands for it
    (`find_waves`); over all, powers sum to the squared norm of a unit.
    """
    n, _, n_units, width = values.shape
    step = max(1, _CHUNK // (n * n * width))
    waves = find_waves(n)
    f, g = np.indices(waves.shape)
    twice = np.where((2 * f % n == 0) & (2 * g % n == 0), 1.0, 2.0) * waves / n**2
    parts = []
    for start in range(0, n_units, step):
        wave = np.fft.fft2(values[:, :, start : start + step], axes=(0, 1))[: n // 2 + 1]
        power = (wave.real**2 + wave.imag**2).sum(-1) * twice[..., None]
        parts.append(np.moveaxis(power, -1, 0))
    return np.concatenate(parts)


def keep_frequencies(
    model: GPT, frequencies: list[int], basis: str, root: int | None = None, part: str = "both"
) -> GPT:
    """A copy of the model whose embedding of the p numbers has only these characters, 1 to floor(p / 2).

    The constant stays, and in the "multiplicative" basis the embedding of 0. `part` is "both", "input" or "output"; a
    tied matrix is untied where only one is edited, and an untied head is edited as the embedding is. Raises `UserError`
    for a basis, a part or a frequency that is none.
    """
    if part not in PARTS:
        raise UserError(f"An embedding has no part {part!r}: take {', '.join(PARTS)}.")
    changed = copy.deepcopy(model)
    if changed.head is None and part != "both":
        n_tokens, width = changed.tok_embed.weight.shape
        changed.head = nn.utils.skip_init(nn.Linear, width, n_tokens, bias=False)
        changed.head.weight = nn.Parameter(changed.tok_embed.weight.detach().clone())
    matrices: list[nn.Embedding | nn.Linear] = [changed.tok_embed] if part != "output" else []
    if changed.head is not None and part != "input":
        matrices.append(changed.head)
    for matrix in matrices:
        rows = matrix.weight.detach()[: model.p]
        kept = keep_characters(rows.cpu().double().numpy(), frequencies, basis, root)
        rows.copy_(torch.from_numpy(kept))
    return changed


def ablate_spectrum(
    model: GPT,
    config: RunConfig,
    split: TaskSplit,
    n_sequences: int = 1024,
    basis: str = "additive",
    root: int | None = None,
    part: str = "both",
) -> dict[str, Any]:
    """Scores at the last shot, on the four sets, without each frequency of the embedding and with the best k alone.

    `whole` is the untouched model, `removed[f - 1]` the one without frequency f, and `kept` holds the `frequencies` and
    `scores` of the best k = 1, 2, 4, ... and all. Best is what raises the loss on id_train most when it alone is
    removed; `order` ranks so. Scores are {set: {"loss", "accuracy"}}, estimates with intervals, all on the same
    sequences (those of `modicl.evaluation.evaluate`), so differences are surer than the intervals. Raises `UserError`
    as `keep_frequencies` does.
    """
    every = list(range(1, model.p // 2 + 1))
    device = model.tok_embed.weight.device

    def score(frequencies: list[int]) -> dict[str, Any]:
        edited = keep_frequencies(model, frequencies, basis, root, part)
        scores = evaluate(ModelPredictor(edited), config, split, n_sequences, device)
        return {name: {"loss": asdict(s.last_loss), "accuracy": asdict(s.last_accuracy)} for name, s in scores.items()}

    removed = [score([g for g in every if g != f]) for f in every]
    order = sorted(every, key=lambda f: -removed[f - 1]["id_train"]["loss"]["value"])
    counts = [2**i for i in range(len(every).bit_length()) if 2**i < len(every)]
    kept = [{"frequencies": order[:k], "scores": score(order[:k])} for k in counts]
    whole = score(every)
    kept.append({"frequencies": order, "scores": whole})
    return {"basis": basis, "part": part, "whole": whole, "removed": removed, "order": order, "kept": kept}
