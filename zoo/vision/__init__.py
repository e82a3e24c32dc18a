"""What people do with a backbone: predict labels, look at feature pyramids, detect, time."""

from zoo.vision.detection import TorchvisionBackbone, torchvision_backbone
from zoo.vision.features import Pyramid, extract, save_picture
from zoo.vision.images import read_image
from zoo.vision.inputs import read_inputs
from zoo.vision.predict import Prediction, is_trained, load_classifier, predict
from zoo.vision.speed import Speed, measure_speed

__all__ = [
    "Prediction",
    "Pyramid",
    "Speed",
    "TorchvisionBackbone",
    "extract",
    "is_trained",
    "load_classifier",
    "measure_speed",
    "predict",
    "read_image",
    "read_inputs",
    "save_picture",
    "torchvision_backbone",
]
