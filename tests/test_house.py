"""The plan of the house: who may import whom, how long a file may be, and nothing that no variant uses."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import zoo.nn.backbone
from zoo.config.catalog import CONFIG_DIR, load_config, shipped
from zoo.config.model import NORMS
from zoo.nn.init import SCHEMES
from zoo.nn.layers.activations import ACTIVATIONS
from zoo.nn.registry import BRANCHES, EMBEDS, SHORTCUTS
from zoo.weights.transforms import TRANSFORMS

ROOT = Path(zoo.__file__).parents[1]
FILES = sorted([*ROOT.glob("zoo/**/*.py"), *ROOT.glob("kernels/**/*.py")])
NATIVE = sorted([*ROOT.glob("kernels/**/*.cpp"), *ROOT.glob("kernels/**/*.h")])
LONGEST = 300
DOORS = {f"zoo.{name}": home for name, home in zoo._HOMES.items()}
LONG_FOR_A_REASON: dict[str, str] = {}

# The floors of the house, from the ground up: a room may import those that it names, and itself.
LIGHT = {"errors", "files", "text", "stop", "version", "config"}
"""What needs neither torch nor a model."""
PARTS = {"nn.registry", "nn.parts", "nn.layers", "kernels", *LIGHT}
ROOMS = {
    "kernels": set(),
    "errors": set(),
    "files": set(),
    "text": set(),
    "stop": set(),
    "version": set(),
    "config": {"errors", "configs"},
    "nn.registry": LIGHT,
    "nn.parts": set(),
    "nn.dilate": {"nn.registry", *LIGHT},
    "nn.layers": {"kernels", *LIGHT},
    "nn.mixers": PARTS,
    "nn.ffns": PARTS,
    "nn.embeds": PARTS,
    "nn.head": PARTS,
    "nn.init": set(),
    "nn.masked": set(),
    "nn.block": PARTS,
    "nn.backbone": {
        "nn.block",
        "nn.dilate",
        "nn.head",
        "nn.init",
        "nn.masked",
        "nn.mixers",
        "nn.ffns",
        "nn.embeds",
        *PARTS,
    },
    "weights": LIGHT,
    "models": {"nn.backbone", "nn.parts", "nn.embeds", "nn.init", "nn.layers", "weights", "kernels", *LIGHT},
    "timm_models": {"models", "weights", *LIGHT},
    "vision": {"models", *LIGHT},
    "export": {"models", "nn.backbone", "kernels", *LIGHT},
    "explain": {"vision", "models", "nn.backbone", "nn.block", "nn.registry", "kernels", *LIGHT},
    "training": {"vision", "models", "nn.backbone", "nn.block", "weights", *LIGHT},
    "cli": {"training", "explain", "export", "vision", "models", "weights", *LIGHT},
}


def room(name: str) -> str:
    """The room of a dotted name; the building blocks of a backbone are rooms of their own."""
    parts = name.split(".")
    return ".".join(parts[1:3]) if parts[1:2] == ["nn"] and len(parts) > 2 else "".join(parts[1:2])


def module(path: Path) -> str:
    """The dotted name of a file."""
    relative = path.relative_to(ROOT).with_suffix("")
    parts = ["zoo", *relative.parts] if relative.parts[0] == "kernels" else list(relative.parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module(path) for path in FILES}


def imports(path: Path) -> set[str]:
    """Dotted names of the project that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports from the root"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside if inside <= {*MODULES, *DOORS} else {node.module}
    return {DOORS.get(name, name) for name in found if name.startswith("zoo.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    own = room(module(path))
    if own in ("", "__main__", "nn"):
        return
    for name in imports(path):
        target = room(name)
        assert target == own or target in ROOMS[own], f"{own} may not import {target}"


def test_every_room_is_in_the_plan() -> None:
    assert {room(module(path)) for path in FILES} == {*ROOMS, "", "__main__", "nn"}


def test_no_file_imports_itself_by_others() -> None:
    after = {module(path): imports(path) & MODULES - {module(path)} for path in FILES if module(path) != "zoo"}
    while free := {name for name, needs in after.items() if not needs & after.keys()}:
        after = {name: needs for name, needs in after.items() if name not in free}
    assert not after, f"a circle of imports among {sorted(after)}"


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("**/*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_know_torch_alone(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            allowed = {"torch", "triton", "zoo", *sys.stdlib_module_names}
            allowed |= {"torchvision"} if path.name == "vision_op.py" else set()
            assert name.split(".")[0] in allowed
            assert name.split(".")[0] != "zoo" or name.startswith("zoo.kernels")


@pytest.mark.parametrize("path", sorted((ROOT / "zoo" / "nn" / "mixers").glob("*.py")), ids=lambda p: p.name)
def test_a_mixer_never_imports_another(path: Path) -> None:
    others = {name for name in imports(path) if name.startswith("zoo.nn.mixers")}
    assert path.name == "__init__.py" or not others


@pytest.mark.parametrize("path", [*FILES, *NATIVE], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST or LONG_FOR_A_REASON.get(name), f"{name} has {lines} lines"


def test_each_kernel_folder_is_complete() -> None:
    for folder in sorted(p for p in (ROOT / "kernels").iterdir() if p.is_dir() and p.name != "__pycache__"):
        assert {"__init__.py", "api.py", "reference.py", "cases.py", "README.md"} <= {
            p.name for p in folder.iterdir()
        }, folder.name
        assert (ROOT / "tests" / "kernels" / f"test_{folder.name}.py").exists()


def test_there_is_one_partition() -> None:
    definitions = [
        p.name for p in FILES for line in p.read_text().splitlines() if re.match(r"\s*def \w*partition\b", line)
    ]
    assert definitions == ["partition.py", "partition.py"]  # partition and its inverse


def _used(kind: str) -> set[str]:
    found = set()
    for name in shipped():
        config = load_config(name)
        for stage in config.stages:
            found |= {stage.embed.type} if kind == "embed" and stage.embed else set()
            for branch in (branch for block in stage.blocks for branch in block):
                found |= {branch.part.type} if kind == "branch" else set()
                found |= {branch.shortcut.type} if kind == "shortcut" and branch.shortcut else set()
    return found


def test_every_registered_part_is_used_by_a_variant() -> None:
    assert set(BRANCHES) == _used("branch")
    assert set(EMBEDS) == _used("embed")
    assert set(SHORTCUTS) == _used("shortcut")
    configs = "".join(path.read_text() for path in CONFIG_DIR.glob("*.yaml"))
    for names in (NORMS, SCHEMES, ACTIVATIONS, TRANSFORMS):
        for name in names:
            assert re.search(rf"\b{name}\b", configs) or name == "gelu", name


def test_every_option_of_a_part_is_used_or_is_its_default() -> None:
    """A key that no shipped configuration sets is a flag that no variant uses."""
    import inspect

    configs = "".join(path.read_text() for path in CONFIG_DIR.glob("*.yaml"))
    unused = set()
    for registry in (BRANCHES, EMBEDS, SHORTCUTS):
        for cls in registry.values():
            for parameter in inspect.signature(cls).parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY and not re.search(rf"\b{parameter.name}:", configs):
                    unused.add(f"{cls.__name__}.{parameter.name}")
    assert not unused


def test_public_functions_have_docstrings() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for node in (node for owner in (tree, *classes) for node in owner.body):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                told_by_the_class = node.name in ("forward", "extra_repr", "from_yaml", "construct_mapping", "offsets")
                overload = any(getattr(decorator, "id", "") == "overload" for decorator in node.decorator_list)
                assert told_by_the_class or overload or ast.get_docstring(node), f"{path.name}: {node.name}"
