"""The command `modicl`: thin sub-commands over the library.

What the user gave wrongly ends in one sentence and exit code 2, a run that diverged in 1, and a run that was stopped,
having saved, in 128 + the signal's number.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from modicl.config import MEASURES, SETS, RunConfig, UserError, suggest

Which = Annotated[str, tyro.conf.arg(metavar="latest|best|STEP")]
RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True)
class Train:
    """Train PRESET, with any setting changed, into a run folder; or go on with a run: modicl train --resume RUN."""

    config: Annotated[RunConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    name: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Name of the run; by default the preset's, with the config's digest where a setting was changed."""
    folder: Path = Path("runs")
    """Where run folders are."""
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Delete a run of that name and start over."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Go on with the run in this folder, with its own config."""


@dataclass(frozen=True)
class Evaluate:
    """Loss and accuracy of a checkpoint on the four sets, with 95 % intervals.

    Contexts are uniform and are not those that chose the best checkpoint; all tasks of a set count the same. The table
    is kept in RUN/evaluations.
    """

    run: RunFolder
    """The run's folder."""
    checkpoint: Which = "latest"
    """Which checkpoint."""
    sequences: int = 4096
    """Sequences a set at least; rounded up until every task has equally many."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class Figure:
    """Draw a figure of a run from its saved tables, as PDF and PNG, into RUN/figures.

    curves: loss and accuracy of the four sets over training steps.
    shots: loss and accuracy by the number of examples seen, from the tables of `modicl evaluate`.
    """

    what: Annotated[Literal["curves", "shots"], tyro.conf.Positional]
    """Which figure."""
    run: RunFolder
    """The run's folder."""
    axis: Literal["log", "linear"] = "linear"
    """Axis of the steps (curves)."""
    checkpoint: Which = "latest"
    """Which checkpoint (shots)."""


@dataclass(frozen=True)
class Presets:
    """List the presets, what they cost and what to expect of them."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of a table."""


