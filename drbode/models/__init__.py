"""Networks: loaded, given the tree attention, and wrapped by a fine-tuning method."""
