"""Packages that only training needs."""

from __future__ import annotations

import importlib
from types import ModuleType

from zoo.errors import ConfigError


def needs(module: str, package: str) -> ModuleType:
    """The module.

    Raises:
        ConfigError: if it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{package} is needed for this and is not installed ({error}). Everything that training needs comes with "
            '`pip install "vision-zoo[train]"`, or `pip install -e ".[train]"` in a clone.'
        ) from error
