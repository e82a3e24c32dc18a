"""The pyramid contract: levels, their norms, masks of padded batches, frozen stages, finer strides."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

import zoo
import zoo.timm_models
from tests import golden
from tests.conftest import SMALLEST
from tests.test_goldens import assert_map
from zoo.config.catalog import load_config

PUBLISHED = sorted(name for name in SMALLEST.values() if name in golden.NAMES)
DILATED = ("nat", "dinat")


def pyramid(name: str, **settings: object) -> torch.nn.Module:
    return zoo.create_model(name, features_only=True, drop_path_rate=0.0, **settings).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_levels_are_the_published_stages_whatever_the_padding(name: str) -> None:
    record = golden.Golden(name)
    model = pyramid(name, checkpoint=record.state_dict())
    images = record.images()
    padded = F.pad(images, (0, 72, 0, 40), value=5.0)
    mask = F.pad(torch.ones_like(images[:, 0]), (0, 72, 0, 40))
    with torch.inference_mode():
        alone, together = model(images), model(padded, mask)
    strides = model.feature_info.reduction()
    for i, (level, whole, stride) in enumerate(zip(alone, together, strides, strict=True)):
        assert_map(level, record, f"stage{i}")
        assert tuple(whole.shape[2:]) == tuple(-(-n // stride) for n in padded.shape[2:])
        height, width = level.shape[2:]
        assert torch.equal(whole[..., :height, :width], level)
        assert not whole[..., height:, :].any()
        assert not whole[..., width:].any()


def test_a_masked_batch_is_its_images_one_by_one(shallow: torch.nn.Module) -> None:
    sizes = [(64, 96), (50, 75), (64, 96), (33, 40)]
    images, mask = torch.randn(4, 3, 64, 96), torch.zeros(4, 64, 96, dtype=torch.bool)
    for i, (height, width) in enumerate(sizes):
        mask[i, :height, :width] = True
    images.requires_grad_()
    logits = shallow(images, mask)
    last, maps = shallow.forward_intermediates(images, indices=[0, 2], mask=mask, output_fmt="NHWC")
    for i, (height, width) in enumerate(sizes):
        own = images[i : i + 1, :, :height, :width]
        torch.testing.assert_close(logits[i : i + 1], shallow(own), rtol=1e-4, atol=1e-4)
        expected, levels = shallow.forward_intermediates(own, indices=[0, 2], output_fmt="NHWC")
        for found, level in zip((last, *maps), (expected, *levels), strict=True):
            part = found[i : i + 1, : level.shape[1], : level.shape[2]]
            torch.testing.assert_close(part, level, rtol=1e-3, atol=1e-3 * float(level.detach().std()))
    (gradient,) = torch.autograd.grad(logits.square().sum() + maps[1].square().sum(), images)
    assert not gradient.masked_select(~mask[:, None]).any()
    assert gradient[0].abs().min(dim=0).values.count_nonzero() > 0


def test_masks_that_are_none_say_so() -> None:
    model = pyramid("nat_mini")
    images, mask = torch.zeros(2, 3, 32, 48), torch.ones(2, 32, 48, dtype=torch.bool)
    whole = [level.clone() for level in model(images, mask)]
    assert all(torch.equal(a, b) for a, b in zip(model(images), whole, strict=True))
    with pytest.raises(ValueError, match=r"expected \(2, 32, 48\)"):
        model(images, mask[:, :16])
    for wrong in ((1, slice(0, 4), slice(0, 4)), (1, slice(5, 6), slice(5, 6)), (1, slice(None), slice(None))):
        broken = mask.clone()
        broken[wrong] = False
        with pytest.raises(ValueError, match="image 1"):
            model(images, broken)


def test_level_norms(small: str) -> None:
    """Each level through its own norm: of mean 0 and variance 1 as drawn, but where the published rule has none."""
    images, config = golden.images(1, 96, 128), load_config(small)
    plain = pyramid(small)
    normed = pyramid(small, level_norm=True)
    report = zoo.load_checkpoint(normed, zoo.create_model(small).state_dict())
    assert all(name.startswith("level_norms.") for name in report.fresh)
    assert bool(report.fresh) == (config.stage_norm is None)
    zoo.load_checkpoint(plain, {**zoo.create_model(small).state_dict(), **normed.model.state_dict()})
    rules = config.level_norm if config.stage_norm is None else (config.stage_norm,) * 4
    with torch.inference_mode():
        for level, raw, rule in zip(normed(images), plain(images), rules, strict=True):
            eps = rule.eps if rule else 1e-5
            channels_last = raw.permute(0, 2, 3, 1)
            expected = F.layer_norm(channels_last, raw.shape[1:2], eps=eps) if rule else channels_last
            torch.testing.assert_close(level.permute(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-4)


def test_published_level_norm_rules() -> None:
    """Which norm each family's detection code gives a level; CrossFormer's gives none, and takes the default here."""
    rules = {family: load_config(name) for family, name in SMALLEST.items()}
    assert {n.eps for family in ("nat", "dinat", "dinat_s", "davit") for n in rules[family].level_norm} == {1e-5}
    assert {n.eps for n in rules["biformer"].level_norm} == {1e-6}
    assert [n and n.eps for n in rules["litv2"].level_norm] == [None, 1e-5, 1e-5, 1e-5]
    assert rules["transnext"].stage_norm.eps == 1e-6


def test_every_parameter_of_a_pyramid_is_trained(small: str) -> None:
    for settings in ({"level_norm": True}, {"level_norm": True, "out_indices": (0, 2)}, {"out_indices": (1,)}):
        model = pyramid(small, **settings).train()
        sum(level.square().mean() for level in model(golden.images(2, 64, 64))).backward()
        without = [name for name, p in model.named_parameters() if p.grad is None]
        assert not without


def _as_detector(name: str) -> tuple[dict[str, torch.Tensor], torch.nn.Module]:
    """A detector's state dict in the published form, made of a published classifier's, and the pyramid that fits."""
    record = golden.Golden(name)
    classifier = {key: value for key, value in record.state_dict().items() if not key.startswith(("head.", "norm."))}
    normed = pyramid(name, level_norm=True)
    form = {"biformer": "extra_norms.{}.{}", "crossformer": None}.get(load_config(name).family, "norm{}.{}")
    state = {f"backbone.{key}": value for key, value in classifier.items() if not key.startswith("norms.")}
    for key, value in normed.model.state_dict().items():
        if key.startswith("level_norms."):
            _, index, leaf = key.split(".")
            if form is not None:
                state[f"backbone.{form.format(index, leaf)}"] = torch.randn_like(value)
    state |= {"neck.lateral_convs.0.conv.weight": torch.zeros(1), "bbox_head.fc.bias": torch.zeros(1)}
    return state, normed


@pytest.mark.parametrize("name", [n for n in PUBLISHED if load_config(n).family not in ("maxvit", "nat_isotropic")])
def test_checkpoints_of_detectors(name: str) -> None:
    state, normed = _as_detector(name)
    report = zoo.load_checkpoint(normed, {"state_dict": state})
    assert {"neck.lateral_convs.0.conv.weight", "bbox_head.fc.bias"} <= set(report.dropped)
    published_norms = any("norm" in key.split(".")[1] for key in state)
    assert bool(report.fresh) == (not published_norms)
    again = pyramid(name, level_norm=True, checkpoint=state)
    converted = zoo.convert_checkpoint(state, name)
    for key, value in normed.model.state_dict().items():
        assert key in report.fresh or torch.equal(value, again.model.state_dict()[key])
        assert key in report.fresh or torch.equal(value, converted[key])
    plain = pyramid(name)
    assert zoo.load_checkpoint(plain, state).fresh == ()
    with pytest.raises(zoo.CheckpointError, match="features_only=True"):
        zoo.create_model(name, checkpoint=state)


def test_frozen_stages_stay_as_they_are() -> None:
    model = pyramid("maxvit_rmlp_pico_rw_256", in_chans=1).train()
    zoo.freeze(model, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(2, 1, 64, 64))[-1].square().mean().backward()
    optimiser.step()
    for key, value in model.state_dict().items():
        frozen = key.startswith(("model.stages.0.", "model.stages.1."))
        assert frozen == torch.equal(value, before[key]) or "num_batches" in key, key
    zoo.freeze(model, 0)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    with pytest.raises(zoo.ConfigError, match="stages"):
        zoo.freeze(model, 5)
    with pytest.raises(zoo.ConfigError, match="not a model of the zoo"):
        zoo.freeze(torch.nn.Linear(1, 1), 1)


@pytest.mark.parametrize("family", DILATED)
@pytest.mark.parametrize("stride", [8, 16])
def test_a_finer_stride_holds_the_original_map(family: str, stride: int) -> None:
    depths = {f"stages.{i}.depth": 2 for i in range(4)}
    coarse = pyramid(SMALLEST[family], **depths)
    fine = timm.create_model(f"zoo_{SMALLEST[family]}", features_only=True, output_stride=stride, **depths).eval()
    fine.load_state_dict(coarse.state_dict())
    images = golden.images(1, 256, 320)
    with torch.inference_mode():
        for level, finer, reduction in zip(coarse(images), fine(images), fine.feature_info.reduction(), strict=True):
            assert tuple(finer.shape[2:]) == (256 // reduction, 320 // reduction)
            step = finer.shape[2] // level.shape[2]
            torch.testing.assert_close(finer[..., ::step, ::step], level, rtol=1e-4, atol=1e-4)
    assert max(fine.feature_info.reduction()) == stride


def test_strides_that_cannot_be_say_why(small: str) -> None:
    family = load_config(small).family
    if family in DILATED:
        for stride, message in ((2, "stem"), (12, "maps"), (0, "output_stride")):
            with pytest.raises(zoo.ConfigError, match=message):
                zoo.create_model(small, output_stride=stride)
    elif family == "nat_isotropic":
        assert zoo.create_model(small, output_stride=16).feature_info[-1]["reduction"] == 16
    else:
        with pytest.raises(zoo.ConfigError, match="cannot take output_stride"):
            zoo.create_model(small, output_stride=16)
    assert zoo.create_model(small, output_stride=32).feature_info == zoo.create_model(small).feature_info
