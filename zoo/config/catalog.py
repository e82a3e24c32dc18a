"""Finds configuration files, reads them and resolves a name to a `ModelConfig`."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from zoo.config.model import ModelConfig
from zoo.config.overrides import check_tree, override
from zoo.config.parse import parse_model
from zoo.config.schema import Count, check, check_mapping
from zoo.errors import ConfigError, Where

CONFIG_DIR = Path(str(files("zoo.configs")))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C loader if PyYAML has it
    """YAML 1.1 with four changes: a repeated key is an error, `1e-5` is a number, all numbers are decimal (`010` is not
    8, `1:30` not 90), and only `true` and `false` are truths, so that `no` is a text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_FLOAT, _INT, _BOOL = (f"tag:yaml.org,2002:{kind}" for kind in ("float", "int", "bool"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (_FLOAT, _INT, _BOOL)]
    for first, known in _Loader.yaml_implicit_resolvers.items()
}
_FLOATS = r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
_Loader.add_implicit_resolver(_FLOAT, re.compile(_FLOATS), list("-+0123456789."))
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9]\d*)$"), list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """Parse YAML text; 1e-3 is a number and repeated keys are errors.

    Raises:
        ConfigError: if it is none.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:  # of all these kinds
        raise ConfigError(f"not valid YAML: {error}") from error


def read_text(path: Path) -> str:
    """The text of a file; a pipe, which may never end, is none.

    Raises:
        OSError, UnicodeDecodeError: if it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return path.read_text(encoding="utf-8")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: if the file is missing, unreadable, not YAML or not a mapping.
    """
    where = Where(str(path))
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    try:
        tree = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    check_tree(tree, where)
    return check_mapping(tree, where)


_read_shipped = cache(read_yaml)


@cache
def shipped() -> dict[str, Path]:
    """Every shipped variant and the file that defines it, sorted by name."""
    return dict(sorted((name, path) for path in CONFIG_DIR.glob("*.yaml") for name in _variants(path)))


@cache
def file_of(name: str) -> Path | None:
    """The file that defines a shipped variant, found without reading those of other families; None if none does."""
    paths = sorted(CONFIG_DIR.glob("*.yaml"), key=lambda path: not name.startswith(path.stem))
    return next((path for path in paths if name in _variants(path)), None)


def _variants(path: Path) -> dict[str, Any]:
    return check_mapping(_read_shipped(path).get("variants"), Where(str(path), ("variants",)))


def family_of(name: str) -> str:
    """The family of a shipped variant."""
    return str(_read_shipped(_locate(name)[0]).get("family"))


def load_config(name: str, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
    """The configuration of a shipped variant, of `my.yaml`, or of `my.yaml:variant`.

    Args:
        name: a shipped variant, or a file that ends in `.yaml` or `.yml`, with `:variant` when it has several.
        overrides: configuration keys, dotted for one value inside a mapping (`"block.mlp.ratio": 3`), the names of
            the family's `options`, and `output_stride` (see `zoo.nn.dilate`).

    Raises:
        ConfigError: if there is no such variant or the configuration is not valid.
    """
    name = check(name, str, Where("model name"))
    return _load(name, overrides) if overrides or file_of(name) is None else _load_shipped(name)


def _load(name: str, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
    path, variant = _locate(name)
    tree, where = _resolve(path, variant)
    place, overrides = Where(f"overrides of {name}"), dict(overrides or {})
    changes = check_mapping({key: value for key, value in overrides.items() if key != "output_stride"}, place)
    if changes:
        options = check_mapping(tree.get("options", {}), where / "options")
        tree = override(tree, {f"options.{k}" if k in options else k: v for k, v in changes.items()}, place)
    stride = check(overrides.get("output_stride"), Count | None, place / "output_stride")
    config = parse_model(variant or path.stem, tree, where)
    return replace(config, source=name, overrides=overrides, output_stride=stride)


_load_shipped = cache(_load)


def tree_of(name: str) -> dict[str, Any]:
    """The complete configuration of a model as one mapping without `extends`; `name` as for `load_config`."""
    return _resolve(*_locate(name))[0]


_FILE = re.compile(r"(.+\.ya?ml)(?::(.*))?", flags=re.DOTALL)


def is_file(name: str) -> bool:
    """Whether a model name refers to a configuration file, with or without a variant."""
    return _FILE.fullmatch(name) is not None


def _locate(name: str) -> tuple[Path, str | None]:
    if match := _FILE.fullmatch(name):
        return Path(match[1]), match[2]
    if path := file_of(name):
        return path, name
    if file_of(own := name.removeprefix("zoo_")):
        raise ConfigError(f"{name!r} is timm's name of a model of the zoo, which itself calls it {own!r}")
    raise Where("model name").unknown(name, shipped(), "model")


def _resolve(path: Path, variant: str | None) -> tuple[dict[str, Any], Where]:
    """The tree of a variant: the base of its file, overridden by each variant that it extends in turn.

    A file may itself extend a shipped variant.
    """
    where = Where(str(path))
    tree = dict(_read_shipped(path) if path.parent == CONFIG_DIR else read_yaml(path))
    if (base := check(tree.pop("extends", None), str | None, where / "extends")) is not None:
        if (extended := file_of(base)) is None:
            raise (where / "extends").unknown(base, shipped(), "model")
        tree = override(_resolve(extended, base)[0], tree, where)
    variants = check_mapping(tree.pop("variants", {}), where / "variants")
    if variant is None:
        if len(variants) > 1:
            raise ConfigError(
                f"{path}: holds {len(variants)} variants; name one of them: {path}:{next(iter(variants))}"
            )
        if not variants:
            return tree, where
        variant = next(iter(variants))
    for name in _lineage(variant, variants, where / "variants"):
        place = where / "variants" / name
        changes = {k: v for k, v in check_mapping(variants[name] or {}, place).items() if k != "extends"}
        tree = override(tree, changes, place)
    return tree, where / "variants" / variant


def _lineage(variant: str, variants: Mapping[str, Any], where: Where) -> list[str]:
    """The chain of variants from the one that extends nothing to `variant` itself."""
    chain: list[str] = []
    name: Any = variant
    while name is not None:
        if name not in variants:
            raise where.unknown(name, variants, "variant")
        if name in chain:
            raise ConfigError(f"{where / variant}: extends itself through {' -> '.join([*chain, name])}")
        chain.append(name)
        parent = check_mapping(variants[name] or {}, where / name).get("extends")
        name = check(parent, str | None, where / name / "extends")
    return chain[::-1]
