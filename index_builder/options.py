"""What the commands of an index share: options, and the collections, plans, executors of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .embeddings.terminal import FOLDER, space_option

if TYPE_CHECKING:
    from .embeddings.collection import Collection
    from .execution.contract import Executor
    from .planning import IndexPlan

queries_option = click.option(
    "--queries",
    type=FOLDER,
    help="Predicted embeddings, so that the certificate and the default effort hold for them too.",
)


def plan_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that decide the design of an index."""
    for option in (
        click.option(
            "--memory",
            metavar="SIZE",
            help="Strict limit for what the opened index keeps in memory, e.g. 64GiB. Building "
            "stays below it too, or below 1GiB where it is less.",
        ),
        click.option(
            "--disk",
            metavar="SIZE",
            help="Limit for the files of the index, the copy of the metadata not counted.",
        ),
        click.option(
            "--recall",
            default=0.95,
            show_default=True,
            type=click.FloatRange(0, 1, min_open=True),
            help="Recall@10 that the default effort must reach.",
        ),
        click.option(
            "--code",
            type=click.Choice(["flat", "ivf-rabitq", "hnsw-sq8"]),
            help="Design; by default chosen by rows and budgets, as the next four are.",
        ),
        click.option("--bits", type=click.IntRange(1, 4), help="Bits a coordinate of the codes."),
        click.option(
            "--tier",
            type=click.Choice(["memory", "disk"]),
            help="Where the codes stand while they are searched.",
        ),
        click.option(
            "--rerank",
            type=click.Choice(["source", "fp16", "sq8", "rabitq4"]),
            help="What ranks the candidates: the embedding folder, or a copy in the index.",
        ),
        click.option("--lists", type=click.IntRange(1), help="Inverted lists."),
        click.option("--rows-per-shard", type=click.IntRange(1), help="Rows of a shard."),
        space_option,
    )[::-1]:
        command = option(command)
    return command


def executor_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that decide who does the work."""
    for option in (
        click.option(
            "--executor",
            default="serial",
            show_default=True,
            type=click.Choice(["serial", "processes", "dask"]),
            help="Who builds the shards; the bytes are the same.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(1),
            help="Worker processes; by default one a core. Fewer, if --memory holds fewer.",
        ),
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="A running Dask scheduler: tcp://host:port, or its scheduler file.",
        ),
    )[::-1]:
        command = option(command)
    return command


def make_plan(
    n_rows: int,
    space: Any,
    dtype: str,
    *,
    is_local: bool,
    memory: str | None,
    disk: str | None,
    recall: float,
    lists: int | None,
    **design: Any,
) -> IndexPlan:
    """Plan an index from what the options say."""
    from .planning import plan_index
    from .sizes import parse_size

    return plan_index(
        n_rows,
        space,
        memory_bytes=parse_size(memory) if memory else None,
        disk_bytes=parse_size(disk) if disk else None,
        target_recall=recall,
        n_lists=lists,
        dtype=dtype,
        is_local=is_local,
        **design,
    )


def plan_for(source: Collection, **options: Any) -> IndexPlan:
    """Plan an index of embedding folders."""
    return make_plan(
        source.n_rows, source.space, source.dtype.name, is_local=source.is_local, **options
    )


def start_executor(
    name: str,
    workers: int | None,
    scheduler: str | None,
    *,
    worker_bytes: int | None = None,
    memory_bytes: int | None = None,
) -> AbstractContextManager[Executor]:
    """Start who does the work, within the memory of the plan where there is one."""
    from .execution import make_executor
    from .planning import FEWEST_BUILD_BYTES

    if scheduler is not None and name != "dask":
        raise click.UsageError("--scheduler goes with --executor dask.")
    limit = None if memory_bytes is None else max(memory_bytes, FEWEST_BUILD_BYTES)
    return make_executor(
        name,
        n_workers=workers,
        scheduler=scheduler,
        worker_bytes=worker_bytes,
        memory_bytes=limit,
    )


def open_collection(paths: tuple[Path, ...], space: str | None) -> Collection:
    """Open one or several embedding folders as one."""
    from .embeddings.collection import Collection
    from .embeddings.space import EmbeddingSpace

    return Collection.open(paths, space=EmbeddingSpace.parse(space) if space else None)
