"""Search: open an index, find candidates in its lists, rank them exactly."""
