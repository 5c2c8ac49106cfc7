"""A small model whose every part matters, for tests that look inside."""

from typing import Any

from modicl import presets
from modicl.checks import check_config
from modicl.config import RunConfig, replace_field


def make_config(**changes: Any) -> RunConfig:
    """p = 5 and a model of width 16 whose weights are large enough to differ everywhere (a__b stands for a.b)."""
    config = presets.tiny()
    small = {"model.d_model": 16, "model.init_std": 0.3, "task.alpha": 0.6}
    for path, value in {**small, **{key.replace("__", "."): value for key, value in changes.items()}}.items():
        config = replace_field(config, path, value)
    check_config(config)
    return config
