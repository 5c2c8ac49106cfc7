import dataclasses
import json
import math
import re
import typing
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modicl import presets
from modicl.config import (
    CONFIG_VERSION,
    MEASURES,
    SETS,
    ConfigError,
    RunConfig,
    UserError,
    replace_field,
)

STAGES = "tuple[tuple[int, int, float], ...]"


def list_fields() -> dict[str, Any]:
    """The type of every setting, by its dotted path."""
    found = {}
    for section, kind in typing.get_type_hints(RunConfig).items():
        for name, hint in typing.get_type_hints(kind).items():
            found[f"{section}.{name}"] = hint
    return found


FIELDS = list_fields()
CHOICES = {path: typing.get_args(hint) for path, hint in FIELDS.items() if typing.get_origin(hint) is Literal}


def get(config: RunConfig, path: str) -> Any:
    section, name = path.split(".")
    return getattr(getattr(config, section), name)


def change(value: Any, hint: Any) -> Any:
    """Another value of the same type."""
    if typing.get_origin(hint) is Literal:
        return next(choice for choice in typing.get_args(hint) if choice != value)
    if hint is bool:
        return not value
    if hint in (int, float):
        return value + 1
    if hint is str:
        return value + "x"
    if hint == tuple[tuple[int, int, float], ...]:
        return (*value, (1, 2, 0.5))
    return (*value, 1 if hint == tuple[int, ...] else 0.5)


def make_strategy(hint: Any) -> st.SearchStrategy[Any]:
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    if typing.get_origin(hint) is Literal:
        return st.sampled_from(typing.get_args(hint))
    if hint == tuple[tuple[int, int, float], ...]:
        return st.lists(st.tuples(st.integers(), st.integers(), numbers), max_size=3).map(tuple)
    if hint == tuple[int, ...]:
        return st.lists(st.integers(), max_size=3).map(tuple)
    if hint == tuple[float, ...]:
        return st.lists(numbers, max_size=3).map(tuple)
    return {bool: st.booleans(), int: st.integers(), float: numbers, str: st.text(max_size=5)}[hint]


def make_config(**changes: Any) -> RunConfig:
    """The defaults with changes; a__b stands for a.b."""
    config = RunConfig()
    for key, value in changes.items():
        config = replace_field(config, key.replace("__", "."), value)
    return config


def get_error(**changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        make_config(**changes).check()
    return str(error.value)


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data))


# --- reading and writing


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_can_run_survives_json_and_has_only_settings_with_effect(name: str) -> None:
    config = presets.get_preset(name)
    config.check()
    assert config.notes() == []
    assert RunConfig.from_dict(through_json(config.to_dict())) == config


def test_the_defaults_can_run() -> None:
    config = RunConfig()
    config.check()
    assert config.notes() == []
    assert through_json(config.to_dict())["version"] == CONFIG_VERSION


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_config_survives_json(data: st.DataObject) -> None:
    config = RunConfig()
    for path in data.draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=6)):
        config = replace_field(config, path, data.draw(make_strategy(FIELDS[path])))
    again = RunConfig.from_dict(through_json(config.to_dict()))
    assert again == config
    assert again.digest() == config.digest()
    assert repr(again) == repr(config)  # 1 and 1.0 are equal, but not the same setting


def test_a_whole_number_is_read_as_a_float_where_one_is_due() -> None:
    data = RunConfig().to_dict()
    data["optim"]["clip"] = 1
    data["data"]["slides"] = [0, 1]
    config = RunConfig.from_dict(data)
    assert config == make_config(optim__clip=1.0, data__slides=(0.0, 1.0))
    assert type(config.optim.clip) is float
    assert [type(s) for s in config.data.slides] == [float, float]


@pytest.mark.parametrize("path", FIELDS)
def test_a_missing_setting_is_named(path: str) -> None:
    data = RunConfig().to_dict()
    section, name = path.split(".")
    del data[section][name]
    with pytest.raises(ConfigError, match=f"^here lacks the setting {re.escape(path)}\\.$"):
        RunConfig.from_dict(data, "here")


