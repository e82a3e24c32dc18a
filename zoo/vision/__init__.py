"""What people do with a backbone: predict labels, look at feature pyramids and at attention, detect, export, time."""

from zoo.vision.deployment import Deployment, deployment
from zoo.vision.detection import TorchvisionBackbone, torchvision_backbone
from zoo.vision.explain import Channels, Explanation, Layer, Part, Region, explain
from zoo.vision.explain_picture import save_attention, save_class_map, save_receptive_fields, save_rollout
from zoo.vision.export import Exported, export
from zoo.vision.features import Pyramid, extract, save_picture
from zoo.vision.images import read_image
from zoo.vision.predict import Prediction, is_trained, load_classifier, predict
from zoo.vision.rollout import Rollout, rollout
from zoo.vision.runtimes import ExportError
from zoo.vision.saliency import ClassMap, ReceptiveField, grad_cam, receptive_field
from zoo.vision.speed import Speed, measure_speed

__all__ = [
    "Channels",
    "ClassMap",
    "Deployment",
    "Explanation",
    "ExportError",
    "Exported",
    "Layer",
    "Part",
    "Prediction",
    "Pyramid",
    "ReceptiveField",
    "Region",
    "Rollout",
    "Speed",
    "TorchvisionBackbone",
    "deployment",
    "explain",
    "export",
    "extract",
    "grad_cam",
    "is_trained",
    "load_classifier",
    "measure_speed",
    "predict",
    "read_image",
    "receptive_field",
    "rollout",
    "save_attention",
    "save_class_map",
    "save_picture",
    "save_receptive_fields",
    "save_rollout",
    "torchvision_backbone",
]
