"""The version of this package, where nodes can read it, too."""

__version__ = "0.1.0"
