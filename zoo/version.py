"""The version, apart from everything else, as it is written into files."""

__version__ = "0.1.0"
