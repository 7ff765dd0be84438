"""What a run's data is: counts, lengths and losses, as a page, JSON and CSV."""

from echoray.data.statistics.collect import Statistics, collect
from echoray.data.statistics.write import PAGE_FILE, make_statistics, write_statistics

__all__ = ["PAGE_FILE", "Statistics", "collect", "make_statistics", "write_statistics"]
