"""The procedural world of `shapes-wan`: scenes, captions, rendering, and reading attributes back from pixels."""
