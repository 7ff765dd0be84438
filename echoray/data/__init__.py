"""From raw studies to tokenized shards and packed batches."""
