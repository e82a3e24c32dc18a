"""Detectors and segmenters of transformers over its wrapper around timm's models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoBackbone,
    DetrConfig,
    DetrForObjectDetection,
    RTDetrConfig,
    RTDetrForObjectDetection,
    TimmBackbone,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import zoo.timm_models  # noqa: F401 - registers the backbones

BOXES = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}] * 2
NARROW = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 5,
    "num_labels": 3,
}


def described(name: str, stages: list[int]) -> TimmBackboneConfig:
    return TimmBackboneConfig(backbone=f"zoo_{name}", out_indices=stages)


def assert_learns(model: nn.Module, loss: torch.Tensor) -> None:
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_backbone(small: str) -> None:
    images = torch.rand(1, 3, 70, 90)
    backbone = AutoBackbone.from_config(described(small, [1, 3])).eval()
    assert isinstance(backbone, TimmBackbone)
    assert backbone.out_features == ["stages.1", "stages.3"]
    with torch.inference_mode():
        maps = backbone(images).feature_maps
        assert [level.shape[1] for level in maps] == backbone.channels
        for ours, theirs in zip(backbone._backbone(images), maps, strict=True):
            assert torch.equal(ours, theirs)


def rt_detr(name: str) -> nn.Module:
    channels = AutoBackbone.from_config(described(name, [1, 2, 3])).channels
    widths = {"encoder_in_channels": channels, "encoder_hidden_dim": 32, "decoder_in_channels": [32] * 3}
    config = RTDetrConfig(backbone_config=described(name, [1, 2, 3]), num_denoising=4, **widths, **NARROW)
    return RTDetrForObjectDetection(config)


@pytest.mark.parametrize("name", ["dinat_mini", "maxvit_rmlp_pico_rw_256", "litv2_s"])
def test_rt_detr(name: str) -> None:
    """It freezes batch norms by putting its own in their place, of which MaxViT and LITv2 have many."""
    model = rt_detr(name).train()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.model.backbone.modules())
    assert_learns(model, model(torch.rand(2, 3, 64, 96), labels=BOXES).loss)
    with torch.inference_mode():
        assert model.eval()(torch.rand(1, 3, 96, 64)).pred_boxes.shape == (1, 5, 4)


def test_detr(tmp_path: Path) -> None:
    """A padded batch with its mask; saved and loaded it predicts the same."""
    model = DetrForObjectDetection(DetrConfig(backbone_config=described("dinat_mini", [3]), **NARROW)).train()
    images, mask = torch.rand(2, 3, 70, 90), torch.ones(2, 70, 90, dtype=torch.long)
    mask[1, 40:] = 0
    assert_learns(model, model(images, pixel_mask=mask, labels=BOXES).loss)
    model.eval().save_pretrained(tmp_path)
    again = DetrForObjectDetection.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        assert torch.equal(again(images, pixel_mask=mask).logits, model(images, pixel_mask=mask).logits)


def test_upernet() -> None:
    settings = {"hidden_size": 32, "auxiliary_in_channels": 256, "auxiliary_channels": 16, "num_labels": 3}
    config = UperNetConfig(backbone_config=described("dinat_mini", [0, 1, 2, 3]), **settings)
    model = UperNetForSemanticSegmentation(config).train()
    assert_learns(model, model(torch.rand(2, 3, 70, 90), labels=torch.zeros(2, 70, 90).long()).loss)
    with torch.inference_mode():
        assert model.eval()(torch.rand(1, 3, 70, 90)).logits.shape == (1, 3, 70, 90)
