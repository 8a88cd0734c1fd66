"""Calibration and evaluation data: what a user names → batches a model takes. Never invented."""
