"""The procedural world of the embedded models: scenes, captions, rendering, and reading attributes back from pixels."""
