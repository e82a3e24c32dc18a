"""What `fuzz_inputs.py` draws: each function makes something at random, passes it in, and looks at what came of it."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import math
import typing
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import zoo
from zoo.cli.main import app
from zoo.training.engine import train
from zoo.training.recipe import Recipe, load_recipe, parse_setting
from zoo.weights.verified import write_verified

NUMBERS: list[Any] = [0, 1, 2, 3, 8, 16, 0.1, 0.5, 1.0, 2.5, 1e-12, 1e6, True, [1, 1], [0.5, 2], [1, 0.1], "auto", None]
DEEP: Any = 1
for _ in range(100):
    DEEP = [DEEP]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, -1, 224, 2**31, 2**63, 10**400),
    *(0.5, 1.0, 1.5, -0.5, 1e-300, 1e308, math.inf, -math.inf, math.nan),
    *("", "a", "1", "0.5", "true", "null", "none", "../x", "/", "x.yaml", "\x1b[31m", "caf\xe9", "\u202e", "x" * 5000),
    *([], [1], [1, 2], [1, 2, 3], [0.5, 0.5, 0.5], [math.nan, 0, 0], ["a"], [None], [[]], [True, False, True], DEEP),
    *({}, {"a": 1}, {"a": {"b": [1]}}, {"": ""}),
]
ONLY_YAML: list[Any] = [datetime.date(2020, 1, 1), b"bytes", {1: 2}, {None: None}, {True: 1}]
TEXTS = [
    *("1", "1e-3", "1E5", "1_000", "0x10", "010", "1:30", "1:30.5", "0b1", "+1", "-1", ".5", "1.", "1e400", "-0"),
    *("on", "yes", "true", "True", "no", "~", "null", "", " ", ".inf", ".nan", "nan", "inf", "2020-01-01"),
    *(
        "[1, 2]",
        "[1, 2",
        "{a: b}",
        "{a: b, a: c}",
        "- a",
        "a: b",
        "'",
        '"',
        "#",
        "&a [*a]",
        "*a",
        "!!python/name:os",
        "|",
    ),
    *(
        "!!binary x",
        "!!set {a}",
        "!!int a",
        "!!float x",
        "<<: 1",
        "\t",
        "\x00",
        "\x1b[31m",
        "\ud800",
        "x" * 5000,
        "9" * 5000,
    ),
    *("[" * 500, "{a: " * 100, "?", "---", "--- 1\n--- 2", "%YAML 9.9", "a\nb", "cosine", "adamw", "bf16", "rand-m9"),
]
OVERRIDES = {
    "stem": {"type": "conv", "layers": [{"kernel": 4, "stride": 4, "padding": 0, "norm": "layernorm"}]},
    "block.mlp": {"type": "mlp", "norm": "layernorm", "ratio": 2},
    "stages": [
        {"dim": 16, "depth": 1, "attn": {"type": "window", "norm": "layernorm", "head_dim": 8, "size": 4}},
        {"dim": 24, "depth": 1, "attn": {"type": "global", "norm": "layernorm", "head_dim": 8}},
    ],
}
BASE = "hybrid_window_channel_hilo"
ABOUT = {
    "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop_pct": 1.0,
    "crop_mode": "center", "license": "mit", "label_names": ["a", "b", "c"], "label_descriptions": {"a": "A"},
}  # fmt: skip


class Mismatch(AssertionError):
    """Something was accepted that is not what was given."""


class Place:
    """A folder with a tiny model, its checkpoint, a picture and files that are nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        torch.manual_seed(0)
        self.tensors = zoo.create_model(BASE, num_classes=3, overrides=OVERRIDES).state_dict()
        self.trained = self.write(ABOUT, OVERRIDES, BASE)
        torch.save(self.tensors, root / "plain.pth")
        Image.new("RGB", (40, 32), "red").save(root / "red.png")
        (root / "text.txt").write_text("text")
        (root / "junk.pth").write_bytes(b"junk")
        (root / "web.safetensors").write_bytes(b"<!DOCTYPE html><html></html>")
        (root / "bad.yaml").write_text("a: [")
        (root / "folder").mkdir()
        self.images = root / "images"
        for i in range(24):
            name = self.images / "abc"[i % 3] / f"{i}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 16), (i, 10 * i, 100 * (i % 3))).save(name)

    def write(self, described: Any, overrides: Any, model: Any) -> Path:
        """A checkpoint that says this of its model."""
        path = self.root / "trained.safetensors"
        texts = {"described": described, "overrides": overrides, "metrics": {}}
        about = {key: value if isinstance(value, str) else json.dumps(value) for key, value in texts.items()}
        write_verified(path, self.tensors, {"format": "pt", "zoo": "0", "model": str(model), **about})
        return path


