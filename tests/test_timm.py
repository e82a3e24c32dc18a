"""timm builds, wraps, adapts and publishes our models as its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils.model import freeze_batch_norm_2d
from torch import nn

import zoo
import zoo.timm_models
from tests import golden
from tests.conftest import VARIANTS
from zoo.weights.manifest import checkpoints

IMAGE = golden.images(1, 96, 128)


def test_every_variant_is_registered() -> None:
    assert set(timm.list_models("zoo_*")) == {f"zoo_{name}" for name in VARIANTS}
    tagged = timm.list_models("zoo_*", pretrained=True)
    assert set(tagged) == {f"zoo_{entry.id}" for entry in checkpoints() if entry.by_machine}


@pytest.mark.parametrize("name", VARIANTS)
def test_default_cfg_describes_the_model(name: str) -> None:
    cfg = get_pretrained_cfg(f"zoo_{name}")
    with torch.device("meta"):
        model = timm.create_model(f"zoo_{name}")
    first = (cfg.first_conv,) if isinstance(cfg.first_conv, str) else cfg.first_conv
    assert {f"{layer}.weight" for layer in (*first, cfg.classifier)} <= set(model.state_dict())
    assert cfg.input_size[0] == 3
    reduction = model.feature_info[-1]["reduction"]
    assert model.default_cfg["pool_size"] == tuple(n // reduction for n in cfg.input_size[1:])
    entry = next((entry for entry in checkpoints() if entry.variant == name), None)
    assert cfg.hf_hub_id == (entry and entry.hub)
    assert cfg.hf_hub_filename == (entry and entry.hub and entry.file)


def test_forward_and_heads(small: str) -> None:
    model = timm.create_model(f"zoo_{small}", num_classes=42).eval()
    with torch.inference_mode():
        logits, features = model(IMAGE), model.forward_features(IMAGE)
        assert logits.shape == (1, 42)
        assert torch.equal(model.forward_head(features), logits)
        pooled = model.forward_head(features, pre_logits=True)
        reduction = model.feature_info[-1]["reduction"]
        assert features.shape == (1, model.num_features, 96 // reduction, 128 // reduction)
        assert pooled.shape == (1, model.head_hidden_size)
        assert model.get_classifier() is model.head.fc
        model.reset_classifier(0)
        assert torch.equal(model(IMAGE), pooled)
        model.reset_classifier(0, "")
        assert model(IMAGE).shape == features.shape
        model.reset_classifier(7, "avg")
        assert (model(IMAGE).shape, model.num_classes) == ((1, 7), 7)
    with pytest.raises(ValueError, match="global_pool"):
        model.reset_classifier(7, "median")


def test_a_new_classifier_follows_the_model(small: str) -> None:
    """Its precision and device are the model's, its weights drawn as the family draws them, even from none."""
    model = timm.create_model(f"zoo_{small}", num_classes=0).to(torch.bfloat16)
    model.reset_classifier(500)
    fresh = timm.create_model(f"zoo_{small}", num_classes=500)
    assert model.head.fc.weight.dtype == torch.bfloat16
    assert model.head.fc.weight.float().std().item() == pytest.approx(fresh.head.fc.weight.std().item(), rel=0.05)


def test_without_pool_and_classifier(small: str) -> None:
    assert timm.create_model(f"zoo_{small}", num_classes=0)(IMAGE).ndim == 2
    assert timm.create_model(f"zoo_{small}", num_classes=0, global_pool="")(IMAGE).ndim == 4


def test_other_channels(small: str) -> None:
    assert timm.create_model(f"zoo_{small}", in_chans=1)(IMAGE[:, :1]).shape == (1, 1000)
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\)"):
        timm.create_model(f"zoo_{small}", in_chans=1)(IMAGE)


