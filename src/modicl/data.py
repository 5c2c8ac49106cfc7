"""Sequences of examples, made on the device that trains; a batch is a pure function of (seed, step).

A sequence is n_examples examples of one task: x1 y1 z1 x2 y2 z2 ..., one token a number, no separators (paper, section
on the task family). Training draws the inputs uniformly, as the paper does, or from a **context curriculum**, which
makes the easy skills frequent: a sequence repeats a pool of u inputs (copying pays), and with chance s an example moves
to another multiple of its input (ratio matching pays). Evaluation is always uniform.

Shapes: B sequences, S examples, T = S (n_vars + 1) tokens, K = n_vars.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modicl.config import SETS, DataConfig, RunConfig
from modicl.randomness import Stream, draw_events, draw_integers, draw_permutations, make_key
from modicl.residues import IntArray, find_multiples
from modicl.tasks import TaskSplit

_EVALUATION_STREAM = 1000
"""Keeps the keys of evaluation batches apart from those of training, should both seeds be equal."""


def make_tokens(tasks_BK: Tensor, inputs_BSK: Tensor, p: int) -> Tensor:
    """The sequences of these tasks on these inputs, int64 (B, T) with T = S (K + 1)."""
    targets_BS = (inputs_BSK * tasks_BK[:, None, :]).sum(-1) % p
    return torch.cat([inputs_BSK, targets_BS[..., None]], dim=-1).flatten(1)


def get_targets(tokens_BT: Tensor, n_vars: int) -> Tensor:
    """The z tokens of each sequence, (B, S)."""
    return tokens_BT[:, n_vars :: n_vars + 1]


def get_inputs(tokens_BT: Tensor, n_vars: int) -> Tensor:
    """The inputs of each sequence's examples, (B, S, K)."""
    return tokens_BT.unflatten(1, (-1, n_vars + 1))[..., :n_vars]


def index_inputs(tokens_BT: Tensor, n_vars: int, p: int) -> Tensor:
    """Lexicographic index of every example's input, (B, S)."""
    index_BS = torch.zeros_like(get_targets(tokens_BT, n_vars))
    for x_BS in get_inputs(tokens_BT, n_vars).unbind(-1):
        index_BS = index_BS * p + x_BS
    return index_BS


def _list_pairs(data: DataConfig) -> list[tuple[int, float]]:
    """Every (u, s) of the curriculum: the stages one after another, or the mixture's combinations."""
    if data.contexts == "stages":
        return [(u, s) for _, u, s in data.stages]
    if data.contexts == "mixture":
        return [(u, s) for u in data.pools for s in data.slides]
    return [(0, 0.0)]


