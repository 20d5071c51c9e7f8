"""From files to batches: rows, checked; prompts, rendered; trees, packed."""
