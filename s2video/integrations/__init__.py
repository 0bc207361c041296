"""S²-Guidance for diffusers pipelines and guiders."""
