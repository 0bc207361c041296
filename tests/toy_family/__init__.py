"""A family as a contributor would add it: this folder, a line in the registry, a config, an entry of tests."""
