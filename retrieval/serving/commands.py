"""The serve command: indexes and runs over HTTP."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from index_builder.embeddings.terminal import EXISTING

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class NamedFolder(click.ParamType[tuple[str, Path]]):
    """``NAME=FOLDER``, or a folder that goes by its own name."""

    name = "[NAME=]FOLDER"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        """Return name and folder."""
        if isinstance(value, tuple):
            return value
        name, equals, folder = str(value).partition("=")
        if not equals or "/" in name:
            folder = str(value)
            name = Path(folder).resolve().name
        if not re.fullmatch(r"[\w.@+-][\w .@+-]{0,99}", name):
            self.fail(
                f"{name!r} is no name; say NAME={folder} with letters and digits.", param, ctx
            )
        return name, Path(folder)


@click.command(short_help="Serve indexes over HTTP, with a web page.")
@click.argument("indexes", nargs=-1, type=NamedFolder(), metavar="[NAME=]INDEX...")
@click.option(
    "--indices-paths",
    type=EXISTING,
    help="clip-retrieval's indices_paths.json, its folders being indexes of voxseek.",
)
@click.option(
    "--embeddings",
    multiple=True,
    type=NamedFolder(),
    help="Where an index's embedding folder is now, if it moved; NAME is the index's. Of several "
    "folders of an index, each in its order.",
)
@click.option("--run", "runs", multiple=True, type=NamedFolder(), help="A run to ask ...")
@click.option("--subject", "subjects", multiple=True, type=EXISTING, help="... and its subject.")
@click.option(
    "--confidence",
    "confidences",
    multiple=True,
    type=EXISTING,
    help="A fitted confidence (voxseek confidence fit) of an index and a run.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Another one needs a token.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: a free one."
)
@click.option(
    "--token-file",
    type=EXISTING,
    help="A file with the token that clients must send; else VOXSEEK_TOKEN.",
)
@click.option("--encoder", help="For words and pictures: the encoder, if the index doesn't say it.")
@click.option("--pretrained", help="Its weights: an open_clip tag or a file.")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Where searches and encoders compute: cpu, or GPUs such as cuda or cuda:0,cuda:1.",
)
@click.option(
    "--most-k", default=10_000, show_default=True, type=click.IntRange(1), help="Hits a query."
)
@click.option(
    "--most-queries",
    default=1024,
    show_default=True,
    type=click.IntRange(1),
    help="Queries a request.",
)
@click.option(
    "--most-body", default="8MiB", show_default=True, metavar="SIZE", help="Bytes of a request."
)
@click.option(
    "--queue",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Requests that may wait; another one is refused.",
)
@click.option(
    "--timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Seconds for a request to arrive, and for its answer.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads of a search; by default all cores but one, which has the requests.",
)
@click.option(
    "--aesthetic-vectors",
    type=EXISTING,
    help="A folder of rating0.npy to rating9.npy; makes clip-retrieval's aesthetic_score work.",
)
@click.option("--allow-fetch", is_flag=True, help="Fetch pictures that clients name by URL.")
def serve(indexes: tuple[tuple[str, Path], ...], **options: Any) -> None:
    """Serve INDEXES, and the brains of runs, until interrupted; the address goes to stdout.

    A web page at /, our own API at /api (described by /openapi.json), and clip-retrieval's protocol
    at /knn-service.

    \b
    Example:  voxseek serve index/
              voxseek serve laion5B-L-14=/data/index --run run/ --subject subj01/ --port 1234
              voxseek serve index/ --host 0.0.0.0 --token-file token.txt
    """
    if not indexes and options["indices_paths"] is None:
        raise click.UsageError("name an index, or give --indices-paths.")
    if len(options["runs"]) != len(options["subjects"]):
        raise click.UsageError("give a --subject for each --run.")
    _set_threads(options.pop("threads"))
    from .start import StartOptions, start

    start(StartOptions(indexes, **options), tell=click.echo)


def _set_threads(n_threads: int | None) -> None:
    """Tell NumPy and FAISS their threads; they read it once, when they are loaded.

    Threads that wait for work must not burn the cores that requests are read with (OpenMP 5.0,
    section 6.7).
    """
    from index_builder.execution.cores import available_cores

    n_threads = n_threads or max(1, available_cores() - 1)
    os.environ.update({name: str(n_threads) for name in _THREAD_VARIABLES})
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