def recipe(random: Random, place: Place) -> None:
    """A recipe with a few changed keys."""
    keys = [*(f.name for f in dataclasses.fields(Recipe)), "learning_rate", ""]
    pools = NUMBERS, VALUES, VALUES + ONLY_YAML
    changes = {random.choice(keys): random.choice(random.choice(pools)) for _ in range(random.randint(1, 3))}
    path = place.root / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": "davit_tiny", "data": "images", **changes}), encoding="utf-8")
    _check_kept(load_recipe(path), changes)


def setting(random: Random, place: Place) -> None:
    """`--set KEY=VALUE`."""
    key = random.choice([*(f.name for f in dataclasses.fields(Recipe)), "x", "overrides.a", ""])
    text = f"{key}={random.choice(TEXTS)}" if random.random() < 0.95 else random.choice(TEXTS)
    name, value = parse_setting(text)
    _check_number(text.partition("=")[2], value)
    _check_kept(load_recipe("digits", {name: value}), {name: value})


def metadata(random: Random, place: Place) -> None:
    """What a checkpoint says of its model."""
    described, overrides, model = dict(ABOUT), dict(OVERRIDES), BASE
    chosen = random.choice(["described", "overrides", "model", "whole"])
    if chosen == "described":
        described[random.choice([*ABOUT, "other"])] = random.choice(VALUES)
    elif chosen == "overrides":
        overrides[random.choice([*OVERRIDES, "img_size", "output_stride", "x", "stages.0.dim"])] = random.choice(VALUES)
    elif chosen == "model":
        model = random.choice([*TEXTS, "../x.yaml", "/etc/passwd", "/x.yaml", "bad.yaml", "bad.yaml:x", "text.txt"])
        model = model.encode("utf-8", "replace").decode()
    else:
        whole = random.choice([*VALUES, "{", "[" * 3000, "NaN"])
        described, overrides = (whole, overrides) if random.random() < 0.5 else (described, whole)
    path = place.write(described, overrides, model)
    zoo.create_model(str(path))
    classifier = zoo.vision.load_classifier(checkpoint=path)
    if chosen in ("described", "whole") and isinstance(described, dict):
        _check_described(described, classifier.pretrained_cfg)
    (found,) = zoo.vision.predict(classifier, [zoo.vision.read_image(place.root / "red.png")], 3)
    if not all(isinstance(guess.label, str) for guess in found):
        raise Mismatch(f"labels {[guess.label for guess in found]!r} from {described!r}")


def state_dict(random: Random, place: Place) -> None:
    """A state dict of other shapes, kinds and names, on both roads."""
    state: Any = dict(place.tensors)
    for key in random.sample(list(state), random.randint(1, 3)):
        state[random.choice([key, key, f"module.{key}", "x." + "9" * 5000, key.upper(), ""])] = _odd(random, state[key])
    if random.random() < 0.2:
        state = random.choice(
            [{"model": state}, {"model": state, "state_dict": 3}, {"a": state, "b": state}, [state], None]
        )
    if random.random() < 0.1:
        state = random.choice([b"x", 3, 1.5, "x" * 5000, "x.pth", Path("x.pth"), {}, {1: torch.zeros(1)}, {"a": None}])
    model = zoo.create_model(BASE, num_classes=3, overrides=OVERRIDES)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        zoo.load_checkpoint(model, state)
    except (zoo.CheckpointError, zoo.ConfigError):
        if any(not torch.equal(value, before[name]) for name, value in model.state_dict().items()):
            raise Mismatch("the model was changed by a checkpoint that was refused") from None
    if state is None:
        return
    zoo.create_model(
        BASE, checkpoint=state, overrides=OVERRIDES, **random.choice([{}, {"num_classes": 5}, {"in_chans": 1}])
    )


