"""Random integers as a pure function of (seed, step, stream): no state, the same on every device and torch version.

A counter-based generator: number i of a draw is SplitMix64's finalizer (Steele, Lea and Flood, 2014) applied to
key + i * gamma, in 64-bit integers that wrap. The key mixes the seed, the step and the stream, so draws of different
steps need nothing of each other, and evaluation cannot disturb training.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15
_MUL1 = 0xBF58476D1CE4E5B9
_MUL2 = 0x94D049BB133111EB


class Stream(enum.IntEnum):
    """What a draw is for: draws of one (seed, step) with different streams are independent."""

    PRETRAIN_TASKS = 1  # task choice
    TRAIN_INPUTS = 2  # input split
    EXTRA_TASKS = 3  # which tasks get one more sequence
    INPUTS = 4  # inputs drawn for each example
    CURRICULUM = 5  # (u, s) of each list, in a mixture
    POOL_SLOT = 6  # which input of the pool an example repeats
    SLIDE = 7  # whether an example moves to a multiple
    MULTIPLE = 8  # and to which
    DROPOUT = 9
    WEIGHTS = 10
    TIES = 11  # which of several equally likely numbers is the answer
    CORRUPTION = 12  # which labels are wrong, and how
    GRID = 13  # single contexts, as of k-shot grids
    DONORS = 14  # whose activation takes a part's place
    TASK_PAIRS = 15  # tasks between which activations are patched
    RINGS_NULL = 16  # relabellings, for p-values
    SPECTRA_NULL = 17
    SIMILARITY_NULL = 18
    PROBES = 19  # a probe's contexts, which tasks it is fitted on, and its shuffled labels


def _mix(value: int) -> int:
    value = (value ^ (value >> 30)) * _MUL1 & _MASK
    value = (value ^ (value >> 27)) * _MUL2 & _MASK
    return value ^ (value >> 31)


def make_key(seed: int, step: int, stream: int) -> int:
    """A 64-bit key for one draw: an unsigned integer that depends on all three."""
    key = 0
    for part in (seed, step, stream):
        key = _mix((key + part + 1) * _GAMMA & _MASK)
    return key


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def draw_bits(key: int, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Independent uniform integers in [0, 2^32), int64 of the given shape."""
    count = 1
    for size in shape:
        count *= size
    x = torch.arange(1, count + 1, dtype=torch.int64, device=device)
    x = x * _signed(_GAMMA) + _signed(key)
    # int64's right shift keeps the sign, so the upper bits are masked off to make it a shift of unsigned numbers.
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(_MUL1)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(_MUL2)
    x = x ^ ((x >> 31) & (2**33 - 1))
    return ((x >> 32) & (2**32 - 1)).view(shape)


def draw_integers(key: int, shape: tuple[int, ...], high: int | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Integers in [0, high), int64; `high` < 2^31 may be a tensor that broadcasts to `shape`.

    Each value's probability is within 2^-32 of 1 / high, by multiplication and shift.
    """
    return (draw_bits(key, shape, device) * high) >> 32


def draw_events(key: int, shape: tuple[int, ...], chance: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """True with the given chance (float64, broadcasts to `shape`), to within 2^-32."""
    return draw_bits(key, shape, device) < (chance * 2**32).to(torch.int64)


def draw_permutations(key: int, rows: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """`rows` independent permutations of range(n), int64 (rows, n): the order of random keys."""
    return draw_bits(key, (rows, n), device).argsort(dim=1, stable=True)
