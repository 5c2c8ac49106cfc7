"""The training loop: steps, evaluations, checkpoints, and going on after any interruption.

`train(config, folder)` makes a run; `train(folder=..., resume=True)` goes on with one. What a step computes depends on
its number and the checkpoint alone, so on a CPU an interrupted run ends bit for bit as an uninterrupted one. The loop
asks nothing of the device between logs.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from modicl.config import MEASURES, RunConfig, UserError
from modicl.cost import estimate_disk_use, format_bytes
from modicl.data import get_targets, make_train_sampler
from modicl.environment import describe_environment, resolve_device, resolve_dtype, use_threads
from modicl.evaluation import MONITOR, evaluate
from modicl.files import append_line, explain_os_errors, write_json
from modicl.metrics import measure_loss
from modicl.model import GPT
from modicl.optim import Optimizer, get_learning_rate
from modicl.predictors import ModelPredictor
from modicl.randomness import Stream, make_key
from modicl.runs import (
    SUMMARY,
    Checkpoint,
    Line,
    Run,
    check_free_space,
    create_run,
    format_line,
    get_history,
    load_run,
    pick_best,
)
from modicl.tasks import TaskSplit, make_split


class InterruptedRun(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has saved; `signal_number` says by what."""

    def __init__(self, run: Run, step: int, signal_number: int) -> None:
        super().__init__(f"Stopped and saved at step {step}. Go on with: modicl train --resume {run.path}")
        self.signal_number = signal_number


class DivergedError(RuntimeError):
    """The loss or a weight is no longer a finite number."""


class Reporter(Protocol):
    """Is told what happens in a run."""

    def start(self, run: Run, step: int, messages: list[str]) -> None:
        """The run begins, or goes on, at this step, with what the user should know."""

    def step(self, step: int) -> None:
        """So many steps are done."""

    def line(self, line: Line) -> None:
        """A line was added to metrics.jsonl."""

    def finish(self, run: Run, summary: dict[str, Any]) -> None:
        """The run has ended by itself."""


class SilentReporter:
    """Says nothing."""

    def start(self, run: Run, step: int, messages: list[str]) -> None:
        """Nothing."""

    def step(self, step: int) -> None:
        """Nothing."""

    def line(self, line: Line) -> None:
        """Nothing."""

    def finish(self, run: Run, summary: dict[str, Any]) -> None:
        """Nothing."""


