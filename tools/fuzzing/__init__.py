"""The parts of fuzz.py: what is fed (targets), how it is changed (mutations), and what it led to (trial)."""
