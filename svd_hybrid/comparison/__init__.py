"""Choosing among merges: grids, selection on validation data, weight search."""
