"""mkmeta: an offline manifest compiler for overlayfs metadata layers over read-only software volumes."""

__version__ = "0.1.0"
__all__ = ["__version__"]
