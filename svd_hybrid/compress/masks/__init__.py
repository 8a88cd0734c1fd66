"""Masks of a family: combined for a run, built as TALL masks, and what they cover."""
