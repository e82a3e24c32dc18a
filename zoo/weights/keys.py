"""Key rules that map published parameter names to ours.

In a pattern `{s}` matches an integer and a final `*` the rest of the key; in the target `{s}`, `{s+1}`, `{2*b+a}`,
`{i//3}` or `{i%3}` computes one. The first pattern that matches a key wins; the target null drops the key.

A target with `#0`, `#1`, ... in it is a part of one tensor: parts are joined along the first axis in that order.
A list of targets splits the tensor: each takes one slice along the first axis.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zoo.config.model import KeySet
from zoo.errors import ConfigError

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FIELD = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Renaming:
    """The result of applying rules to keys: old to new names, dropped keys, and keys without a rule."""

    names: dict[str, tuple[str, ...]]
    dropped: tuple[str, ...]
    unknown: tuple[str, ...]


def rename(keys: Iterable[str], rules: KeySet) -> Renaming:
    """Apply the key rules of one published form.

    Raises:
        ConfigError: if a rule cannot be read.
    """
    compiled = [(_compile(pattern), target) for pattern, target in rules.keys.items()]
    names, dropped, unknown = {}, [], []
    for key in keys:
        found = next(((match, target) for pattern, target in compiled if (match := pattern.fullmatch(key))), None)
        if found is None:
            unknown.append(key)
        elif found[1] is None:
            dropped.append(key)
        else:
            targets = (found[1],) if isinstance(found[1], str) else found[1]
            names[key] = tuple(_fill(target, found[0].groupdict()) for target in targets)
    return Renaming(names, tuple(dropped), tuple(unknown))


def _compile(pattern: str) -> re.Pattern[str]:
    parts, end = [], 0
    for field in _FIELD.finditer(pattern):
        if not field[1].isidentifier():
            raise ConfigError(f"key rule {pattern!r}: {{{field[1]}}} must be a name, such as {{s}}")
        parts += [re.escape(pattern[end : field.start()]), f"(?P<{field[1]}>[0-9]+)"]
        end = field.end()
    rest = pattern[end:]
    if rest.endswith("*"):
        parts += [re.escape(rest[:-1]), "(?P<rest_>.*)"]
    else:
        parts.append(re.escape(rest))
    try:
        return re.compile("".join(parts), re.DOTALL)
    except re.error as error:
        raise ConfigError(f"key rule {pattern!r} cannot be read: {error}") from error


def _fill(target: str, found: Mapping[str, str]) -> str:
    numbers = {name: int(value) for name, value in found.items() if name != "rest_"}
    text = _FIELD.sub(lambda field: str(_compute(field[1], numbers, target)), target)
    return text[:-1] + found["rest_"] if "rest_" in found and text.endswith("*") else text


def _compute(expression: str, numbers: Mapping[str, int], target: str) -> int:
    """The value of sums, products and integer quotients of integers and matched names."""

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = value(node.left), value(node.right)
            if right == 0 and isinstance(node.op, ast.FloorDiv | ast.Mod):
                raise ConfigError(f"key rule target {target!r}: {{{expression}}} divides by zero")
            return _OPERATORS[type(node.op)](left, right)
        if isinstance(node, ast.Name) and node.id in numbers:
            return numbers[node.id]
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        raise ConfigError(f"key rule target {target!r}: {{{expression}}} is not a sum or product of {sorted(numbers)}")

    try:
        return value(ast.parse(expression, mode="eval").body)
    except SyntaxError as error:
        raise ConfigError(f"key rule target {target!r}: {{{expression}}} cannot be read") from error