def main() -> None:
    """The entry point of the command."""
    try:
        code = run_command(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        print(f"modicl: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("modicl: stopped at once; a run goes on from its last checkpoint with --resume.", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader left. Python would complain once more when it flushes at exit, so nothing is left to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def run_command(argv: list[str]) -> int:
    """Run one command line and return its exit code. Raises `UserError`, and `SystemExit` for help and usage."""
    commands: dict[str, tuple[type, Callable[[Any], int]]] = {
        "train": (Train, run_train),
        "evaluate": (Evaluate, run_evaluate),
        "figure": (Figure, run_figure),
        "presets": (Presets, run_presets),
    }
    if not argv or argv[0] in ("-h", "--help"):
        print_overview({name: kind.__doc__ or "" for name, (kind, _) in commands.items()})
        return 0
    if argv[0] == "--version":
        print(f"modicl {version('modicl')}")
        return 0
    name, *rest = argv
    if name not in commands:
        raise UserError(f"There is no command {name!r}: take one of {', '.join(commands)}.{suggest(name, commands)}")
    kind, run = commands[name]
    return run(read_train(rest) if kind is Train else parse(kind, rest, f"modicl {name}"))


def print_overview(docs: dict[str, str]) -> None:
    """The help of the command itself."""
    print("usage: modicl COMMAND ...\n\nTransformers that learn modular arithmetic in context.\n\ncommands:")
    for name, doc in docs.items():
        print(f"  {name:10} {doc.splitlines()[0]}")
    print("\nmodicl COMMAND --help says more, modicl --version which version this is.")


def parse(kind: type, argv: list[str], prog: str, default: Any = None) -> Any:
    """Read the arguments of a command into its dataclass."""
    extra = {} if default is None else {"default": default}
    value, unknown = tyro.cli(kind, args=argv, prog=prog, return_unknown_args=True, **extra)
    if unknown:
        names = list_options(kind)
        word = unknown[0].split("=")[0]
        near = suggest(word.replace("_", "-"), names)
        what = "option" if word.startswith("-") else "argument"
        raise UserError(f"{prog} has no {what} {word}.{near} All are listed by {prog} --help.")
    return value


def list_options(kind: type) -> list[str]:
    """The option names of a command's dataclass, sections included."""
    names = []
    for field in dataclasses.fields(kind):
        if field.name == "config":
            config = RunConfig()
            for section in dataclasses.fields(config):
                part = getattr(config, section.name)
                names += [f"--{section.name}.{f.name}" for f in dataclasses.fields(part)]
        else:
            names.append(f"--{field.name}")
    return [name.replace("_", "-") for name in names]


def read_train(argv: list[str]) -> tuple[str | None, Train]:
    """The preset's name, if one is given, and the arguments of `modicl train`, on top of that preset."""
    from modicl.presets import PRESETS, get_preset

    if argv and not argv[0].startswith("-"):
        preset, *rest = argv
        return preset, parse(Train, rest, f"modicl train {preset}", Train(get_preset(preset)))
    if any(word in ("-h", "--help") for word in argv):
        print("usage: modicl train PRESET [OPTIONS], or modicl train --resume RUN\n")
        print(Train.__doc__)
        print(f"\nPresets: {', '.join(PRESETS)}. modicl train PRESET --help lists every setting with its value there.")
        raise SystemExit(0)
    args = parse(Train, argv, "modicl train", Train(RunConfig()))
    if args.resume is None:
        raise UserError(f"modicl train needs a preset, one of {', '.join(PRESETS)}, or --resume RUN.")
    return None, args


def run_train(given: tuple[str | None, Train]) -> int:
    """modicl train."""
    from rich.console import Console

    from modicl.presets import get_preset
    from modicl.progress import LiveReporter, PlainReporter
    from modicl.training import DivergedError, InterruptedRun, train

    preset, args = given
    if preset is not None and args.resume is not None:
        raise UserError(f"--resume goes on with a run under its own config: leave out the preset {preset}.")
    if args.resume is not None and args.force:
        raise UserError("--resume goes on with a run and --force deletes it: give one of them.")
    console = Console(highlight=False, soft_wrap=True)
    reporter = LiveReporter(Console(highlight=False)) if console.is_terminal else PlainReporter(console)
    try:
        if args.resume is not None:
            train(folder=args.resume, resume=True, reporter=reporter)
        else:
            assert preset is not None
            changed = "" if args.config == get_preset(preset) else f"-{args.config.digest()}"
            name = args.name or preset + changed
            if Path(name).name != name:
                raise UserError(f"--name is {name!r}; a name cannot hold a path, which --folder is for.")
            train(args.config, args.folder / name, force=args.force, reporter=reporter)
    except InterruptedRun as stop:
        reporter.close()
        console.print(str(stop), markup=False)
        return 128 + stop.signal_number
    except DivergedError as error:
        reporter.close()
        print(f"modicl: {error}", file=sys.stderr)
        return 1
    finally:
        reporter.close()
    return 0


def run_evaluate(args: Evaluate) -> int:
    """modicl evaluate."""
    from modicl.environment import resolve_device
    from modicl.evaluation import evaluate
    from modicl.predictors import ModelPredictor
    from modicl.runs import load_run

    if args.sequences < 2:
        raise UserError(f"--sequences is {args.sequences}; an interval needs at least 2.")
    run = load_run(args.run)
    device = resolve_device(args.device)
    checkpoint = run.load(args.checkpoint, warn)
    predictor = ModelPredictor(checkpoint.make_model(device))
    scores = evaluate(predictor, checkpoint.config, checkpoint.split, args.sequences, device)
    table = {"run": run.path.name, "step": checkpoint.step, **{name: score.to_dict() for name, score in scores.items()}}
    file = run.save_evaluation(table)
    if args.json:
        print(json.dumps(table))
    else:
        print_scores(table)
        print(f"By shot in {file}; draw it with: modicl figure shots {run.path} --checkpoint {checkpoint.step}")
    return 0


def print_scores(table: dict[str, Any]) -> None:
    """The table of `modicl evaluate`."""
    from rich.console import Console
    from rich.table import Table

    def show(estimate: dict[str, float]) -> str:
        return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"

    grid = Table(title=f"{table['run']} at step {table['step']}, 95 % intervals", title_justify="left", box=None)
    grid.add_column("")
    for title in ("sequences", "loss (nats)", "accuracy", "loss at last shot", "accuracy at last shot"):
        grid.add_column(title, justify="right")
    for name in SETS:
        row = table[name]
        grid.add_row(name, str(row["loss"]["n"]), *(show(row[measure]) for measure in MEASURES))
    console = Console(highlight=False)
    Console(highlight=False, width=console.width if console.is_terminal else 120).print(grid)


def run_figure(args: Figure) -> int:
    """modicl figure."""
    from modicl.figures.curves import plot_curves
    from modicl.figures.shots import plot_shots
    from modicl.figures.style import save_figure
    from modicl.runs import load_run

    run = load_run(args.run)
    if args.what == "curves":
        lines = [line for line in run.metrics if line["kind"] == "evaluation"]
        if len(lines) < 2:
            raise UserError(f"{run.path} has {len(lines)} evaluations; curves need at least two.")
        figure = plot_curves(lines, run.config.task.p, run.config.data.n_examples, log=args.axis == "log")
        name = "curves" if args.axis == "linear" else "curves_log"
    else:
        step = run.find_step(args.checkpoint)
        figure = plot_shots(run.read_evaluation(step), run.config.task.p)
        name = f"shots_step_{step}"
    for file in save_figure(figure, run.path / "figures" / name):
        print(file)
    return 0


def run_presets(args: Presets) -> int:
    """modicl presets."""
    from rich.console import Console
    from rich.padding import Padding

    from modicl.cost import count_parameters, count_step_flop, format_flop
    from modicl.presets import PRESETS

    rows: list[dict[str, Any]] = []
    for name, make in PRESETS.items():
        config = make()
        first, _, expect = (make.__doc__ or "").partition("\n")
        rows.append(
            {
                "name": name,
                "what": first,
                "expect": " ".join(expect.split()),
                "parameters": count_parameters(config),
                "steps": config.train.steps,
                "flop": count_step_flop(config) * config.train.steps,
            }
        )
    if args.json:
        print(json.dumps(rows))
        return 0
    console = Console(highlight=False)
    for row in rows:
        cost = f"{row['parameters']:,} weights, {row['steps']:,} steps, {format_flop(row['flop'])}"
        console.print(f"[bold]{row['name']}[/bold]  {cost}")
        console.print(Padding(f"{row['what']}\n{row['expect']}", (0, 0, 1, 4)))
    return 0


def warn(message: str) -> None:
    """Tell the user of something that did not stop the command."""
    print(f"modicl: {message}", file=sys.stderr)
