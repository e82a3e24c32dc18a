"""What people do with a backbone: predict labels, look at feature pyramids."""

from zoo.vision.features import Pyramid, extract, save_picture
from zoo.vision.images import read_image
from zoo.vision.predict import Prediction, load_classifier, predict

__all__ = ["Prediction", "Pyramid", "extract", "load_classifier", "predict", "read_image", "save_picture"]
