"""What an artifact gives back in the formats of other tools."""
