"""The artifact directory: its format, its writer, its reader, its verifier."""
