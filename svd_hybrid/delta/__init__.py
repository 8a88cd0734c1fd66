"""Expressions: how the stored parts of one tensor give its delta. Reload knows these, no method."""
