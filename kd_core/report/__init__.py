"""What people read of a run: the console, the page, the plots."""

from kd_core.report.closing import closing_words, inspect, write_page
from kd_core.report.console import cost, epoch_line, summarize

__all__ = ["closing_words", "cost", "epoch_line", "inspect", "summarize", "write_page"]
