"""Metadata of rows: columns of an index's Arrow files, memory-mapped."""