class Sampler:
    """Batches of one set of tasks and inputs.

    `batch(step)` gives int64 tokens (batch_size, n_examples * (n_vars + 1)), the same for the same (seed, step)
    whatever was drawn before, on any device. Each task has floor(B / tasks) sequences, and B mod tasks of them, drawn
    anew in every batch, one more. With `shared_inputs`, all tasks see the same lists of inputs.
    """

    def __init__(
        self, tasks: IntArray, inputs: IntArray, p: int, data: DataConfig, key: int, device: torch.device | str = "cpu"
    ) -> None:
        """`tasks` (n, K) and `inputs` (m, K); `key` sets this sampler's batches apart from others'."""
        self.p = p
        self.data = data
        self.key = key
        self.device = torch.device(device)
        self.tasks_NK = torch.from_numpy(tasks).to(device)
        self.inputs_MK = torch.from_numpy(inputs).to(device)
        pairs = _list_pairs(data)
        self.pools = torch.tensor([u for u, _ in pairs], device=device)
        self.slides = torch.tensor([s for _, s in pairs], dtype=torch.float64, device=device)
        self.pool_width = max(data.n_examples, *(u for u, _ in pairs), 0)
        self.multiples: tuple[Tensor, Tensor] | None = None
        if any(s > 0 for _, s in pairs):
            table, counts = find_multiples(inputs, p)
            self.multiples = torch.from_numpy(table).to(device), torch.from_numpy(counts).to(device)

    def batch(self, step: int) -> Tensor:
        """The tokens of this step's batch, (B, T)."""
        size, n_tasks = self.data.batch_size, len(self.tasks_NK)
        key = make_key(self.key, step, 0)
        full, rest = divmod(size, n_tasks)
        task_B = torch.arange(n_tasks, device=self.device).repeat(full)
        if rest:
            extra = draw_permutations(make_key(key, 0, Stream.EXTRA_TASKS), 1, n_tasks, self.device)[0, :rest]
            task_B = torch.cat([task_B, extra])
        if self.data.shared_inputs:
            list_B = torch.arange(size, device=self.device) // n_tasks
            input_BS = self._draw_contexts(key, step, full + (rest > 0))[list_B]
        else:
            input_BS = self._draw_contexts(key, step, size)
        return make_tokens(self.tasks_NK[task_B], self.inputs_MK[input_BS], self.p)

    def _draw_contexts(self, key: int, step: int, rows: int) -> Tensor:
        """Positions of the inputs of `rows` contexts, (R, S)."""
        shape, n_inputs, device = (rows, self.data.n_examples), len(self.inputs_MK), self.device
        input_key = make_key(key, 0, Stream.INPUTS)
        if self.data.distinct_inputs:
            return draw_permutations(input_key, rows, n_inputs, device)[:, : self.data.n_examples]
        pair_R1 = self._draw_pairs(key, step, rows)
        if pair_R1 is None:
            return draw_integers(input_key, shape, n_inputs, device)
        pool_R1, slide_R1 = self.pools[pair_R1], self.slides[pair_R1]
        # A pool of u inputs is the first u of a row's draws, so that one draw serves every u; u = 0 takes them in turn.
        drawn_RW = draw_integers(input_key, (rows, self.pool_width), n_inputs, device)
        slot_RS = draw_integers(make_key(key, 0, Stream.POOL_SLOT), shape, pool_R1.clamp(min=1), device)
        turn_RS = torch.arange(self.data.n_examples, device=device).expand(shape)
        input_RS = drawn_RW.gather(1, torch.where(pool_R1 > 0, slot_RS, turn_RS))
        if self.multiples is None:
            return input_RS
        table_MC, count_M = self.multiples
        count_RS = count_M[input_RS]
        which_RS = draw_integers(make_key(key, 0, Stream.MULTIPLE), shape, count_RS.clamp(min=1), device)
        moves_RS = draw_events(make_key(key, 0, Stream.SLIDE), shape, slide_R1, device) & (count_RS > 0)
        return torch.where(moves_RS, table_MC[input_RS, which_RS], input_RS)

    def _draw_pairs(self, key: int, step: int, rows: int) -> Tensor | None:
        """Which (u, s) each row has, (R, 1), or None where contexts are uniform."""
        if self.data.contexts == "mixture":
            return draw_integers(make_key(key, 0, Stream.CURRICULUM), (rows, 1), len(self.pools), self.device)
        if self.data.contexts == "stages":
            for stage, (end, _, _) in enumerate(self.data.stages):
                if step < end:
                    return torch.full((rows, 1), stage, device=self.device)
        return None


def make_train_sampler(config: RunConfig, split: TaskSplit, device: torch.device | str = "cpu") -> Sampler:
    """The batches a run trains on."""
    tasks, inputs = split.get("id_train")
    return Sampler(tasks, inputs, split.p, config.data, make_key(config.seeds.data, 0, 0), device)


def make_evaluation_sampler(
    config: RunConfig, split: TaskSplit, name: str, n_sequences: int, repeat: int, device: torch.device | str = "cpu"
) -> Sampler:
    """Batches of n_sequences of one of the four sets, always uniform, each sequence with inputs of its own.

    `repeat` tells apart evaluations that must not share their contexts.
    """
    data = DataConfig(
        n_examples=config.data.n_examples,
        batch_size=n_sequences,
        shared_inputs=False,
        distinct_inputs=config.data.distinct_inputs,
    )
    tasks, inputs = split.get(name)
    key = make_key(config.seeds.evaluation, repeat, _EVALUATION_STREAM + SETS.index(name))
    return Sampler(tasks, inputs, split.p, data, key, device)
