"""Encoders of segmentation_models_pytorch: any timm model by the prefix "tu-"."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

import zoo
from tests.conftest import cut

NARROW = {
    "Unet": {"decoder_channels": (32, 16, 16, 8, 8)},
    "FPN": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    "UPerNet": {"decoder_channels": 32},
    "DeepLabV3Plus": {"decoder_channels": 32},
}


def segmenter(architecture: str, name: str, **settings: object) -> nn.Module:
    settings |= NARROW[architecture]
    return smp.create_model(architecture, f"tu-zoo_{name}", encoder_weights=None, classes=3, **settings)


def assert_learns(model: nn.Module, images: torch.Tensor) -> None:
    """Scores of the size of the image, and a finite gradient of every parameter."""
    scores = model.train()(images)
    assert scores.shape == (len(images), 3, *images.shape[2:])
    nn.functional.cross_entropy(scores, torch.zeros_like(images[:, 0]).long()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_every_family_in_unet(small: str) -> None:
    if small.startswith("nat_isotropic"):
        with pytest.raises(ValueError, match="downsampling"):  # smp's own: it needs strides that double
            segmenter("Unet", small)
        return
    model = segmenter("Unet", small, in_channels=4, **cut(small))
    assert_learns(model, torch.rand(2, 4, 64, 96))
    with torch.inference_mode():
        assert model.eval()(torch.rand(1, 4, 53, 70)).shape == (1, 3, 53, 70)


@pytest.mark.parametrize("architecture", ["FPN", "UPerNet"])
def test_other_architectures(architecture: str) -> None:
    assert_learns(segmenter(architecture, "dinat_tiny"), torch.rand(2, 3, 64, 96))


def test_dilated_encoder() -> None:
    """DeepLabV3+ asks for a stride of 16, which neighbourhood attention can give."""
    model = segmenter("DeepLabV3Plus", "dinat_mini", encoder_output_stride=16)
    assert_learns(model, torch.rand(2, 3, 64, 96))
    assert [level.shape[2] for level in model.encoder(torch.rand(1, 3, 64, 64))] == [64, 32, 16, 8, 4, 4]


def test_settings_reach_the_encoder() -> None:
    """Keyword arguments of an encoder are configuration keys."""
    model = segmenter("Unet", "dinat_mini", **{"stages.2.depth": 2})
    assert len(model.encoder.model.model.stages[2].blocks) == 2


def test_an_encoder_gives_its_weights_back() -> None:
    """For other uses of a backbone that was trained with a segmenter, by its own state or the whole segmenter's."""
    model = segmenter("Unet", "dinat_mini")
    pyramid = zoo.create_model("dinat_mini", features_only=True, checkpoint=model.state_dict())
    assert all(
        torch.equal(value, model.state_dict()[f"encoder.model.{key}"]) for key, value in pyramid.state_dict().items()
    )
    again = zoo.create_model("dinat_mini", features_only=True, checkpoint=model.encoder.state_dict())
    assert all(torch.equal(value, pyramid.state_dict()[key]) for key, value in again.state_dict().items())