@pytest.mark.parametrize("section", [f.name for f in dataclasses.fields(RunConfig)])
def test_a_missing_or_mistyped_section_is_named(section: str) -> None:
    data = RunConfig().to_dict()
    wrong: list[Any] = [[], 3, None, "x"]
    for value in wrong:
        with pytest.raises(ConfigError, match=f"^here: {section} should hold settings, not "):
            RunConfig.from_dict({**data, section: value}, "here")
    del data[section]
    with pytest.raises(ConfigError, match=f"^here lacks the setting {section}\\.$"):
        RunConfig.from_dict(data, "here")


@pytest.mark.parametrize(("section", "name"), [("task", "q"), ("optim", "LR"), ("seeds", "version"), (None, "extra")])
def test_an_unknown_setting_is_named(section: str | None, name: str) -> None:
    data = RunConfig().to_dict()
    (data if section is None else data[section])[name] = 1
    path = name if section is None else f"{section}.{name}"
    with pytest.raises(ConfigError, match=f"^here has a setting {path} that this modicl does not know\\.$"):
        RunConfig.from_dict(data, "here")


def list_wrong_values(hint: Any) -> list[Any]:
    wrong: list[Any] = [None, {"a": 1}, [None]]
    if hint is not str and typing.get_origin(hint) is not Literal:
        wrong.append("1")
    if hint is not bool:
        wrong.append(True)
    if hint is not float:
        wrong.append(0.5)
    if hint in (bool, str) or typing.get_origin(hint) is not None:
        wrong.append(1)
    if typing.get_origin(hint) is Literal:
        wrong += ["", "no such choice", []]
    if hint == tuple[tuple[int, int, float], ...]:
        wrong += [[1, 2, 0.5], [[1, 2]], [[1, 2, 0.5, 0]], [[1.5, 2, 0.5]], [[1, 2, "s"]], [{}]]
    if hint == tuple[int, ...]:
        wrong += [[1.0], [[1]], [True]]
    if hint == tuple[float, ...]:
        wrong += [["0.5"], [[0.5]], [False]]
    return wrong


@pytest.mark.parametrize("path", FIELDS)
def test_a_value_of_the_wrong_type_is_named_with_its_place(path: str) -> None:
    section, name = path.split(".")
    for wrong in list_wrong_values(FIELDS[path]):
        data = RunConfig().to_dict()
        data[section][name] = wrong
        with pytest.raises(ConfigError) as error:
            RunConfig.from_dict(data, "here")
        assert str(error.value).startswith(f"here: {path} is ")


def test_a_whole_number_too_large_for_a_float_is_refused() -> None:
    data = RunConfig().to_dict()
    data["optim"]["lr"] = 10**400
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        RunConfig.from_dict(through_json(data))


@pytest.mark.parametrize("version", [CONFIG_VERSION + 1, 10**9])
def test_a_later_version_is_refused_with_both_versions_and_what_to_do(version: int) -> None:
    data = {**RunConfig().to_dict(), "version": version, "surprise": 1}
    with pytest.raises(
        ConfigError, match=rf"^here was written by a later modicl .*{version}.*{CONFIG_VERSION}.*upgrade"
    ):
        RunConfig.from_dict(data, "here")


@pytest.mark.parametrize("data", [None, 3, [], "config", {}, {"task": {}}])
def test_what_is_no_config_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match=r"^here is not a modicl config: it has no version"):
        RunConfig.from_dict(data, "here")


def test_a_config_error_is_a_user_error_and_a_value_error() -> None:
    assert issubclass(ConfigError, UserError)
    assert issubclass(UserError, ValueError)


# --- digest, replace_field, derived numbers


def test_the_digest_is_eight_hexadecimal_digits_and_differs_for_every_changed_field() -> None:
    base = RunConfig()
    digests = {"": base.digest()}
    for path, hint in FIELDS.items():
        digests[path] = replace_field(base, path, change(get(base, path), hint)).digest()
    assert all(re.fullmatch("[0-9a-f]{8}", digest) for digest in digests.values())
    assert len(set(digests.values())) == len(FIELDS) + 1
    assert RunConfig().digest() == base.digest()


