"""The whole description of a run, as frozen dataclasses that read and write JSON.

A run is a `RunConfig` and nothing else: every number that changes what is computed is a field here, with its unit and
its meaning. `RunConfig.check()` refuses what cannot work and `RunConfig.notes()` says which settings have no effect.
The defaults are the paper's (arXiv 2406.02550); `modicl.presets` names whole configurations.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from modicl.residues import is_prime

CONFIG_VERSION = 1
"""Raised whenever an older modicl could misread a config written by this one."""

SETS = ("id_train", "id_test", "ood_train", "ood_test")
"""The four sets: {pre-training, other} tasks x {training, held-out} inputs."""

MEASURES = ("loss", "accuracy", "last_loss", "last_accuracy")
"""What a set is scored by; `last_` is the last example of a context, the others average over all of them."""

MAX_TASKS = 2**24
"""All p^n_vars task vectors are enumerated, so their number has to fit in memory."""


class UserError(ValueError):
    """Something the user gave cannot work. The message is one full sentence: what was given and what to do."""


class ConfigError(UserError):
    """A configuration that cannot be run."""


@dataclass(frozen=True)
class TaskConfig:
    """The family z = a x + b y mod p, and which of its tasks and inputs are shown in training."""

    p: int = 29
    """Modulus, at least 2. Any is trained; analyses that divide need a prime."""
    n_vars: int = 2
    """Variables of a task: 2 is z = a x + b y mod p."""
    n_tasks: int = 256
    """Pre-training tasks; all other p^n_vars - n_tasks tasks are out of distribution."""
    rule: Literal["rectangle", "random", "mixed"] = "rectangle"
    """How the pre-training tasks are chosen: all 2^n_vars corners of random boxes in task space, at random, or both."""
    n_random: int = 0
    """With rule=mixed: how many of the n_tasks are drawn at random, the others from rectangles."""
    alpha: float = 0.8
    """Fraction of the p^n_vars inputs that training shows, the same inputs for every task."""


@dataclass(frozen=True)
class DataConfig:
    """Sequences: how many examples one holds, how many make a batch and how their inputs are drawn."""

    n_examples: int = 32
    """Examples (x, y, z) in a sequence, so 0 to n_examples - 1 shots."""
    batch_size: int = 1024
    """Sequences in a training batch, spread over the tasks as evenly as they divide."""
    shared_inputs: bool = True
    """All tasks of a batch see the same inputs (the paper), or every sequence draws its own."""
    distinct_inputs: bool = False
    """Draw the inputs of a sequence without replacement, in training and evaluation (the paper: with)."""
    contexts: Literal["uniform", "stages", "mixture"] = "uniform"
    """How training inputs are drawn: uniformly (the paper), or a context curriculum in stages or as a mixture."""
    stages: tuple[tuple[int, int, float], ...] = ()
    """With contexts=stages: triples (end, u, s), each in force until step `end` (see docs/curriculum.md)."""
    pools: tuple[int, ...] = ()
    """With contexts=mixture: the pool sizes u, of which every sequence draws one; 0 is no pool."""
    slides: tuple[float, ...] = ()
    """With contexts=mixture: the chances s, of which every sequence draws one."""


@dataclass(frozen=True)
class ModelConfig:
    """The decoder: pre-LayerNorm blocks with RoPE, no biases in its linear layers."""

    n_layers: int = 4
    """Blocks."""
    d_model: int = 512
    """Residual width."""
    n_heads: int = 4
    """Attention heads; each is d_model / n_heads wide, an even number."""
    mlp_factor: int = 4
    """Hidden width of the MLP over d_model; with swiglu over floor(2 d_model / 3), rounded up to a multiple of 8."""
    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    """Nonlinearity of the MLP."""
    dropout: float = 0.0
    """Chance that a unit is dropped: of the embedding, the attention pattern and what each part writes."""
    tied: bool = True
    """One matrix for embedding and output head. Untied, the embedding has no weight decay and the head has."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies base^(-2i / head width)."""
    vocab_size: int = 0
    """Tokens the embedding holds; 0 is p, one a number. The released code has 47 at p = 29."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    scale_attn_out: bool = False
    """Divide the attention's output matrix by sqrt(2 n_layers) too, as the MLP's always is."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rate over the steps."""

    name: Literal["adamw", "sgd", "schedulefree", "muon"] = "adamw"
    """adamw (the paper), sgd with momentum, schedule-free AdamW, or Muon for the blocks' matrices with AdamW beside."""
    lr: float = 1.5e-4
    """Peak learning rate; Muon's is matched to AdamW's update size, so that one value serves both."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.98
    """AdamW's decay of the second moment."""
    eps: float = 1e-8
    """AdamW's denominator offset."""
    momentum: float = 0.95
    """Momentum of sgd and muon."""
    weight_decay: float = 2.0
    """Decay a unit of learning rate, on every matrix (see tied), not on LayerNorm: decoupled, for sgd an L2 term."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """From lr after the warm-up down to final_factor * lr at the end of the last step, or constant."""
    warmup_steps: int = 10_000
    """Steps of linear warm-up."""
    warmup_factor: float = 0.01
    """Learning rate of the first step over lr."""
    final_factor: float = 0.1
    """Learning rate at the end of the last step over lr (cosine, linear)."""
    clip: float = 0.0
    """Largest norm of the whole gradient; 0 is no clipping."""


@dataclass(frozen=True)
class TrainConfig:
    """The loop: how long, how often it looks, what it keeps, and where it runs."""

    steps: int = 200_000
    """Optimizer steps."""
    log_every: int = 100
    """Steps between lines of training loss."""
    eval_every: int = 1000
    """Steps between evaluations on the four sets; there is one before the first step and one after the last."""
    eval_sequences: int = 1024
    """Sequences a set in these evaluations, on uniform contexts."""
    keep: int = 20
    """Checkpoints kept for good, log-spaced over the steps (their weights; the last two can be resumed)."""
    save_every: int = 1000
    """Steps between checkpoints to resume from."""
    best_metric: str = "ood_test.last_accuracy"
    """What names the best checkpoint: a set, a dot, and loss, accuracy, last_loss or last_accuracy."""
    patience: int = 0
    """Stop after so many evaluations without a better best_metric; 0 is never."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Matrix products in bfloat16 (auto: where the hardware has them) or float32; weights and loss are float32."""
    engine: Literal["auto", "eager", "fast", "compiled", "graph"] = "auto"
    """How a step is computed: auto picks for the device, eager is the plain reference (docs/speed.md)."""
    threads: int = 0
    """CPU threads; 0 is torch's own choice, which depends on the machine. Another number gives other last digits."""


