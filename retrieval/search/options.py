"""Options of commands that search: how much effort a query is worth."""

from __future__ import annotations

import click

breadth_option = click.option(
    "--n-probe",
    "--ef-search",
    "breadth",
    type=click.IntRange(1),
    help="Lists to scan, or nodes of a graph to keep in view; by default as certified.",
)
candidates_option = click.option(
    "--candidates", type=click.IntRange(1), help="Rows to rank exactly; by default as certified."
)
