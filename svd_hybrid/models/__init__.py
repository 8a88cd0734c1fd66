"""Live models: a checkpoint's tensors in a module that runs. Needs the extra `[eval]`."""
