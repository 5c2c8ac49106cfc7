"""What a head writes for every input of one context: its principal components, and the circles in it.

In PCA of these outputs the paper sees a circle of circles (its section on attention heads): the larger by one number of
an example, the smaller by the other, in the order of values or of discrete logarithms. `score_circles` measures what is
seen there: the share of the variance that is one character of one number, against the best of all characters by chance.

Read a score with the rest of its table. A ring is all of what a number does only if its share is near the number's own
(`alone`), and where `both` is below 1 the numbers act together, as no sum of two rings can. In many dimensions any two
directions are about equally long and perpendicular, so roundness speaks for a circle only beside a share above chance.
The smallest p-value is 1 / (1 + n_permutations), and at p = 5 and 7 about 1/6 and 1/120, as so few orders differ. No
correction is made for looking at many heads.

Shapes: I = p^2 inputs in lexicographic order, N rows, D residual width, H heads, P = p values of a label, R their rank.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from modicl.config import UserError
from modicl.contexts import make_grid_tokens
from modicl.interp.characters import (
    FloatArray,
    additive_spectrum,
    choose_root,
    compress,
    count_points,
    make_powers,
    multiplicative_spectrum,
)
from modicl.model import GPT
from modicl.randomness import Stream, draw_permutations, make_key
from modicl.residues import IntArray, make_vectors
from modicl.taps import collect
from modicl.tasks import TaskSplit

READS = ("x", "y", "z")
"""The tokens of an example."""

PAIRS = {"x": (("x", "y"),), "y": (("x", "y"),), "z": (("x", "z"), ("y", "z"))}
"""Which two numbers of the varied example label the rows, by the token that is read."""

ORDERS = ("value", "logarithm")

_CHUNK = 256  # relabellings at once
_EXACT = 1e-9  # shares closer than this are the same
_ROUNDING = 1e-24  # of the squared norm: less is no variance


def collect_head_outputs(
    model: GPT, split: TaskSplit, task: list[int], shot: int, read: str, which_inputs: str = "train", seed: int = 0
) -> list[FloatArray]:
    """What every head writes at one token of the example that follows `shot` fixed ones, one (I, H, D) a layer.

    The example is each of the p^2 inputs in turn, the context that of `modicl.contexts.make_grid_tokens`. These are the
    taps `attn.result`: a head's values through its slice of the output matrix. The model has to be in evaluation mode.
    Raises `UserError` for another token than x, y, z, other than two variables, or a task that is none.
    """
    if read not in READS:
        raise UserError(f"There is no token {read!r} in an example: take {', '.join(READS)}.")
    if split.n_vars != 2:
        raise UserError(f"Heads are read at x, y and z, of tasks in 2 variables; these have {split.n_vars}.")
    tokens_IT = make_grid_tokens(split, task, shot, which_inputs, seed).to(model.tok_embed.weight.device)
    place = READS.index(read) - len(READS)

    def take(z_BTHE: Tensor) -> Tensor:
        return z_BTHE[:, place]

    z = collect(model, tokens_IT, {f"blocks.{layer}.attn.z": take for layer in range(len(model.blocks))})
    outputs = []
    for layer, z_IHE in enumerate(z.values()):
        weight_DD = model.get_parameter(f"blocks.{layer}.attn.o_proj.weight").detach().cpu().double()
        weight_HED = weight_DD.T.unflatten(0, (z_IHE.shape[1], -1))
        outputs.append(torch.einsum("ihe,hed->ihd", z_IHE.double(), weight_HED).numpy())
    return outputs


def principal_components(X: npt.ArrayLike, n: int) -> dict[str, FloatArray]:
    """The first n (at most min(N, D)) principal components of the rows of X (N, D), by SVD of the centred matrix.

    `coordinates` (N, n), `directions` (n, D) of length 1, `explained` (n,) shares of the variance (0 where there is
    none) and the `mean` (D,). A direction's largest entry is positive. Components of equal variance, as the two of a
    perfect circle, are any two perpendicular ones of their plane.
    """
    values = np.asarray(X, dtype=np.float64)
    mean = values.mean(0)
    left, singular, directions = np.linalg.svd(values - mean, full_matrices=False)
    n = min(n, len(singular))
    largest = np.abs(directions[:n]).argmax(1)
    signs = np.where(directions[np.arange(n), largest] < 0, -1.0, 1.0)
    total = (singular**2).sum()
    return {
        "coordinates": left[:, :n] * singular[:n] * signs,
        "directions": directions[:n] * signs[:, None],
        "explained": singular[:n] ** 2 / total if total > 0 else np.zeros(n),
        "mean": mean,
    }


def score_circles(
    X: npt.ArrayLike,
    labels: tuple[npt.ArrayLike, npt.ArrayLike],
    p: int,
    root: int | None = None,
    names: tuple[str, str] = ("u", "v"),
    n_permutations: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """How much of X (N, D) is a ring by one of two labels, each N residues and every one of them equally often.

    For either label and order, `shares[name][order][f - 1]` is the share of the variance of X that the cosine and sine
    of frequency f explain, f = 1 to (p - 1) / 2: exp(2 pi i f u / p) in the order "value", and in the order "logarithm"
    exp(2 pi i f log u / (p - 1)), there over the rows with u != 0 and of their variance. `outer` is the ring with the
    largest share of all, `inner` the best one of the other label. A ring is

    - `label`, `order`, `frequency`, `share`, and `points`, how many places it has: 2 is a line, no circle (`circle`);
    - `roundness`, its shorter half-axis over its longer one, 1 for a perfect circle and 0 for a line;
    - `p_value`, of as large a share, and `chance`, the mean of the shares it is compared with. The values of a label
      (but 0, which may be special in either order) change places among each other, in all rows alike, and the best over
      its orders and frequencies is taken; for the outer ring, the better of both labels, as it was chosen so.

    `alone[name]` is the share that any function of one label explains, `both` that of any sum of two such: what
    circles in the order of values cannot exceed. Raises `ValueError` for labels that do not fit, `UserError` for a
    modulus without primitive roots or a root that is none.
    """
    root = choose_root(p, root)
    values, total = _centre(np.asarray(X, dtype=np.float64))
    belongs = [_check_label(label, len(values), p) for label in labels]  # each (P, N)
    shares, nulls = {}, {}
    for which, (name, belongs_PN) in enumerate(zip(names, belongs, strict=True)):
        _, rest_total = _centre(values[belongs_PN[0] == 0])
        scale = [belongs_PN[0].sum() / norm if norm > 0 else 0.0 for norm in (total, rest_total)]
        means_PR = compress(belongs_PN @ values / belongs_PN.sum(1, keepdims=True))
        shares[name] = _measure_shares(means_PR, scale, root)
        key = make_key(seed, which, Stream.RINGS_NULL)
        orders = draw_permutations(key, n_permutations, p - 1).numpy() + 1
        orders = np.pad(orders, ((0, 0), (1, 0)))  # 0 stays
        parts = np.array_split(orders, -(-n_permutations // _CHUNK) or 1)
        nulls[name] = np.concatenate([_measure_shares(means_PR[part], scale, root).max((0, 2)) for part in parts])
    outer = max(names, key=lambda name: shares[name].max())
    inner = names[1 - names.index(outer)]
    rings = {}
    for ring, name, null in (("outer", outer, np.maximum(*nulls.values())), ("inner", inner, nulls[inner])):
        belongs_PN = belongs[names.index(name)]
        best = _describe_best(shares[name], name, compress(belongs_PN @ values), root)
        above = int((null >= best["share"] - _EXACT).sum())
        chance = float(null.mean()) if n_permutations else None
        rings[ring] = {**best, "p_value": (1 + above) / (1 + n_permutations), "chance": chance}
    alone = {name: _explain([one], values, total) for name, one in zip(names, belongs, strict=True)}
    tables = {name: dict(zip(ORDERS, table.tolist(), strict=True)) for name, table in shares.items()}
    return {**rings, "alone": alone, "both": _explain(belongs, values, total), "shares": tables, "root": root}


def analyze_heads(
    model: GPT,
    split: TaskSplit,
    task: list[int],
    shots: list[int],
    reads: list[str],
    root: int | None = None,
    n_permutations: int = 200,
    n_components: int = 4,
    with_coordinates: bool = False,
    which_inputs: str = "train",
    seed: int = 0,
) -> dict[str, Any]:
    """Circles in what each head writes at the tokens `reads` of the example after so many shots, for one task.

    `heads` has an entry for each shot, token, layer, head and pair of labels in `PAIRS`: where it is, the `scores` of
    `score_circles`, the summed `variance` over inputs, `explained` by the first n_components and, if asked for, their
    `coordinates` [I][n]. At x a head has not seen y, so only x can have a ring there. In a task with a = 0 or b = 0, z
    is another name of one of the numbers. Raises `UserError` for a modulus without primitive roots, and for z in task
    0,0.
    """
    root = choose_root(split.p, root)
    inputs = make_vectors(split.p, split.n_vars)
    if "z" in reads and not any(task):
        raise UserError("Task 0,0 has one answer, by which nothing can be ordered: take another task, or read x and y.")
    heads = []
    for shot, read in itertools.product(shots, reads):
        outputs = collect_head_outputs(model, split, task, shot, read, which_inputs, seed)
        numbers = dict(zip(READS, [*inputs.T, inputs @ np.array(task) % split.p], strict=True))
        for layer, outputs_IHD in enumerate(outputs):
            for head in range(outputs_IHD.shape[1]):
                X = outputs_IHD[:, head]
                pca = principal_components(X, n_components)
                entry = {"shot": shot, "read": read, "layer": layer, "head": head}
                entry |= {"variance": float(X.var(0).sum()), "explained": pca["explained"].tolist()}
                if with_coordinates:
                    entry["coordinates"] = pca["coordinates"].tolist()
                for pair in PAIRS[read]:
                    labels = (numbers[pair[0]], numbers[pair[1]])
                    scores = score_circles(X, labels, split.p, root, pair, n_permutations, seed)
                    heads.append({**entry, "pair": list(pair), "scores": scores})
    request = {"task": task, "shots": shots, "reads": reads, "inputs": which_inputs, "seed": seed}
    return {"p": split.p, "root": root, "n_permutations": n_permutations, **request, "heads": heads}


def _centre(rows: FloatArray) -> tuple[FloatArray, float]:
    """Rows less their mean, and their squared norm; of rows that differ by rounding alone, zeros."""
    centred = rows - rows.mean(0)
    total = float((centred**2).sum())
    if total <= _ROUNDING * (rows**2).sum():
        return np.zeros_like(rows), 0.0
    return centred, total


def _check_label(label: npt.ArrayLike, n_rows: int, p: int) -> FloatArray:
    """Which rows have which value, float64 (P, N) of 0 and 1."""
    values: IntArray = np.asarray(label, dtype=np.int64)
    if values.shape != (n_rows,) or values.min() < 0 or values.max() >= p:
        raise ValueError(f"A label has to be {n_rows} numbers from 0 to {p - 1}, not an array of {values.shape}.")
    counts = np.bincount(values, minlength=p)
    if counts.min() != counts.max():
        raise ValueError(
            f"Every value of a label has to be equally frequent, not {counts.min()} to {counts.max()} times."
        )
    return np.asarray(values == np.arange(p)[:, None], dtype=np.float64)


def _measure_shares(means_PR: FloatArray, scale: npt.ArrayLike, root: int) -> FloatArray:
    """Shares (order, ..., frequency) by the means (..., P, R) of a label's values, scaled by rows over variance."""
    value = additive_spectrum(means_PR, axis=-2)[..., 1:, :].sum(-1)
    logarithm = multiplicative_spectrum(means_PR, root, axis=-2)[0][..., 1:, :].sum(-1)
    return np.stack([value, logarithm]) * np.reshape(scale, (2,) + (1,) * value.ndim)