@pytest.mark.parametrize("path", FIELDS)
def test_replace_field_changes_that_field_alone(path: str) -> None:
    base = RunConfig()
    value = change(get(base, path), FIELDS[path])
    changed = replace_field(base, path, value)
    assert get(changed, path) == value
    assert [other for other in FIELDS if get(changed, other) != get(base, other)] == [path]
    assert base == RunConfig()


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("task.n_task", "task.n_tasks"),
        ("optim.l", "optim.lr"),
        ("model.layers", "model.n_layers"),
        ("data.batchsize", "data.batch_size"),
    ],
)
def test_replace_field_suggests_the_nearest_setting(path: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"There is no setting {path}. Did you mean {meant}?")):
        replace_field(RunConfig(), path, 1)


@pytest.mark.parametrize("path", ["", "task", "task.", ".p", "task.p.q", "zzz", "version"])
def test_replace_field_refuses_what_is_no_setting(path: str) -> None:
    with pytest.raises(ConfigError, match=r"^There is no setting "):
        replace_field(RunConfig(), path, 1)


def test_an_unknown_preset_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(ConfigError, match="Did you mean tiny") as error:
        presets.get_preset("tinny")
    assert all(name in str(error.value) for name in presets.PRESETS)


@pytest.mark.parametrize(("vocab_size", "tokens"), [(0, 29), (29, 29), (47, 47)])
def test_the_vocabulary_is_p_unless_it_is_given(vocab_size: int, tokens: int) -> None:
    assert make_config(model__vocab_size=vocab_size).vocab_size == tokens


@pytest.mark.parametrize(
    ("p", "n_vars", "alpha", "count"), [(29, 2, 0.8, 673), (5, 1, 0.5, 2), (7, 1, 0.5, 4), (5, 3, 0.99, 124)]
)
def test_training_inputs_are_alpha_of_all_to_the_nearest(p: int, n_vars: int, alpha: float, count: int) -> None:
    assert make_config(task__p=p, task__n_vars=n_vars, task__alpha=alpha).n_train_inputs == count


# --- check

