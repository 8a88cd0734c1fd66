"""LoRA adapters in PEFT's format, read as checkpoints of base + adapter."""
