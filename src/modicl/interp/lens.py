"""The logit lens: what each layer would answer if the model ended there (nostalgebraist, 2020; the paper's own probe).

The residual stream after the embedding, after each block's attention and after each block goes through the model's own
final LayerNorm and output head. The last of them is the model, with the scores of `modicl.evaluation.evaluate`.

Shapes: B sequences, S examples, T tokens, D residual width, V = p numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modicl.config import SETS, RunConfig
from modicl.data import get_targets
from modicl.evaluation import iterate_chunks
from modicl.metrics import Tally
from modicl.model import GPT
from modicl.predictors import ModelPredictor
from modicl.taps import record
from modicl.tasks import TaskSplit


def list_stops(n_layers: int) -> list[str]:
    """The taps of the residual stream that the lens reads, in the order of computation."""
    parts = ("resid_mid", "resid_post")
    return ["embed", *(f"blocks.{layer}.{part}" for layer in range(n_layers) for part in parts)]


@torch.no_grad()
def logit_lens(
    model: GPT, config: RunConfig, split: TaskSplit, n_sequences: int = 4096, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Loss (nats) and accuracy of every stop of the residual stream on the four sets, overall and by shot.

    On the sequences of `evaluate`: at least n_sequences a set. Plain values: `stops` (tap names, in order) and `sets`
    {set: {stop: scores}}, with the scores of `modicl.metrics.Scores`.
    """
    stops = list_stops(len(model.blocks))
    predictor = ModelPredictor(model)
    sets: dict[str, Any] = {}
    for name in SETS:
        tallies = {stop: Tally() for stop in stops}
        for tokens_BT in iterate_chunks(config, split, name, n_sequences, device):
            with record(model, stops) as cache:
                predictor.logits(tokens_BT)
            for stop, tally in tallies.items():
                tally.add(_read_out(model, cache[stop], tokens_BT), get_targets(tokens_BT, split.n_vars))
        sets[name] = {stop: tally.score().to_dict() for stop, tally in tallies.items()}
    return {"stops": stops, "sets": sets}


def _read_out(model: GPT, x_BTD: Tensor, tokens_BT: Tensor) -> Tensor:
    """Logits (B, S, V) of a residual stream; the last block's already holds z-predicting tokens alone."""
    if x_BTD.shape[1] == tokens_BT.shape[1]:
        x_BTD = x_BTD[:, model.n_vars - 1 :: model.n_vars + 1]
    head = model.tok_embed.weight if model.head is None else model.head.weight
    return F.linear(model.ln_final(x_BTD), head)[..., : model.p]
