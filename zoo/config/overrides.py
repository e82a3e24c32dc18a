"""The override rules: changes applied to a tree of plain values, before anything is checked.

* `branch.key: v` sets one value inside a mapping, `branch: {...}` replaces the mapping;
* `{cycle: [...]}` anywhere in a branch selects an item by block index;
* `${img_size}`, or the name of one of the model's `options`, expands to its value, `${img_size/32}` to the quotient.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from zoo.errors import ConfigError, Where

_MAX_NESTING = 20
_MAX_VALUES = 100_000


def override(tree: Mapping[str, Any], changes: Mapping[str, Any], where: Where) -> dict[str, Any]:
    """`tree` with `changes` applied: a dotted key sets one value deep inside, a plain key replaces the whole.

    A dotted path crosses lists by index (`stages.2.depth`) and reaches every item of a `{cycle: [...]}`.
    """
    result = dict(tree)
    for path, value in changes.items():
        if path.count(".") > _MAX_NESTING:
            raise where.error(path, f"a key of at most {_MAX_NESTING} dots")
        head, _, rest = path.partition(".")
        set_inside = _set_in_stage if head == "stages" else _set_path
        result[head] = set_inside(result.get(head, {}), rest, value, where / head) if rest else value
    return result


def _set_in_stage(stages: Any, path: str, value: Any, where: Where) -> Any:
    """A stage is itself a set of changes to the block, so the rest of the path after its index is one literal key."""
    index, _, key = path.partition(".")
    if not key or not isinstance(stages, list) or not index.isdecimal() or int(index) >= len(stages):
        return _set_path(stages, path, value, where)
    if not isinstance(stages[int(index)], Mapping):
        raise (where / index).error(stages[int(index)], "a mapping of keys to values")
    return [{**stage, key: value} if i == int(index) else stage for i, stage in enumerate(stages)]


def _set_path(node: Any, path: str, value: Any, where: Where) -> Any:
    if not path:
        return value
    head, _, rest = path.partition(".")
    if isinstance(node, list):
        if not (head.isdecimal() and int(head) < len(node)):
            raise where.error(head, f"an index from 0 to {len(node) - 1}")
        return [_set_path(v, rest, value, where / i) if i == int(head) else v for i, v in enumerate(node)]
    if not isinstance(node, Mapping):
        raise where.error(node, f"a mapping in which {path!r} can be set")
    if set(node) == {"cycle"} and isinstance(node["cycle"], list):
        return {"cycle": [_set_path(item, path, value, where) for item in node["cycle"]]}
    return {**node, head: _set_path(node.get(head, {}), rest, value, where / head)}


def take_cycles(node: Any, index: int, where: Where) -> Any:
    """`node` with every `{cycle: [...]}` replaced by its item for the block `index`."""
    if isinstance(node, Mapping):
        if "cycle" in node:
            items = node["cycle"]
            if set(node) != {"cycle"} or not isinstance(items, list) or not items:
                raise where.error(node, "{cycle: [...]} with at least one item and no other key")
            return take_cycles(items[index % len(items)], index, where)
        return {key: take_cycles(value, index, where / str(key)) for key, value in node.items()}
    if isinstance(node, list):
        return [take_cycles(value, index, where / i) for i, value in enumerate(node)]
    return node


_REFERENCE = re.compile(r"\$\{(\w+)(?:/([1-9]\d{0,4}))?\}")


def compute_values(node: Any, values: Mapping[str, Any], where: Where) -> Any:
    """`node` with every text `${name}` or `${name/N}` replaced by the value of that name, or its integer quotient."""
    if isinstance(node, Mapping):
        return {key: compute_values(value, values, where / str(key)) for key, value in node.items()}
    if isinstance(node, list):
        return [compute_values(value, values, where / i) for i, value in enumerate(node)]
    if not isinstance(node, str) or not node.startswith("${"):
        return node
    match = _REFERENCE.fullmatch(node)
    if match is None:
        raise where.error(node, "${name} or ${name/N}, N a whole number from 1 to 99999")
    if match[1] not in values:
        raise where.unknown(match[1], values, "option")
    value = values[match[1]]
    return value if match[2] is None else _divide(value, int(match[2]), where / match[1])


def _divide(value: Any, divisor: int, where: Where) -> tuple[int, ...]:
    sides = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if not all(isinstance(side, int) and side >= divisor for side in sides):
        raise where.error(value, f"at least {divisor} pixels")
    return tuple(side // divisor for side in sides)


def check_tree(tree: Any, where: Where) -> None:
    """Refuse YAML that contains itself, or expands without end through aliases, before anything recurses into it."""
    stack, seen = [(tree, 0)], 0
    while stack:
        node, depth = stack.pop()
        seen += 1
        if depth > _MAX_NESTING or seen > _MAX_VALUES:
            raise ConfigError(
                f"{where}: more than {_MAX_NESTING} levels or {_MAX_VALUES} values, or it contains itself"
            )
        children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
        stack.extend((child, depth + 1) for child in children)
