"""The version of the package, by itself: anybody may ask for it."""

__version__ = "0.1.0"