def train(
    config: RunConfig | None = None,
    folder: Path | str = "runs/run",
    *,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Train what `config` describes in `folder`, or go on with the run that is there.

    With `resume` the config is the folder's own; `force` deletes what is there and starts over. Returns the run once it
    has ended by itself. Raises `UserError` (a bad config or folder, a run that is finished), `InterruptedRun` (Ctrl-C
    or SIGTERM; it has saved) and `DivergedError` (a loss that is not finite; the last checkpoint is from before it).
    """
    run = load_run(folder) if resume else None
    config = run.config if run else config
    if config is None:
        raise UserError("train needs a config, or resume=True with the folder of a run.")
    config.check()
    with use_threads(config.train.threads):
        trainer = _resume(run) if run else _start(config, Path(folder), force)
        return trainer.run_to_end(reporter or SilentReporter())


def _start(config: RunConfig, folder: Path, force: bool) -> Trainer:
    device = resolve_device(config.train.device)
    split = make_split(config)
    if folder.exists() and not (folder / "config.json").exists():
        raise UserError(f"{folder} is there already and is not a run: take another name.")
    if folder.exists() and not force:
        if load_run(folder).finished:
            raise UserError(f"The run {folder} is finished: take another name, or --force to delete it and start over.")
        raise UserError(
            f"The run {folder} was interrupted: go on with modicl train --resume {folder}, or --force to delete it and "
            f"start over."
        )
    model = GPT(config).to(device)
    optimizer = Optimizer(model, config)
    if folder.exists():
        with explain_os_errors(folder):
            shutil.rmtree(folder)
    needed = estimate_disk_use(config)
    check_free_space(folder, needed)
    dtype = resolve_dtype(config.train.dtype, device)
    run = create_run(folder, config, split, describe_environment(device, dtype))
    messages = [*config.notes(), f"Checkpoints will take at most {format_bytes(needed)}."]
    return Trainer(run, split, model, optimizer, device, messages)


def _resume(run: Run) -> Trainer:
    if run.finished:
        raise UserError(f"The run {run.path} is finished; there is nothing to resume.")
    checkpoint, damage = run.load_latest(resumable=True)
    if checkpoint is None and damage:
        raise UserError(f"{damage[0]} No older checkpoint can be resumed, so the run has to start over (--force).")
    if checkpoint is not None and checkpoint.config != run.config:
        raise UserError(
            f"{run.path / 'config.json'} is not the config of {checkpoint.path}: put it back, or start a new run."
        )
    device = resolve_device(run.config.train.device)
    model = GPT(run.config).to(device)
    optimizer = Optimizer(model, run.config)
    step = checkpoint.step if checkpoint else 0
    messages = [f"{error} Going on from step {step}, the newest checkpoint that is whole." for error in damage]
    trainer = Trainer(run, checkpoint.split if checkpoint else run.split, model, optimizer, device, messages)
    run.rewind(step if checkpoint else -1)
    if checkpoint is not None:
        trainer.take_up(checkpoint)
    return trainer


class Trainer:
    """A run in progress: everything that changes from step to step."""

    def __init__(
        self,
        run: Run,
        split: TaskSplit,
        model: GPT,
        optimizer: Optimizer,
        device: torch.device,
        messages: list[str],
    ) -> None:
        self.run = run
        self.config = run.config
        self.split = split
        self.model = model
        self.optimizer = optimizer
        self.device = device
        self.dtype = resolve_dtype(run.config.train.dtype, device)
        self.messages = messages
        self.sampler = make_train_sampler(run.config, split, device)
        self.keep = pick_kept_steps(run.config.train.steps, run.config.train.keep)
        self.done = 0  # steps
        self.saved = -1  # step of the newest checkpoint
        self.losses = torch.zeros(run.config.train.log_every, device=device)  # of the steps since the last log
        self.n_losses = 0
        self.evaluations: list[Line] = []

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint was saved."""
        self.model.load_state_dict(checkpoint.weights)
        assert checkpoint.optimizer is not None
        self.optimizer.set_state(checkpoint.optimizer, checkpoint.meta["optimizer"])
        self.done = self.saved = checkpoint.step
        losses = checkpoint.meta["losses"]
        self.losses[: len(losses)] = torch.tensor(losses, device=self.device)
        self.n_losses = len(losses)
        self.evaluations = [line for line in self.run.metrics if line["kind"] == "evaluation"]

    def run_to_end(self, reporter: Reporter) -> Run:
        """Train until the last step or until patience runs out."""
        t = self.config.train
        reporter.start(self.run, self.done, self.messages)
        with catch_signals() as caught:
            self.clock = time.perf_counter()
            if self.saved < 0:
                self._evaluate(reporter)
                self._save()
            while self.done < t.steps and not self._out_of_patience():
                if caught:
                    self._save()
                    raise InterruptedRun(self.run, self.done, caught[0])
                self._step()
                reporter.step(self.done)
                last = self.done == t.steps
                if self.done % t.log_every == 0 or last:
                    self._log(reporter)
                if self.done % t.eval_every == 0 or last:
                    self._evaluate(reporter)
                if self.done % t.save_every == 0 or self.done in self.keep or self.done == self._find_best():
                    self._save()
            self._save()
            summary = self._summarize()
            write_json(self.run.path / SUMMARY, summary)
        reporter.finish(self.run, summary)
        return self.run

    def _step(self) -> None:
        tokens_BT = self.sampler.batch(self.done)
        with self._seeded_dropout(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits_BSV = self.model(tokens_BT)
        loss = measure_loss(logits_BSV, get_targets(tokens_BT, self.split.n_vars))
        loss.backward()
        self.optimizer.step(self.done)
        self.losses[self.n_losses] = loss.detach()
        self.n_losses += 1
        self.done += 1

    @contextlib.contextmanager
    def _seeded_dropout(self) -> Iterator[None]:
        """Dropout draws from torch's global generator, so a step that drops sets it, and puts it back."""
        if self.config.model.dropout == 0:
            yield
            return
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(make_key(self.config.seeds.data, self.done, Stream.DROPOUT) >> 1)
            yield

    def _read_losses(self) -> list[float]:
        """Losses of the steps since the last log; raises `DivergedError` at the first that is not finite."""
        losses: list[float] = self.losses[: self.n_losses].tolist()
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                self._give_up(f"The loss of step {self.done - len(losses) + i + 1} is {loss}")
        return losses

    def _give_up(self, what: str) -> None:
        raise DivergedError(
            f"{what}, so the run stops. Its last good checkpoint is step {self.saved}, in {self.run.path}; a lower "
            f"optim.lr or optim.clip=1 may keep it finite."
        )

    def _log(self, reporter: Reporter) -> None:
        losses = self._read_losses()
        lr = get_learning_rate(self.done - 1, self.config.optim, self.config.train.steps)
        self.n_losses = 0
        self._append({"step": self.done, "kind": "train", "loss": math.fsum(losses) / len(losses), "lr": lr}, reporter)
        now = time.perf_counter()
        timing = {"step": self.done, "seconds": round(now - self.clock, 3)}
        self.clock = now
        append_line(self.run.path / "timing.jsonl", format_line(timing))

    def _evaluate(self, reporter: Reporter) -> None:
        self._read_losses()
        predictor = ModelPredictor(self.model, self.dtype)
        with self.optimizer.evaluation_weights():
            n = self.config.train.eval_sequences
            scores = evaluate(predictor, self.config, self.split, n, self.device, MONITOR)
        line: Line = {"step": self.done, "kind": "evaluation"}
        for name, score in scores.items():
            if not math.isfinite(score.loss.value):
                self._give_up(f"The loss on {name} after step {self.done} is {score.loss.value}")
            line[name] = {measure: getattr(score, measure).value for measure in MEASURES} | {"n": score.loss.n}
        self.evaluations.append(line)
        self._append(line, reporter)

    def _append(self, line: Line, reporter: Reporter) -> None:
        append_line(self.run.path / "metrics.jsonl", format_line(line))
        reporter.line(line)

    def _find_best(self) -> int | None:
        metric = self.config.train.best_metric
        return pick_best(get_history(self.evaluations, metric), metric)

    def _out_of_patience(self) -> bool:
        best = self._find_best()
        since = sum(1 for line in self.evaluations if best is not None and line["step"] > best)
        return 0 < self.config.train.patience <= since

    def _save(self) -> None:
        if self.saved == self.done:
            return
        losses = self._read_losses()
        with self.optimizer.evaluation_weights():
            weights = {name: w.detach().clone() for name, w in self.model.state_dict().items()}
        if not all(bool(torch.isfinite(w).all()) for w in weights.values()):
            self._give_up(f"After step {self.done} a weight is not a finite number")
        tensors, numbers = self.optimizer.get_state()
        meta = {
            "config": self.config.to_dict(),
            "split": self.split.to_dict(),
            "losses": losses,
            "optimizer": numbers,
        }
        self.run.save_checkpoint(self.done, weights, tensors, meta)
        self.saved = self.done
        best = self._find_best()
        self.run.prune(self.keep | ({best} if best is not None else set()))

    def _summarize(self) -> dict[str, Any]:
        best = self._find_best()
        by_step = {line["step"]: line for line in self.evaluations}
        return {
            "steps": self.done,
            "stopped_by": "steps" if self.done == self.config.train.steps else "patience",
            "best_metric": self.config.train.best_metric,
            "best": by_step[best] if best is not None else None,
            "last": self.evaluations[-1],
        }


def pick_kept_steps(steps: int, count: int) -> set[int]:
    """Step 0 and `count` steps from 1 to the last, evenly spaced in their logarithm (fewer where they coincide)."""
    if count == 1:
        return {0, steps}
    return {0} | {round(steps ** (i / (count - 1))) for i in range(count)}


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of dying of the first; the second acts at once. Main thread only."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
