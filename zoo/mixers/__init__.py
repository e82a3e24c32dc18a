"""Token mixers, one file each; importing the package registers them all."""

from zoo.mixers import channel, dwconv, mbconv, window

__all__ = ["channel", "dwconv", "mbconv", "window"]
