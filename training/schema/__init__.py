"""The fields of a recipe: every section, what its numbers mean, and the range of each.

A section with ``kind`` is one of several forms, told apart by that field. An optional section that
a recipe does not have is a part that its model does not have.
"""
