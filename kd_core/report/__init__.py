"""What people read of a run: the console, the page, the plots."""

from kd_core.report.closing import closing_words, inspect, unlike_now, write_page
from kd_core.report.console import cost, epoch_line, over_test_epochs, summarize

__all__ = [
    "closing_words", "cost", "epoch_line", "inspect", "over_test_epochs", "summarize", "unlike_now", "write_page",
]  # fmt: skip
