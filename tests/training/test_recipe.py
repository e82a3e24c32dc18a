"""Recipes are read, changed and written without loss, and what is wrong in one is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from zoo.errors import ConfigError
from zoo.training.data.augmentation import training_transform
from zoo.training.metrics import Metrics
from zoo.training.randomness import drawn_from
from zoo.training.recipe import load_recipe, parse_setting, pieces, recipes

NEEDED = {"model": "davit_tiny", "data": "images"}


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_gives_itself_again(tmp_path: Path, name: str) -> None:
    recipe = load_recipe(name, {} if name == "digits" else NEEDED)
    path = tmp_path / "run.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe


def test_shipped_recipes() -> None:
    assert set(recipes()) == {"digits", "finetune", "linear-probe", "scratch", "384-from-224"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": "fast"}, "lr: found 'fast', expected a number"),
        ({"mix_prob": 2}, "mix_prob: found 2"),
        ({"learning_rate": 1}, r"unknown key 'learning_rate'"),
        ({"epochs": 0}, "epochs: found 0"),
        ({"amp": "fp8"}, "unknown value 'fp8'"),
        ({"overrides": 3}, "overrides: found 3"),
        ({"pretrained": True, "checkpoint": "x.pth"}, "both name weights"),
        ({"scheduler": "cosin"}, "did you mean 'cosine'"),
    ],
)
def test_what_is_wrong_is_said(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("digits", changes)


def test_names_of_recipes() -> None:
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_recipe("digit")
    with pytest.raises(ConfigError, match="has no model: pass --model"):
        load_recipe("finetune", {"data": "images"})
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_setting("lr")
    assert parse_setting("crop_scale=[0.5, 1]") == ("crop_scale", [0.5, 1])


@pytest.mark.parametrize("text", ["010", "1:30", "0x10", "1_000", "no", "yes", "on", "0b1"])
def test_a_text_that_yaml_once_took_for_something_else_is_a_text(text: str) -> None:
    assert parse_setting(f"x={text}")[1] == text
    with pytest.raises(ConfigError, match="expected a whole number"):
        load_recipe("digits", dict([parse_setting(f"epochs={text}")]))


def test_no_precision_is_a_precision() -> None:
    assert load_recipe("digits", dict([parse_setting("amp=no")])).amp == "no"
    assert load_recipe("digits", dict([parse_setting("compile=True")])).compile


@pytest.mark.parametrize("key", ["lr", "min_lr", "warmup_lr", "weight_decay", "clip_grad"])
def test_numbers_are_read_as_in_a_file(key: str) -> None:
    """YAML 1.1 takes 1e-6 for text."""
    assert getattr(load_recipe("digits", dict([parse_setting(f"{key}=1e-6")])), key) == 1e-6


@pytest.mark.parametrize("policy", ["nonsense", "rand-z9", "augmix-z9", "m9", "-"])
def test_unknown_augmentation_is_said_in_a_sentence(policy: str) -> None:
    recipe = load_recipe("scratch", {"model": "davit_tiny", "data": "none", "auto_augment": policy})
    config = {"input_size": (3, 24, 24), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(ConfigError, match=r"auto_augment is .* expected something like"):
        training_transform(recipe, config)


def test_pieces_of_a_step() -> None:
    recipe = load_recipe("digits", {"batch_size": 18, "micro_batch": 4})
    assert pieces(recipe, 1) == [4, 4, 4, 4, 2]
    assert pieces(recipe, 2) == [4, 4, 1]
    assert pieces(load_recipe("digits", {"batch_size": 4}), 2) == [2]


def test_metrics_are_what_they_are_called() -> None:
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(200, 7), torch.randint(0, 7, (200,))
    real = [[int(target), 0] for target in targets]
    metrics = Metrics(7, torch.device("cpu"), real)
    filled = torch.cat([targets, torch.tensor([-1])])
    for part in torch.arange(201).split(64):
        metrics.add(torch.cat([logits, torch.zeros(1, 7)])[part], filled[part], part)
    found = metrics.result()
    guess, confidence = logits.argmax(1), logits.softmax(1).amax(1)
    assert found["images"] == 200
    assert found["top1"] == pytest.approx(100 * (guess == targets).double().mean().item())
    top5 = (logits.topk(5).indices == targets[:, None]).any(1)
    assert found["top5"] == pytest.approx(100 * top5.double().mean().item())
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
    assert found["real"] == pytest.approx(100 * ((guess == targets) | (guess == 0)).double().mean().item())
    error = 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & (confidence < (low + 1) / 15)
        error += (confidence[inside] - (guess == targets)[inside].float()).sum().abs().item() / 200
    assert found["calibration_error"] == pytest.approx(error, rel=1e-4)
    for label, value in enumerate(metrics.per_class()):
        assert value == pytest.approx(100 * (guess == label)[targets == label].double().mean().item())


POLICIES = ("rand-m10-n4-inc1", "rand-m10-n4", "rand-m9-mstd0.5-inc1", "original", "v0", "augmix-m10")


@pytest.mark.parametrize("policy", POLICIES)
def test_augmentation_runs_at_every_strength(policy: str) -> None:
    recipe = load_recipe("scratch", {"model": "davit_tiny", "data": "none", "auto_augment": policy})
    config = {"input_size": (3, 24, 24), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    transform = training_transform(recipe, config)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8))
    for seed in range(150):
        with drawn_from(seed):
            assert transform(image).shape == (3, 24, 24)
