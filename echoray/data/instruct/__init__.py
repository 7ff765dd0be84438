"""Instruction tuning data: conversations generated from templates, deduplicated, screened and reviewed."""
