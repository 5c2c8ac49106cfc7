"""Score a predictor on the four sets.

A predictor is anything with `logits(tokens) -> (B, S, p)`: for every z, a score of each number given all before it. The
trained model is one (`ModelPredictor`). Contexts are uniform, every sequence has inputs of its own, and every task of a
set has equally many sequences up to one.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from modicl.config import SETS, RunConfig
from modicl.data import get_targets, make_evaluation_sampler
from modicl.metrics import Scores, Tally
from modicl.model import GPT
from modicl.tasks import TaskSplit

MONITOR, REPORT = 0, 1
"""Contexts of the evaluations during training, and of those that are reported: never the same, so that a checkpoint
chosen on the first is not flattered by the second."""

_CHUNK_TOKENS = 2**16
"""Tokens a forward pass takes at once: enough to fill a GPU, within a laptop's memory."""


class Predictor(Protocol):
    """What an evaluation calls."""

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Scores of the numbers 0 to p - 1 for every z, (B, S, p), from int64 tokens (B, T)."""
        ...


class ModelPredictor:
    """A trained model as a predictor, its matrix products in the given type."""

    def __init__(self, model: GPT, dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self.dtype = dtype

    @torch.no_grad()
    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Logits of the p numbers, (B, S, p) float32; further tokens of the vocabulary are left out."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.autocast(tokens_BT.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                return self.model(tokens_BT)[..., : self.model.p].float()
        finally:
            self.model.train(training)


def count_report_sequences(n_tasks: int, at_least: int) -> int:
    """The least multiple of the number of tasks that is `at_least`, so that every task counts the same."""
    return math.ceil(at_least / n_tasks) * n_tasks


def evaluate(
    predictor: Predictor,
    config: RunConfig,
    split: TaskSplit,
    n_sequences: int = 4096,
    device: torch.device | str = "cpu",
    contexts: int = REPORT,
) -> dict[str, Scores]:
    """Scores on each of the four sets, from at least `n_sequences` sequences a set when reporting.

    `contexts` is REPORT (every task of the set equally often) or MONITOR (just n_sequences of them).
    """
    scores = {}
    for name in SETS:
        n_tasks = len(split.get(name)[0])
        count = count_report_sequences(n_tasks, n_sequences) if contexts == REPORT else n_sequences
        tokens_BT = make_evaluation_sampler(config, split, name, count, contexts, device).batch(0)
        tally = Tally()
        for chunk_BT in tokens_BT.split(max(1, _CHUNK_TOKENS // tokens_BT.shape[1])):
            tally.add(predictor.logits(chunk_BT), get_targets(chunk_BT, split.n_vars))
        scores[name] = tally.score()
    return scores
