"""The view ids of cached views, for tools that write files of logits (docs/logits.md)."""

from kd_core.data.views import fixed_view_ids

__all__ = ["fixed_view_ids"]
