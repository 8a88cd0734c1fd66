"""The bench behind docs/threat-model.md: random damage to artifacts, kills of writers."""
