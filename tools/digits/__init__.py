"""Parts of tools/mnist.py: small diffusion transformers on real handwritten digits, and what S² does to them."""