def _odd(random: Random, value: torch.Tensor) -> Any:
    makers: list[Callable[[], Any]] = [
        lambda: torch.zeros(()), lambda: torch.zeros(0), lambda: value[None], lambda: value.flatten(),
        lambda: value.double(), lambda: value.half(), lambda: value.long(), lambda: value > 0, lambda: value * math.nan,
        lambda: value.to(torch.float8_e4m3fn), lambda: value.to("meta"), lambda: value.to_sparse(),
        lambda: value.detach().numpy(), lambda: value.float().clone().requires_grad_(),
        lambda: value.tolist(), lambda: None, lambda: "text", lambda: {}, lambda: {"a": value}, lambda: value.cfloat(),
        lambda: torch.zeros(1).expand(2**40), lambda: torch.nn.Parameter(value.float()), lambda: value.transpose(0, -1),
        lambda: torch.nn.UninitializedParameter(), lambda: value[:0], lambda: torch.zeros(3, 0, 5, 5), lambda: 10**400,
    ]  # fmt: skip
    return random.choice(makers)()


COMMANDS: dict[str, list[str]] = {
    "list": ["--family", "--pretrained"],
    "info": ["--size"],
    "predict": ["-m", "-c", "--topk", "--allow-nan"],
    "features": ["-m", "-c", "-o", "--longest"],
    "explain": ["-m", "-c", "-o", "--method", "--point", "--layer", "--head", "--label", "--size"],
    "export": ["-c", "-o", "--format", "--size", "--num-classes"],
    "benchmark": ["-b", "--img-size", "--amp", "-o"],
    "train": ["-m", "-d", "-o", "-c", "--classes", "--epochs", "--batch-size", "--lr", "--workers", "--amp", "--set"],
    "validate": ["-d", "-m", "-c", "--split", "--classes", "--batch-size", "--workers", "--amp", "-o"],
    "weights list": [], "weights verify": [], "weights convert": ["-m"], "weights diff": ["-m"],
    "weights import": ["--as"], "weights publish": ["-c"], "nonsense": [], "": ["--version"],
}  # fmt: skip
FLAGS = ("--pretrained", "--allow-nan", "--version")


def command_line(random: Random, place: Place) -> None:
    """A command with arguments and options of any kind."""
    files = (
        "trained.safetensors",
        "plain.pth",
        "red.png",
        "text.txt",
        "junk.pth",
        "web.safetensors",
        "bad.yaml",
        "folder",
        "none.png",
    )
    words = [
        *(str(place.root / name) for name in files),
        *TEXTS[:30],
        "[red]",
        "-1",
        "0",
        "8",
        "1000000",
        "x,y",
        "1,2",
        "a" * 300,
    ]
    words += [
        "\x1b[31m",
        str(place.root / "folder" / "out.png"),
        str(place.root / "out.onnx"),
        "hfds/none",
        "local-dir:x",
        "a=b",
    ]
    place.write(ABOUT, OVERRIDES, BASE)
    name = random.choice(list(COMMANDS))
    arguments = name.split() + [random.choice(words) for _ in range(random.choice([0, 1, 1, 2]))]
    for option in random.sample(COMMANDS[name], min(len(COMMANDS[name]), random.randint(0, 3))):
        arguments += [option] if option in FLAGS else [option, random.choice(words)]
    arguments = [word.replace("\x00", "").encode("utf-8", "replace").decode() for word in arguments]
    done = CliRunner().invoke(app, arguments)
    said = f"{arguments!r} ended with {done.exit_code} and {done.exception!r}:\n{done.output[-1500:]}"
    if not (done.exception is None or isinstance(done.exception, SystemExit)) or done.exit_code not in (0, 1, 2):
        raise Mismatch(said)
    if any(words in done.output for words in ("Traceback", "fault of zoo", "\x1b[31m")):
        raise Mismatch(said)
    if done.exit_code == 1 and "error: " not in done.output and name != "weights diff":
        raise Mismatch(said)


