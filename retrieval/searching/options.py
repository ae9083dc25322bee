"""Options of commands that search: how much effort a query is worth, and what may be found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from index_builder.embeddings.space import EmbeddingSpace

    from .request import SearchRequest

EXCLUDED_BYTES = 1 << 30
_SHARE = click.FloatRange(0, 1)
_COSINE = click.FloatRange(0, 1, min_open=True)
_Command = TypeVar("_Command", bound=Callable[..., Any])

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
_FILTERS = (
    click.option(
        "--where",
        metavar="SQL",
        help="Find only rows whose metadata fulfil a predicate: 'width >= 512 AND caption ILIKE "
        "''%dog%''', for example.",
    ),
    click.option(
        "--unsafe-from",
        type=_SHARE,
        help="Leave out rows whose punsafe isn't below this, where the index knows it; 0.5 by "
        "default.",
    ),
    click.option("--allow-unsafe", is_flag=True, help="Find rows whatever their punsafe."),
    click.option(
        "--watermarked-from",
        type=_SHARE,
        help="Leave out rows whose pwatermark isn't below this; LAION's own threshold is 0.8.",
    ),
    click.option(
        "--dedup/--no-dedup",
        help="Fold near-duplicates of a better hit into it; they are kept by default.",
    ),
    click.option(
        "--duplicate-from",
        type=_COSINE,
        help="With --dedup: the cosine from which two rows are near-duplicates; 0.94 by default.",
    ),
    click.option(
        "--exclude",
        type=click.Path(exists=True, path_type=Path),
        metavar="EMBEDDINGS",
        help="Vectors (embedding folder or .npy) of stimuli whose copies must not be found.",
    ),
    click.option(
        "--exclude-from",
        type=_COSINE,
        help="With --exclude: the cosine from which a row is a copy; 0.94 by default.",
    ),
    click.option(
        "--aesthetic-weight",
        default=0.0,
        type=float,
        help="Order hits by cosine + WEIGHT * aesthetic / 10; scores stay cosines.",
    ),
)


def filter_options(command: _Command) -> _Command:
    """Add the options that say what may be found; `read_request` reads them."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


def read_request(
    k: int, breadth: int | None, candidates: int | None, **values: Any
) -> SearchRequest:
    """Return the request that the options of a command make.

    Parameters
    ----------
    k, breadth, candidates
        Hits a query, and the effort.
    values
        Those of `filter_options`, by name.

    Raises
    ------
    click.UsageError
        If options contradict each other.
    SearchError
        If the excluded vectors would take more than 1 GiB as float32.
    QueryError, EmbeddingError
        If they can't be read.
    """
    from .request import DUPLICATE_FROM, UNSAFE_FROM, SearchRequest

    if values["allow_unsafe"] and values["unsafe_from"] is not None:
        raise click.UsageError("give either --unsafe-from or --allow-unsafe.")
    if values["duplicate_from"] is not None and not values["dedup"]:
        raise click.UsageError("--duplicate-from needs --dedup.")
    if values["exclude_from"] is not None and values["exclude"] is None:
        raise click.UsageError("--exclude-from needs --exclude EMBEDDINGS.")
    unsafe_from = UNSAFE_FROM if values["unsafe_from"] is None else values["unsafe_from"]
    duplicate_from = values["duplicate_from"] or DUPLICATE_FROM
    excluded, space = _read_excluded(values["exclude"]) if values["exclude"] else (None, None)
    return SearchRequest(
        k,
        breadth=breadth,
        n_candidates=candidates,
        where=values["where"],
        unsafe_from=None if values["allow_unsafe"] else unsafe_from,
        watermarked_from=values["watermarked_from"],
        duplicate_from=duplicate_from if values["dedup"] else None,
        excluded=excluded,
        excluded_from=values["exclude_from"] or DUPLICATE_FROM,
        excluded_space=space,
        aesthetic_weight=values["aesthetic_weight"],
    )


def _read_excluded(path: Path) -> tuple[Any, EmbeddingSpace | None]:
    """Return excluded vectors (m, width), in their stored dtype, and their space if it is known."""
    import numpy as np

    from ..errors import SearchError
    from .queries import load_queries

    stored = load_queries(path)
    n_bytes = 4 * stored.n_queries * stored.width
    if n_bytes > EXCLUDED_BYTES:
        raise SearchError(
            f"{path} holds {stored.n_queries} vectors of {stored.width} numbers, {n_bytes} bytes "
            f"as float32; at most {EXCLUDED_BYTES} may be excluded: give the stimuli alone."
        )
    return np.concatenate(list(stored.iter_batches(batch_queries=4096))), stored.space
