"""Data sources of your own: `sources.add`, in a file that --import names (docs/own_code.md)."""

from kd_core.data.sources import RawSplit, Source, add

__all__ = ["RawSplit", "Source", "add"]
