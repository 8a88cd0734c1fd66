"""How much is taken from a file before it is refused: every limit, in one place.

FORMAT.md §15 and the schemas state the same numbers, which tests compare. What an honest writer
makes stays far below; they bound the memory and the time of a refusal.
"""

from __future__ import annotations

MOST_JSON_BYTES = 64 * 2**20
"""Of a manifest, of a decompressed index, of a shard's header, of any other document."""
MOST_JSON_VALUES = 2**20
"""Objects, lists and commas in one of these; a parsed one costs some 100 bytes of memory."""
MOST_JSON_DEPTH = 64
"""Objects and lists inside one another."""

MOST_CONFIG_BYTES = 256 * 2**10
"""Of a configuration or a recipe; YAML is read slowly."""

MOST_DIGITS = 400
"""Of an integer there; float64 ends at 309."""

MOST_TASKS = 4096
MOST_MERGES = 1024
MOST_CODECS = 1024
MOST_PARTS = 1024
MOST_AXES = 16
MOST_EXPRESSION_NODES = 1024
"""Operations of one expression."""
MOST_LABEL_CHARACTERS = 1024
MOST_NAME_CHARACTERS = 4096
MOST_PATH_CHARACTERS = 256
LARGEST_SIZE = 2**53 - 1
"""Of an axis, of a file."""
LARGEST_SIDE = 2**32 - 1
"""Rows or columns of a part."""

UNVOUCHED_BYTES = 64 * 2**20
"""What a part may take decoded when no base vouches for the shapes of the tensors."""
UNVOUCHED_RATIO = 2**15
"""Or so many bytes for each stored one; no zstd frame holds more."""

MOST_OPCODES = 2**21
"""Of a pickle that is read as data."""
MOST_PICKLE_BYTES = 64 * 2**20
"""Of one that describes a module; its numbers lie outside."""
MOST_MEMBERS = 2**17
"""Of a torch archive: one for every stored tensor, and a few more. Of submodules, too."""
DEEPEST_MODULE = 64
"""Submodules inside one another."""