MIXTURE = {"data__contexts": "mixture", "data__pools": (1,), "data__slides": (0.5,)}
RULES: list[tuple[dict[str, Any], str]] = [
    *(
        ({key.replace(".", "__"): value}, key)
        for key, hint in FIELDS.items()
        if hint is float
        for value in (math.nan, math.inf)
    ),
    *(({key.replace(".", "__"): value}, key) for key, hint in FIELDS.items() if hint is int for value in (-1, 2**63)),
    *(
        ({key.replace(".", "__"): 0}, key)
        for key in (
            "task.n_vars",
            "task.n_tasks",
            "data.n_examples",
            "data.batch_size",
            "model.n_layers",
            "model.d_model",
            "model.n_heads",
            "model.mlp_factor",
            "train.steps",
            "train.log_every",
            "train.eval_every",
            "train.eval_sequences",
            "train.keep",
            "train.save_every",
        )
    ),
    ({"task__p": 0}, "task.p"),
    ({"task__p": 1}, "task.p"),
    ({"task__p": 4097}, "task.p"),
    ({"task__p": 2, "task__n_vars": 25}, "task.n_vars"),
    ({"task__alpha": 0.0}, "task.alpha"),
    ({"task__alpha": -0.1}, "task.alpha"),
    ({"task__alpha": 1.0}, "task.alpha"),
    ({"task__alpha": 0.0005}, "task.alpha"),
    ({"task__alpha": 0.9999}, "task.alpha"),
    ({"task__n_tasks": 841, "task__rule": "random"}, "task.n_tasks"),
    ({"task__n_random": 257, "task__rule": "mixed"}, "task.n_random"),
    ({"task__n_tasks": 254}, "task.n_tasks"),
    ({"task__n_tasks": 256, "task__rule": "mixed", "task__n_random": 1}, "task.n_tasks"),
    ({"task__n_vars": 3, "task__n_tasks": 12}, "task.n_tasks"),
    ({"data__distinct_inputs": True, "data__n_examples": 169}, "data.n_examples"),
    ({"data__distinct_inputs": True, "data__n_examples": 169, "task__alpha": 0.2}, "data.n_examples"),
    ({"data__distinct_inputs": True, **MIXTURE}, "data.distinct_inputs"),
    ({"data__contexts": "stages"}, "data.stages"),
    ({"data__contexts": "stages", "data__stages": ((5, 1, 0.0), (5, 1, 0.0))}, "data.stages"),
    ({"data__contexts": "stages", "data__stages": ((5, 1, 0.0), (4, 1, 0.0))}, "data.stages"),
    ({"data__contexts": "stages", "data__stages": ((0, 1, 0.0),)}, "data.stages"),
    ({**MIXTURE, "data__pools": ()}, "data.pools"),
    ({**MIXTURE, "data__slides": ()}, "data.slides"),
    ({"data__contexts": "stages", "data__stages": ((5, 674, 0.0),)}, "data.stages"),
    ({"data__contexts": "stages", "data__stages": ((5, -1, 0.0),)}, "data.stages"),
    ({"data__contexts": "stages", "data__stages": ((5, 1, 1.5),)}, "data.stages"),
    ({**MIXTURE, "data__pools": (1, 674)}, "data.pools"),
    ({**MIXTURE, "data__pools": (-1,)}, "data.pools"),
    ({**MIXTURE, "data__slides": (0.5, -0.1)}, "data.slides"),
    ({**MIXTURE, "data__slides": (math.nan,)}, "data.slides"),
    ({"model__n_heads": 3}, "model.n_heads"),
    ({"model__n_heads": 512}, "model.n_heads"),
    ({"model__d_model": 7, "model__n_heads": 1}, "model.d_model"),
    ({"model__dropout": 1.0}, "model.dropout"),
    ({"model__dropout": -0.1}, "model.dropout"),
    ({"model__rope_base": 1.0}, "model.rope_base"),
    ({"model__init_std": 0.0}, "model.init_std"),
    ({"model__vocab_size": 28}, "model.vocab_size"),
    ({"optim__lr": 0.0}, "optim.lr"),
    ({"optim__beta1": 1.0}, "optim.beta1"),
    ({"optim__beta1": -0.1}, "optim.beta1"),
    ({"optim__beta2": 1.0}, "optim.beta2"),
    ({"optim__momentum": 1.0}, "optim.momentum"),
    ({"optim__eps": 0.0}, "optim.eps"),
    ({"optim__weight_decay": -1.0}, "optim.weight_decay"),
    ({"optim__clip": -1.0}, "optim.clip"),
    ({"optim__warmup_factor": -0.1}, "optim.warmup_factor"),
    ({"optim__final_factor": -0.1}, "optim.final_factor"),
    ({"optim__name": "schedulefree"}, "optim.schedule"),
    ({"optim__name": "schedulefree", "optim__schedule": "linear"}, "optim.schedule"),
    *(({"train__best_metric": metric}, "train.best_metric") for metric in ("", "ood_test", "test.loss", "ood_test.n")),
    *(({"train__device": device}, "device") for device in ("", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0")),
]


@pytest.mark.parametrize(("changes", "field"), RULES, ids=lambda part: str(part)[:60])
def test_what_cannot_work_is_refused_in_one_sentence_that_names_the_field(changes: dict[str, Any], field: str) -> None:
    message = get_error(**changes)
    assert re.search(rf"\b{re.escape(field)}\b", message), message
    assert message.endswith(".")
    assert "\n" not in message
    assert not re.search(r"[.?!] [A-Z]", message), message
    assert len(message) < 300


@pytest.mark.parametrize(
    "changes",
    [
        {"task__p": 4096, "task__rule": "random"},
        {"task__p": 2, "task__n_vars": 24, "task__rule": "random"},
        {"task__p": 2, "task__n_vars": 1, "task__n_tasks": 1, "task__rule": "random", "task__alpha": 0.5},
        {"task__n_tasks": 840, "task__rule": "random"},
        {"task__n_tasks": 840},
        {"task__n_tasks": 257, "task__rule": "mixed", "task__n_random": 1},
        {"task__n_tasks": 10, "task__rule": "mixed", "task__n_random": 10},
        {"task__alpha": 0.0006},
        {"task__alpha": 0.9994},
        {"data__distinct_inputs": True, "data__n_examples": 168},
        {"data__contexts": "stages", "data__stages": ((5, 673, 0.0), (6, 0, 1.0))},
        {**MIXTURE, "data__pools": (0, 673), "data__slides": (0.0, 1.0)},
        {"model__n_heads": 256},
        {"model__d_model": 2, "model__n_heads": 1},
        {"model__dropout": 0.99},
        {"model__vocab_size": 29},
        {"optim__beta1": 0.0, "optim__beta2": 0.0, "optim__momentum": 0.0},
        {"optim__name": "schedulefree", "optim__schedule": "constant"},
        {"train__device": "cuda:3"},
        {"seeds__tasks": 2**63 - 1, "seeds__evaluation": 0},
        *({"train__best_metric": f"{name}.{measure}"} for name in SETS for measure in MEASURES),
    ],
    ids=str,
)
def test_the_last_value_that_works_is_allowed(changes: dict[str, Any]) -> None:
    make_config(**changes).check()


@pytest.mark.parametrize("path", CHOICES)
def test_a_choice_that_there_is_not_is_refused(path: str) -> None:
    # Python callers reach check() without from_dict, and a misspelt choice would fall through to some other one.
    with pytest.raises(ConfigError, match=re.escape(path)):
        replace_field(RunConfig(), path, "no such choice").check()


def read_numbers(message: str, pattern: str) -> list[int]:
    found = re.search(pattern, message)
    assert found, message
    return [int(number) for number in re.findall(r"\d+", found[1])]


@pytest.mark.parametrize(("p", "n_vars", "n_tasks"), [(29, 2, 254), (29, 2, 3), (5, 2, 23), (7, 3, 20), (3, 3, 25)])
def test_the_numbers_of_tasks_that_the_message_names_work(p: int, n_vars: int, n_tasks: int) -> None:
    changes = {"task__p": p, "task__n_vars": n_vars, "task__alpha": 0.5}
    message = get_error(task__n_tasks=n_tasks, **changes)
    named = read_numbers(message, r"take ([\d or]+)")
    assert named
    for number in named:
        make_config(task__n_tasks=number, **changes).check()


def test_where_no_rectangle_fits_the_message_says_so() -> None:
    assert "take task.rule=random" in get_error(task__p=2, task__n_vars=2, task__n_tasks=3, task__alpha=0.5)


def test_the_numbers_of_tasks_that_the_message_names_work_with_the_mixed_rule() -> None:
    message = get_error(task__n_tasks=12, task__rule="mixed", task__n_random=3)
    named = read_numbers(message, r"take ([\d or]+)")
    assert named
    for number in named:
        make_config(task__n_tasks=number, task__rule="mixed", task__n_random=3).check()


@pytest.mark.parametrize("p", [3, 5, 7, 11, 29])
@pytest.mark.parametrize("alpha", [1e-4, 1 - 1e-4])
def test_the_range_of_alpha_that_the_message_names_works(p: int, alpha: float) -> None:
    changes = {"task__p": p, "task__n_tasks": 1, "task__rule": "random"}
    message = get_error(task__alpha=alpha, **changes)
    found = re.search(r"take alpha from (\S+) to (\S+?)\.$", message)
    assert found, message
    for end in found.groups():
        make_config(task__alpha=float(end), **changes).check()


@pytest.mark.parametrize(("d_model", "n_heads"), [(512, 3), (512, 300), (30, 4), (6, 2), (2, 7)])
def test_the_numbers_of_heads_that_the_message_names_work(d_model: int, n_heads: int) -> None:
    message = get_error(model__d_model=d_model, model__n_heads=n_heads)
    named = read_numbers(message, r"take ([\d or]+) heads")
    assert named
    for number in named:
        make_config(model__d_model=d_model, model__n_heads=number).check()


def test_the_most_examples_that_the_message_names_work() -> None:
    message = get_error(data__distinct_inputs=True, data__n_examples=500)
    (most,) = read_numbers(message, r"take at most (\d+)")
    make_config(data__distinct_inputs=True, data__n_examples=most).check()
    get_error(data__distinct_inputs=True, data__n_examples=most + 1)


def test_the_most_tasks_that_the_message_names_work() -> None:
    message = get_error(task__n_tasks=10**6, task__rule="random")
    (most,) = read_numbers(message, r"take at most (\d+)")
    make_config(task__n_tasks=most, task__rule="random").check()
    get_error(task__n_tasks=most + 1, task__rule="random")


# --- notes

NOTES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"task__n_random": 8}, ("task.n_random=8", "task.rule=rectangle")),
    ({"task__n_random": 8, "task__rule": "random"}, ("task.n_random=8", "task.rule=random")),
    ({"data__stages": ((9, 1, 0.5),)}, ("data.stages=", "data.contexts=uniform")),
    ({"data__pools": (1,)}, ("data.pools=", "data.contexts=uniform")),
    ({"data__slides": (0.5,)}, ("data.slides=", "data.contexts=uniform")),
    ({**MIXTURE, "data__stages": ((9, 1, 0.5),)}, ("data.stages=", "data.contexts=mixture")),
    (
        {"data__contexts": "stages", "data__stages": ((9, 1, 0.5),), "data__pools": (1,)},
        ("data.pools=", "data.contexts=stages"),
    ),
    (
        {"data__contexts": "stages", "data__stages": ((9, 1, 0.5),), "data__slides": (0.1,)},
        ("data.slides=", "data.contexts=stages"),
    ),
    ({"optim__name": "sgd", "optim__beta1": 0.5}, ("optim.beta1=0.5", "optim.name=sgd")),
    ({"optim__name": "sgd", "optim__beta2": 0.5}, ("optim.beta2=0.5", "optim.name=sgd")),
    ({"optim__name": "sgd", "optim__eps": 0.5}, ("optim.eps=0.5", "optim.name=sgd")),
    ({"optim__momentum": 0.5}, ("optim.momentum=0.5", "optim.name=adamw")),
    (
        {"optim__name": "schedulefree", "optim__schedule": "constant", "optim__momentum": 0.5},
        ("optim.momentum=0.5", "optim.name=schedulefree"),
    ),
    (
        {"optim__schedule": "constant", "optim__final_factor": 0.5},
        ("optim.final_factor=0.5", "optim.schedule=constant"),
    ),
    ({"optim__warmup_steps": 0, "optim__warmup_factor": 0.5}, ("optim.warmup_factor=0.5", "optim.warmup_steps=0")),
    ({"train__steps": 10_000}, ("never reaches optim.lr", "optim.warmup_steps=10000", "train.steps=10000")),
    (
        {"data__contexts": "stages", "data__stages": ((9, 1, 0.5), (200_000, 1, 0.5))},
        ("data.stages", "200000", "curriculum"),
    ),
    ({"task__p": 30}, ("task.p=30 is not prime",)),
    ({"model__vocab_size": 29}, ("model.vocab_size=29",)),
]


