"""s2video: text to video with S²-Guidance, on one GPU or many."""

__version__ = "0.1.0"
__all__ = ["__version__"]
