"""S²-Guidance inside other people's pipelines."""
