"""What people look at: the table on the terminal, the page, metrics.csv."""

from robustfg.reporting.page import write_page
from robustfg.reporting.table import print_summary

__all__ = ["print_summary", "write_page"]
