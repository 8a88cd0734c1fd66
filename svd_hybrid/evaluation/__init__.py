"""Scoring models: base, fine-tunes, and what an artifact gives back."""
