"""Everything that a cluster gets."""
