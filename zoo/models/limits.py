"""The size limit of models, checked before memory is allocated."""

from __future__ import annotations

from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from zoo.config.model import ModelConfig
from zoo.errors import ConfigError
from zoo.nn.backbone import Backbone

MOST_NUMBERS = 1e9
"""Total number of parameters and buffers; twice that of the largest shipped variant."""
MOST_BLOCKS = 512


def on_meta(config: ModelConfig, **settings: Any) -> Backbone:
    """A model on the meta device: names and shapes without memory.

    Raises:
        ConfigError: if it is too large, before all of it is built.
    """
    blocks = sum(len(stage.blocks) for stage in config.stages)
    if blocks > MOST_BLOCKS:
        raise ConfigError(f"{config.where}: {blocks} blocks in all stages, expected at most {MOST_BLOCKS}")
    numbers, thread = 0, get_ident()

    def count(module: nn.Module, name: str, value: torch.Tensor | None) -> None:
        nonlocal numbers
        if value is None or get_ident() != thread:  # the hooks apply to all threads
            return
        numbers += value.numel()
        if numbers > MOST_NUMBERS:
            raise ConfigError(
                f"{config.where}: {numbers:.2g} parameters or more, expected at most {MOST_NUMBERS:.2g}: "
                "smaller widths, ratios, kernels or windows, or fewer blocks"
            )

    handles = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        with torch.device("meta"):
            return Backbone(config, **settings)
    finally:
        for handle in handles:
            handle.remove()
