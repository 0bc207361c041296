"""Fixtures of the tests of a server."""

from browsers import browser, chromium

__all__ = ["browser", "chromium"]