@pytest.mark.parametrize("indices", [None, (0, 2), (-2, -1), (3,)])
def test_features_only(small: str, indices: tuple[int, ...] | None) -> None:
    chosen = {} if indices is None else {"out_indices": indices}
    model = timm.create_model(f"zoo_{small}", features_only=True, **chosen).eval()
    maps = model(IMAGE)
    levels = [i % 4 for i in indices or range(4)]
    isotropic = small.startswith("nat_isotropic")
    assert model.feature_info.reduction() == [16 if isotropic else 4 * 2**i for i in levels]
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [tuple(m.shape[2:]) for m in maps] == [(96 // r, 128 // r) for r in model.feature_info.reduction()]
    assert sum(1 for _ in model.parameters()) <= sum(1 for _ in timm.create_model(f"zoo_{small}").parameters())


@pytest.mark.parametrize("small", ["davit_tiny", "litv2_s"])
def test_timms_own_getter_gives_the_same_maps(small: str) -> None:
    ours = timm.create_model(f"zoo_{small}", features_only=True).eval()
    timms = timm.create_model(f"zoo_{small}", features_only=True, feature_cls="getter").eval()
    timms.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        for a, b in zip(ours(IMAGE), timms(IMAGE), strict=True):
            assert torch.equal(a, b)


def test_forward_intermediates(small: str) -> None:
    model = timm.create_model(f"zoo_{small}").eval()
    with torch.inference_mode():
        last, maps = model.forward_intermediates(IMAGE)
        assert torch.equal(last, model.forward_features(IMAGE))
        normed = model.forward_intermediates(IMAGE, indices=1, norm=True, intermediates_only=True)
        assert torch.equal(normed[0], last)
        early = model.forward_intermediates(IMAGE, indices=[1], stop_early=True, intermediates_only=True)
        assert torch.equal(early[0], maps[1])
        nhwc = model.forward_intermediates(IMAGE, indices=[0], output_fmt="NHWC", intermediates_only=True)
        assert torch.equal(nhwc[0].permute(0, 3, 1, 2), maps[0])
    for wrong in ([4], [], 9):
        with pytest.raises(ValueError, match="indices"):
            model.forward_intermediates(IMAGE, indices=wrong)
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(IMAGE, output_fmt="NLC")


def test_gradient_checkpointing_changes_nothing(small: str) -> None:
    model = timm.create_model(f"zoo_{small}", num_classes=3, drop_path_rate=0.0).eval()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(IMAGE).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("replace", [freeze_batch_norm_2d, nn.SyncBatchNorm.convert_sync_batchnorm])
def test_batch_norms_may_be_replaced(small: str, replace: Callable[[nn.Module], nn.Module]) -> None:
    """Frozen and synchronised batch norms are of NCHW wherever they are put."""
    model = timm.create_model(f"zoo_{small}", features_only=True, level_norm=True).eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.running_var, 0.5, 2)
    with torch.inference_mode():
        before = model(IMAGE)
    model = replace(model)
    with torch.inference_mode():
        after = model(IMAGE)
    assert not {type(module) for module in model.modules()} & {type(norm) for norm in norms}
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
    assert all(level.isfinite().all() for level in model.train()(IMAGE))


def test_optimiser_groups(small: str) -> None:
    model = timm.create_model(f"zoo_{small}")
    exempt = model.no_weight_decay()
    assert exempt <= {name for name, _ in model.named_parameters()}
    assert create_optimizer_v2(model, "adamw", weight_decay=0.05).param_groups
    groups = param_groups_layer_decay(model, 0.05, no_weight_decay_list=exempt, layer_decay=0.9)
    assert sum(len(group["params"]) for group in groups) == sum(1 for _ in model.parameters())
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    first = [scale[id(next(stage.blocks[0].parameters()))] for stage in model.stages]
    assert first == sorted(set(first))
    assert scale[id(model.stages[0].embed.convs[0].weight)] < first[0]
    assert scale[id(model.head.fc.weight)] == 1.0


def test_input_transform_follows_the_checkpoint() -> None:
    for name in ("davit_tiny", "maxvit_tiny_tf_384"):
        data = resolve_model_data_config(timm.create_model(f"zoo_{name}"))
        facts = zoo.model_info(name).input_transform
        assert {key: data[key] for key in facts} == facts
    assert resolve_model_data_config(timm.create_model("zoo_maxvit_tiny_tf_384"))["input_size"] == (3, 384, 384)
    other = zoo.create_model("maxvit_tiny_tf_224", img_size=(256, 320))
    assert resolve_model_data_config(other)["input_size"] == (3, 256, 320)


def test_pretrained_weights_through_timms_loader(tmp_path: Path) -> None:
    """The Hub files hold timm's keys: the same path with a local file in place of the download."""
    record = golden.Golden("maxvit_rmlp_pico_rw_256")
    path = tmp_path / "model.safetensors"
    save_file(record.state_dict(), path)
    overlay = {"file": str(path)}
    model = timm.create_model("zoo_maxvit_rmlp_pico_rw_256", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    expected = torch.from_numpy(record.arrays["logits"])
    with torch.inference_mode():
        logits = model(record.images())
    assert (logits[:, : expected.shape[1]] - expected).abs().max() < 3e-5 * float(record.arrays["logits_std"])
    small = timm.create_model(
        "zoo_maxvit_rmlp_pico_rw_256", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, in_chans=1
    )
    assert small.head.fc.weight.shape == (3, 256)


def test_local_dir_round_trip(tmp_path: Path, small: str) -> None:
    """What timm pushes to the Hub, `config.json` and our own keys, loads as timm loads it."""
    model = timm.create_model(f"zoo_{small}", num_classes=5).eval()
    timm.models.save_for_hf(model, tmp_path, model_config={"num_classes": 5})
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == f"zoo_{small}"
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(again(IMAGE), model(IMAGE))


def test_unavailable_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(zoo.ConfigError, match="official_in1k"):
        zoo.create_model("davit_tiny.official_in1", pretrained=True)
    with pytest.raises(zoo.CheckpointError, match="by hand"):
        zoo.create_model("davit_tiny.official_in1k", pretrained=True)
