"""Maps names to classes and builds parts from their configuration."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from torch import nn

from zoo.config.model import Part
from zoo.config.schema import check_fields
from zoo.errors import ConfigError, Where, shorten

Maker = Callable[..., nn.Module]
Made = TypeVar("Made", bound=Maker)


class Registry(dict[str, Maker]):
    """Classes of one kind by their names in configurations."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[Made], Made]:
        """A class decorator that adds the class under `name`."""

        def add(cls: Made) -> Made:
            self[name] = cls
            return cls

        return add

    def find(self, name: str, where: Where) -> Maker:
        """The class registered as `name`; the error lists similar names."""
        if name not in self:
            raise where.unknown(name, self, self.kind)
        return self[name]

    def build(self, part: Part, **context: Any) -> nn.Module:
        """An instance of the part.

        The keyword-only arguments of the class are its configuration keys, their annotations the allowed
        values; `context` fills the positional ones (`dim`, `dim_in`) that the class requires.

        Raises:
            ConfigError: for unknown, missing or wrong keys, or when the parts do not fit together.
        """
        cls = self.find(part.type, part.where / "type")
        widths, keys, required = _arguments(cls)
        params = check_fields(part.params, keys, required, part.where)
        if "dim_in" not in widths and context["dim_in"] != context["dim"]:
            raise ConfigError(
                f"{part.where}: {part.type!r} cannot change the width from {context['dim_in']} to {context['dim']}; "
                "give the stage an embed, or begin its block with a branch that can"
            )
        try:
            return cls(**{name: context[name] for name in widths}, **params)
        except ConfigError:
            raise
        except (ValueError, TypeError, RuntimeError, MemoryError, OverflowError, ZeroDivisionError) as error:
            raise ConfigError(f"{part.where}: {part.type!r} cannot be built: {shorten(str(error), 300)}") from error


@cache
def _arguments(cls: Maker) -> tuple[list[str], dict[str, Any], set[str]]:
    """The positional arguments of a part, its configuration keys with their annotations, and those that it needs."""
    arguments = inspect.signature(cls).parameters.values()
    init = cls.__init__  # type: ignore[misc]  # a class, or a function of positional arguments alone
    hints = typing.get_type_hints(init, include_extras=True)
    keys = {a.name: hints[a.name] for a in arguments if a.kind is a.KEYWORD_ONLY}
    required = {a.name for a in arguments if a.kind is a.KEYWORD_ONLY and a.default is a.empty}
    return [a.name for a in arguments if a.kind is not a.KEYWORD_ONLY], keys, required


EMBEDS = Registry("embed")
BRANCHES = Registry("branch type")
SHORTCUTS = Registry("shortcut")
CONTEXTS = Registry("context")
"""Of what a stage knows of all stages before: `forward(x, outputs)` makes named tensors, the names of which are in
`names`, of its own map (B, H, W, dim) and of a map and a context for each stage before."""
