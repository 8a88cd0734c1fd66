"""A small model family trained on the spot, so that every command can be tried offline."""
