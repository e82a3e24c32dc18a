"""torchvision's detectors over our pyramids."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import zoo
from tests.conftest import cut
from zoo.vision import torchvision_backbone

SIDE = 64


def detector(kind: type[nn.Module], name: str, side: int = SIDE, **settings: object) -> nn.Module:
    """A narrow detector of torchvision that scales images to a shorter side of `side` pixels."""
    if kind is RetinaNet:
        settings |= {"out_indices": (1, 2, 3), "extra_blocks": LastLevelP6P7(32, 32)}
    backbone = torchvision_backbone(name, out_channels=32, **settings)
    return kind(backbone, num_classes=3, min_size=side, max_size=2 * side)


def target(height: int, width: int) -> dict[str, torch.Tensor]:
    masks = torch.zeros(1, height, width, dtype=torch.uint8)
    masks[:, height // 4 : height // 2, width // 4 : -width // 4] = 1
    box = [width // 4, height // 4, width - width // 4, height // 2]
    return {"boxes": torch.tensor([box]).float(), "labels": torch.tensor([1]), "masks": masks}


def assert_learns(model: nn.Module, sizes: list[tuple[int, int]]) -> None:
    """A training step over images of these sizes gives every parameter that trains a finite gradient."""
    losses = model.train()([torch.rand(3, *size) for size in sizes], [target(*size) for size in sizes])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@torch.inference_mode()
def assert_detects(model: nn.Module, sizes: list[tuple[int, int]]) -> None:
    for found, (height, width) in zip(model.eval()([torch.rand(3, *size) for size in sizes]), sizes, strict=True):
        assert len(found["boxes"]) == len(found["labels"]) == len(found["scores"])
        limits = torch.tensor([width, height, width, height])
        assert ((found["boxes"] >= 0) & (found["boxes"] <= limits)).all()
        if "masks" in found:
            assert found["masks"].shape == (len(found["boxes"]), 1, height, width)


def test_every_family_in_faster_rcnn(small: str) -> None:
    if small.startswith("nat_isotropic"):
        with pytest.raises(zoo.ConfigError, match="strides"):
            torchvision_backbone(small)
        return
    model = detector(FasterRCNN, small, **cut(small))
    assert_learns(model, [(64, 96), (50, 41)])
    assert_detects(model, [(64, 96), (9, 13)])


@pytest.mark.parametrize("kind", [MaskRCNN, RetinaNet])
def test_other_detectors(kind: type[nn.Module]) -> None:
    model = detector(kind, "dinat_mini")
    (model if kind is RetinaNet else model.roi_heads).score_thresh = 0
    assert_learns(model, [(64, 96), (96, 64)])
    assert_detects(model, [(64, 96), (17, 90)])


@pytest.mark.slow
def test_a_detectors_usual_image() -> None:
    """800 x 1333 pixels through the whole of Faster R-CNN, in its usual width; it pads them to multiples of 32."""
    model, seen = FasterRCNN(torchvision_backbone("dinat_mini"), num_classes=91), []
    model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert_detects(model, [(800, 1333)])
    sizes = [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]
    assert [tuple(level.shape[1:]) for level in seen[0].values()] == [(256, *size) for size in sizes]


def test_trainable_stages() -> None:
    model = detector(FasterRCNN, "maxvit_rmlp_pico_rw_256", trainable_stages=2)
    before = {name: value.clone() for name, value in model.backbone.body.state_dict().items()}
    assert_learns(model, [(64, 96)])
    trained = {name for name, parameter in model.backbone.body.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[2] for name in trained if ".stages." in name} == {"2", "3"}
    for name, value in model.backbone.body.state_dict().items():
        frozen = name.startswith(("model.stages.0", "model.stages.1"))
        assert torch.equal(value, before[name]) or not frozen, name
    with pytest.raises(zoo.ConfigError, match="trainable_stages"):
        torchvision_backbone("dinat_mini", trainable_stages=5)