@pytest.mark.parametrize(("changes", "parts"), NOTES, ids=lambda part: str(part)[:60])
def test_a_setting_without_effect_is_noted_once(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    config = make_config(**changes)
    config.check()
    (note,) = config.notes()
    assert all(part in note for part in parts), note
    assert note.endswith(".")


@pytest.mark.parametrize(
    "changes",
    [
        {"task__rule": "mixed", "task__n_random": 8},
        {"data__contexts": "stages", "data__stages": ((199_999, 1, 0.5),)},
        MIXTURE,
        {"optim__name": "sgd", "optim__momentum": 0.5},
        {"optim__name": "muon", "optim__momentum": 0.5, "optim__beta1": 0.5, "optim__beta2": 0.5, "optim__eps": 0.1},
        {"optim__beta1": 0.5, "optim__beta2": 0.5, "optim__eps": 0.1},
        {"optim__schedule": "linear", "optim__final_factor": 0.5},
        {"optim__schedule": "constant"},
        {"optim__warmup_steps": 0},
        {"train__steps": 10_001},
        {"task__p": 31},
        {"model__vocab_size": 30},
    ],
    ids=str,
)
def test_a_setting_with_effect_is_not_noted(changes: dict[str, Any]) -> None:
    config = make_config(**changes)
    config.check()
    assert config.notes() == []
