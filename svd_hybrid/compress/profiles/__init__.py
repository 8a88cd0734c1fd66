"""Profiles: named ways to store a stack of deltas."""
