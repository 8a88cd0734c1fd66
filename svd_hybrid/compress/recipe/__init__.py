"""mergekit recipes as configurations of ours."""
