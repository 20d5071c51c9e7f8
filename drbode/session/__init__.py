"""A training run as a whole: prepared, measured, taken through its stages, recorded."""