def _describe_best(shares: FloatArray, name: str, means_PR: FloatArray, root: int) -> dict[str, Any]:
    """The ring with the largest share, from all shares (order, frequency) of one label."""
    order, place = divmod(int(shares.argmax()), shares.shape[1])
    p, f = len(means_PR), place + 1
    ordered = means_PR if order == 0 else means_PR[make_powers(p, root)]
    wave = np.exp(-2j * np.pi * f * np.arange(len(ordered)) / len(ordered)) @ ordered
    axes = np.linalg.svd(np.stack([wave.real, wave.imag]), compute_uv=False)
    points = count_points(f, len(ordered))
    share = float(shares[order, place])
    round_enough = points > 2 and share > _EXACT and len(axes) == 2
    return {
        "label": name,
        "order": ORDERS[order],
        "frequency": f,
        "share": share,
        "points": points,
        "circle": points > 2,
        "roundness": float(axes[1] / axes[0]) if round_enough else 0.0,
    }


def _explain(belongs: list[FloatArray], values: FloatArray, total: float) -> float:
    """The share of the variance that a sum of functions of these labels explains, by least squares."""
    design = np.concatenate(belongs)  # rows are indicators
    sums = design @ values
    explained = np.vdot(sums, np.linalg.pinv(design @ design.T, hermitian=True) @ sums)
    return float(explained / total) if total > 0 else 0.0
