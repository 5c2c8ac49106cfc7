"""Every setting of a run with its type, and configs with some of them changed."""

import typing
from typing import Any, Literal

from modicl.config import RunConfig, replace_field


def list_fields() -> dict[str, Any]:
    """The type of every setting, by its dotted path."""
    found = {}
    for section, kind in typing.get_type_hints(RunConfig).items():
        for name, hint in typing.get_type_hints(kind).items():
            found[f"{section}.{name}"] = hint
    return found


FIELDS = list_fields()
CHOICES = {path: typing.get_args(hint) for path, hint in FIELDS.items() if typing.get_origin(hint) is Literal}


def make_config(**changes: Any) -> RunConfig:
    """The defaults with changes; a__b stands for a.b."""
    config = RunConfig()
    for key, value in changes.items():
        config = replace_field(config, key.replace("__", "."), value)
    return config