@dataclass(frozen=True)
class SeedConfig:
    """One seed for each source of randomness, each from 0 to 2^63 - 1."""

    tasks: int = 0
    """Choice of the pre-training tasks."""
    inputs: int = 0
    """Split of the inputs."""
    data: int = 0
    """Training batches (and dropout)."""
    weights: int = 0
    """Initial weights."""
    evaluation: int = 0
    """Contexts of every evaluation."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run."""

    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seeds: SeedConfig = field(default_factory=SeedConfig)

    @property
    def vocab_size(self) -> int:
        """Tokens of the embedding, V."""
        return self.model.vocab_size or self.task.p

    @property
    def n_train_inputs(self) -> int:
        """Inputs that training shows: alpha p^n_vars to the nearest integer."""
        return round(self.task.alpha * self.task.p**self.task.n_vars)

    def check(self) -> None:
        """Raise `ConfigError` with one full sentence if this cannot be run."""
        _read(RunConfig, dataclasses.asdict(self), "The config", "")  # types and named choices
        for section in (_check_numbers, _check_task, _check_data, _check_model, _check_optim, _check_train):
            section(self)

    def notes(self) -> list[str]:
        """Sentences about settings that have no effect here, and about what a composite modulus excludes."""
        return _notes(self)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, with the version of this format."""
        return {"version": CONFIG_VERSION, **dataclasses.asdict(self)}

    @staticmethod
    def from_dict(data: Any, where: str = "the config") -> RunConfig:
        """The inverse of `to_dict`; raises `ConfigError` naming `where` for anything unknown, missing or mistyped."""
        if not isinstance(data, dict) or "version" not in data:
            raise ConfigError(f"{where} is not a modicl config: it has no version.")
        version = data["version"]
        if not isinstance(version, int) or version > CONFIG_VERSION:
            raise ConfigError(
                f"{where} was written by a later modicl (config version {version}, this one reads up to "
                f"{CONFIG_VERSION}): upgrade modicl to read it."
            )
        values = {name: value for name, value in data.items() if name != "version"}
        config = _read(RunConfig, values, where, "")
        assert isinstance(config, RunConfig)
        return config

    def digest(self) -> str:
        """Eight hexadecimal digits that name this configuration."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def suggest(word: str, allowed: typing.Iterable[str]) -> str:
    """' Did you mean X?' for the nearest of `allowed`, or nothing."""
    near = difflib.get_close_matches(word, list(allowed), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def replace_field(config: RunConfig, path: str, value: Any) -> RunConfig:
    """A copy with the field at a dotted path changed, as `replace_field(config, "task.p", 11)`.

    Raises `ConfigError` where there is no such field.
    """
    section, _, name = path.partition(".")
    sections = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    names = [f"{s}.{f.name}" for s, part in sections.items() for f in dataclasses.fields(part)]
    if path not in names:
        raise ConfigError(f"There is no setting {path}.{suggest(path, names)}")
    return dataclasses.replace(config, **{section: dataclasses.replace(sections[section], **{name: value})})


def _read(kind: Any, value: Any, where: str, path: str) -> Any:
    """`value` (from JSON) as type `kind`, strictly."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {path or 'the config'} should hold settings, not {value!r}.")
        hints = typing.get_type_hints(kind)
        prefix = f"{path}." if path else ""
        for name in value:
            if name not in hints:
                raise ConfigError(f"{where} has a setting {prefix}{name} that this modicl does not know.")
        for name in hints:
            if name not in value:
                raise ConfigError(f"{where} lacks the setting {prefix}{name}.")
        return kind(**{name: _read(hint, value[name], where, prefix + name) for name, hint in hints.items()})  # type: ignore[operator]
    origin, args = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) == len(value):
            return tuple(_read(k, v, where, path) for k, v in zip(kinds, value, strict=True))
    elif origin is Literal:
        _require(value in args, f"{where}: {path} is {value!r}; it has to be one of {', '.join(args)}.")
        return value
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where}: {path} is larger than a float can be.") from None
    elif isinstance(kind, type) and type(value) is kind:
        return value
    name = kind.__name__ if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) else str(kind)
    raise ConfigError(f"{where}: {path} is {value!r}, which is not of type {name.replace('typing.', '')}.")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_numbers(config: RunConfig) -> None:
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        for f in dataclasses.fields(part):
            value, name = getattr(part, f.name), f"{section.name}.{f.name}"
            if isinstance(value, float):
                _require(math.isfinite(value), f"{name} is {value}; it has to be a finite number.")
            if isinstance(value, int):
                _require(value >= 0, f"{name} is {value}; it cannot be negative.")
                _require(value < 2**63, f"{name} is {value}; it has to be below 2^63.")
    positive = (
        ("task.n_vars", config.task.n_vars),
        ("task.n_tasks", config.task.n_tasks),
        ("data.n_examples", config.data.n_examples),
        ("data.batch_size", config.data.batch_size),
        ("model.n_layers", config.model.n_layers),
        ("model.d_model", config.model.d_model),
        ("model.n_heads", config.model.n_heads),
        ("model.mlp_factor", config.model.mlp_factor),
        ("train.steps", config.train.steps),
        ("train.log_every", config.train.log_every),
        ("train.eval_every", config.train.eval_every),
        ("train.eval_sequences", config.train.eval_sequences),
        ("train.keep", config.train.keep),
        ("train.save_every", config.train.save_every),
    )
    for name, number in positive:
        _require(number >= 1, f"{name} is {number}; it has to be at least 1.")


def _check_task(config: RunConfig) -> None:
    t = config.task
    _require(t.p >= 2, f"task.p is {t.p}; a modulus has to be at least 2.")
    _require(
        t.n_vars * math.log2(t.p) <= math.log2(MAX_TASKS) + 1e-9,
        f"task.p={t.p} with task.n_vars={t.n_vars} has over {MAX_TASKS} tasks, more than can be enumerated: "
        f"take fewer variables or a smaller modulus.",
    )
    total = t.p**t.n_vars
    _require(0 < t.alpha < 1, f"task.alpha is {t.alpha}; the fraction of training inputs has to be between 0 and 1.")
    _require(
        1 <= config.n_train_inputs < total,
        f"task.alpha={t.alpha} leaves {config.n_train_inputs} of the {total} inputs for training; at least one has to "
        f"be on each side, so take alpha from {1 / total:.3g} to {1 - 1 / total:.9g}.",
    )
    _require(
        t.n_tasks < total,
        f"task.n_tasks is {t.n_tasks}, but task.p={t.p} has {total} tasks and at least one has to stay out of "
        f"distribution: take at most {total - 1}.",
    )
    _require(
        t.n_random <= t.n_tasks, f"task.n_random is {t.n_random}, more than the {t.n_tasks} tasks of task.n_tasks."
    )
    if t.rule != "random":
        n_random = t.n_random if t.rule == "mixed" else 0
        corners, wanted = 2**t.n_vars, t.n_tasks - n_random
        low = t.n_tasks - wanted % corners
        near = [str(n) for n in (low, low + corners) if max(n_random, 1) <= n < total]
        advice = f"take {' or '.join(near)}, or task.rule=random" if near else "take task.rule=random"
        _require(
            wanted % corners == 0,
            f"task.n_tasks={t.n_tasks} leaves {wanted} tasks for rectangles, which come {corners} at a time: {advice}.",
        )


def _check_data(config: RunConfig) -> None:
    d = config.data
    n_in = config.n_train_inputs
    n_out = config.task.p**config.task.n_vars - n_in
    if d.distinct_inputs:
        _require(
            d.n_examples <= min(n_in, n_out),
            f"data.distinct_inputs needs data.n_examples={d.n_examples} different inputs, but task.alpha="
            f"{config.task.alpha} gives {n_in} training and {n_out} held-out ones: take at most {min(n_in, n_out)} "
            f"examples, or inputs with replacement.",
        )
        _require(
            d.contexts == "uniform",
            f"data.distinct_inputs cannot go with data.contexts={d.contexts}, which repeats inputs: drop one of them.",
        )
    if d.contexts == "stages":
        _require(bool(d.stages), "data.contexts=stages needs data.stages: (end, u, s) for each stage.")
        ends = [end for end, _, _ in d.stages]
        _require(
            ends == sorted(set(ends)) and ends[0] > 0,
            f"data.stages end at steps {ends}; they have to be positive and to increase.",
        )
    if d.contexts == "mixture":
        _require(bool(d.pools), "data.contexts=mixture needs data.pools, the pool sizes to draw from.")
        _require(bool(d.slides), "data.contexts=mixture needs data.slides, the chances to draw from.")
    for name, sizes in (("stages", [u for _, u, _ in d.stages]), ("pools", d.pools)):
        for u in sizes:
            _require(
                0 <= u <= n_in, f"data.{name} has a pool of {u} inputs; take 0 (none) to {n_in} (all in training)."
            )
    for name, chances in (("stages", [s for _, _, s in d.stages]), ("slides", d.slides)):
        for s in chances:
            _require(0 <= s <= 1, f"data.{name} moves examples with chance {s}; it has to be from 0 to 1.")


def _check_model(config: RunConfig) -> None:
    m = config.model
    if m.d_model % (2 * m.n_heads):
        divisors = [h for h in range(1, m.d_model + 1) if m.d_model % (2 * h) == 0]
        lower = max((h for h in divisors if h < m.n_heads), default=0)
        near = lower, min((h for h in divisors if h > m.n_heads), default=0)
        advice = " or ".join(str(h) for h in near if h) + " heads" if any(near) else "an even d_model"
        raise ConfigError(
            f"model.n_heads={m.n_heads} does not divide model.d_model={m.d_model} into heads of even width: "
            f"take {advice}."
        )
    _require(m.dropout < 1 and m.dropout >= 0, f"model.dropout is {m.dropout}; it has to be at least 0 and below 1.")
    _require(m.rope_base > 1, f"model.rope_base is {m.rope_base}; it has to be above 1.")
    _require(m.init_std > 0, f"model.init_std is {m.init_std}; it has to be positive.")
    _require(
        m.vocab_size == 0 or m.vocab_size >= config.task.p,
        f"model.vocab_size is {m.vocab_size}, but task.p={config.task.p} needs {config.task.p} tokens: take at least "
        f"{config.task.p}, or 0 for just that.",
    )


def _check_optim(config: RunConfig) -> None:
    o = config.optim
    _require(o.lr > 0, f"optim.lr is {o.lr}; a learning rate has to be positive.")
    for name in ("beta1", "beta2", "momentum"):
        value = getattr(o, name)
        _require(0 <= value < 1, f"optim.{name} is {value}; it has to be at least 0 and below 1.")
    _require(o.eps > 0, f"optim.eps is {o.eps}; it has to be positive.")
    for name in ("weight_decay", "clip", "warmup_factor", "final_factor"):
        value = getattr(o, name)
        _require(value >= 0, f"optim.{name} is {value}; it cannot be negative.")
    _require(o.name != "schedulefree" or o.beta1 > 0, "optim.beta1 is 0, and optim.name=schedulefree divides by it.")
    _require(
        o.name != "schedulefree" or o.schedule == "constant",
        f"optim.name=schedulefree replaces the learning rate's decay by averaging, so optim.schedule={o.schedule} "
        f"would act twice: take optim.schedule=constant.",
    )


def _check_train(config: RunConfig) -> None:
    metric = config.train.best_metric
    allowed = [f"{s}.{m}" for s in SETS for m in MEASURES]
    _require(
        metric in allowed,
        f"train.best_metric is {metric!r}; it has to be one of {', '.join(SETS)}, a dot, and one of "
        f"{', '.join(MEASURES)}.",
    )
    check_device_name(config.train.device)


def check_device_name(name: str) -> None:
    """Raise `ConfigError` unless a device is named auto, cpu, cuda or cuda:N."""
    kind, _, index = name.partition(":")
    known = name in ("auto", "cpu", "cuda") or (kind == "cuda" and index.isdigit())
    _require(known, f"The device {name!r} is not one that can be asked for: take auto, cpu, cuda or cuda:N.")


def _notes(config: RunConfig) -> list[str]:
    default = RunConfig()
    o, d, t, m = config.optim, config.data, config.task, config.model

    def set_without(section: str, names: tuple[str, ...], why: str) -> list[str]:
        given, usual = getattr(config, section), getattr(default, section)
        return [
            f"{section}.{name}={getattr(given, name)!r} has no effect with {why}."
            for name in names
            if getattr(given, name) != getattr(usual, name)
        ]

    notes = []
    if t.rule != "mixed":
        notes += set_without("task", ("n_random",), f"task.rule={t.rule}")
    if d.contexts != "stages":
        notes += set_without("data", ("stages",), f"data.contexts={d.contexts}")
    if d.contexts != "mixture":
        notes += set_without("data", ("pools", "slides"), f"data.contexts={d.contexts}")
    if o.name == "sgd":
        notes += set_without("optim", ("beta1", "beta2", "eps"), "optim.name=sgd")
    if o.name in ("adamw", "schedulefree"):
        notes += set_without("optim", ("momentum",), f"optim.name={o.name}")
    if o.schedule == "constant":
        notes += set_without("optim", ("final_factor",), "optim.schedule=constant")
    if o.warmup_steps == 0:
        notes += set_without("optim", ("warmup_factor",), "optim.warmup_steps=0")
    if o.warmup_steps >= config.train.steps:
        notes.append(
            f"The learning rate never reaches optim.lr={o.lr}: optim.warmup_steps={o.warmup_steps} is not below "
            f"train.steps={config.train.steps}."
        )
    last_stage = max((end for end, _, _ in d.stages), default=0) if d.contexts == "stages" else 0
    if last_stage >= config.train.steps:
        notes.append(
            f"Training ends inside the context curriculum: data.stages last until step {last_stage}, train.steps is "
            f"{config.train.steps}."
        )
    if not is_prime(t.p):
        notes.append(
            f"task.p={t.p} is not prime: training and evaluation work, but ratio matching, modular regression and "
            f"everything with discrete logarithms need a prime."
        )
    if m.vocab_size == t.p:
        notes.append(f"model.vocab_size={t.p} is what 0 means here.")
    return notes
