"""Deduplication: the decisions of comparing each text in order with all that were kept, without doing so."""

from echoray.data.dedup.distributed import deduplicated
from echoray.data.dedup.engine import Decision, Deduplicator

__all__ = ["Decision", "Deduplicator", "deduplicated"]
