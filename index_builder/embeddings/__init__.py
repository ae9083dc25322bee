"""The ground floor: what an embedding set is, in memory and on disk."""