def whole_run(random: Random, place: Place) -> None:
    """A run of a recipe that can be loaded, with a few changed keys: it ends, or says why not before it starts."""
    keys = [f.name for f in dataclasses.fields(Recipe) if f.name not in ("model", "data", "overrides", "compile")]
    changes: dict[str, Any] = {}
    while len(changes) < 3:
        change = {random.choice(keys): random.choice(NUMBERS if random.random() < 0.8 else VALUES)}
        with suppress(zoo.ConfigError):
            load_recipe("digits", {**changes, **change})
            changes |= change
    tiny = {"overrides": OVERRIDES, "data": str(place.images), "img_size": 16, "batch_size": 8, "workers": 0}
    recipe = load_recipe("digits", {**tiny, **changes})
    if max(recipe.img_size or [999]) > 64 or recipe.workers > 2:
        return
    output = place.root / f"run{random.random()}"
    with redirect_stdout(io.StringIO()):
        summary = train(dataclasses.replace(recipe, epochs=min(recipe.epochs, 2)), output, say=lambda text: None)
    if not 0 <= summary["top1"] <= 100 or not (output / "best.safetensors").exists():
        raise Mismatch(f"{changes!r} gave {summary!r}")


KINDS: dict[str, Callable[[Random, Place], None]] = {
    "recipe": recipe, "setting": setting, "metadata": metadata, "state dict": state_dict, "command line": command_line,
    "run": whole_run,
}  # fmt: skip
SHARES = {"recipe": 5, "setting": 5, "metadata": 3, "state dict": 3, "command line": 3, "run": 1}


def _check_kept(found: Recipe, given: Mapping[str, Any]) -> None:
    hints = typing.get_type_hints(Recipe)
    for key, value in given.items():
        kept = getattr(found, key)
        if not (_same(value, kept) and _is(kept, hints[key])):
            raise Mismatch(f"{key}: {value!r} was taken as {kept!r}")


def _same(given: Any, kept: Any) -> bool:
    """Whether a value is the one that was given: a whole number may become a real one, a list a tuple, and one number
    the same for all axes or channels."""
    if isinstance(kept, tuple):
        spread = [given] * len(kept) if isinstance(given, (int, float)) else given
        return isinstance(spread, (list, tuple)) and len(spread) == len(kept) and all(map(_same, spread, kept))
    if isinstance(kept, float):
        return isinstance(given, (int, float)) and not isinstance(given, bool) and given == kept
    return type(given) is type(kept) and given == kept


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type, told by Python alone."""
    arguments = typing.get_args(hint)
    if hint is Any:
        return True
    if typing.get_origin(hint) is typing.Literal:
        return value in arguments
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is(item, arguments[0]) for item in value)
    if arguments:
        return any(_is(value, one) for one in arguments)
    return value is None if hint is type(None) else type(value) is hint


def _check_number(text: str, value: Any) -> None:
    """A number is what it looks like: not octal, not minutes and seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        try:
            seen = float(text.strip())
        except ValueError:
            raise Mismatch(f"{text!r} was taken as the number {value!r}") from None
        if seen != value:
            raise Mismatch(f"{text!r} was taken as the number {value!r}")


def _check_described(given: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        "mean": (list,), "std": (list,), "interpolation": (str,), "crop_pct": (float, int), "crop_mode": (str,),
        "license": (str,), "label_names": (list,), "label_descriptions": (dict,),
    }  # fmt: skip
    for key, kind in kinds.items():
        value = given.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise Mismatch(f"{key}: {value!r} was taken, and is {kept.get(key)!r}")
