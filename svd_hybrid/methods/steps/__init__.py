"""Steps that several merge rules share: trims, drops, multi-task vectors, decompositions."""
