"""The diff room: what a model's values are, and how two models differ."""

from weighbridge.diff.digest import Digest, cached, digest

__all__ = ["Digest", "cached", "digest"]
