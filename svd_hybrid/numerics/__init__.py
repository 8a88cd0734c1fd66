"""Pure tensor mathematics: knows no file, no model, no command line."""
