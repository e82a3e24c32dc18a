"""zoo: hierarchical vision backbones defined in YAML, built from one block library.

The names and the packages below load on first use, so that `import zoo` is quick and stays free of torch and timm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zoo.errors import CheckpointError, ConfigError
from zoo.version import __version__

if TYPE_CHECKING:
    from zoo import config, explain, export, kernels, models, nn, timm_models, training, vision, weights
    from zoo.models.create import create_model
    from zoo.models.edit import freeze, fuse, resize_positions
    from zoo.models.info import list_models, model_info
    from zoo.models.load import convert_checkpoint, load_checkpoint
    from zoo.models.optimize import optimize
    from zoo.models.param_groups import parameter_groups

__all__ = [
    "CheckpointError",
    "ConfigError",
    "__version__",
    "config",
    "convert_checkpoint",
    "create_model",
    "explain",
    "export",
    "freeze",
    "fuse",
    "kernels",
    "list_models",
    "load_checkpoint",
    "model_info",
    "models",
    "nn",
    "optimize",
    "parameter_groups",
    "resize_positions",
    "timm_models",
    "training",
    "vision",
    "weights",
]
_HOMES = {
    "convert_checkpoint": "zoo.models.load",
    "create_model": "zoo.models.create",
    "freeze": "zoo.models.edit",
    "fuse": "zoo.models.edit",
    "list_models": "zoo.models.info",
    "load_checkpoint": "zoo.models.load",
    "model_info": "zoo.models.info",
    "optimize": "zoo.models.optimize",
    "parameter_groups": "zoo.models.param_groups",
    "resize_positions": "zoo.models.edit",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    return importlib.import_module(f"zoo.{name}")


def __dir__() -> list[str]:
    return __all__
