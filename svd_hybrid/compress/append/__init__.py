"""Growing an artifact by further fine-tunes, without the ones it holds."""
