"""zoo: hierarchical vision backbones from YAML, over one block library.

The names below load on first use, so that `import zoo` is quick and stays free of torch and timm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zoo.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from zoo.edit import freeze, fuse, resize_positions
    from zoo.models import convert_checkpoint, create_model, list_models, load_checkpoint, model_info
    from zoo.param_groups import parameter_groups

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "convert_checkpoint",
    "create_model",
    "freeze",
    "fuse",
    "list_models",
    "load_checkpoint",
    "model_info",
    "parameter_groups",
    "resize_positions",
]
_ROOMS = dict.fromkeys(__all__, "zoo.models") | {
    "freeze": "zoo.edit",
    "fuse": "zoo.edit",
    "parameter_groups": "zoo.param_groups",
    "resize_positions": "zoo.edit",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)
