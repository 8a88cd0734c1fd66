"""Layer statistics collected from live models: what each layer's inputs look like, per task."""
