"""The FAISS objects of an index, and the only place of this package that imports FAISS.

`IndexIVFRaBitQ` with its lists in plain arrays, rather than the FastScan variant: lists of exactly
the size of their codes (FastScan pads them to 32 and rounds the memory up to a power of two) for
half the speed or better (measured with 1.15.1, AVX2).
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

QUERY_BITS = 4  # of the quantized query; 8 finds 0.1 % more after re-ranking, in 1.3 of the time


def faiss_version() -> str:
    """Return the version of the FAISS that is installed."""
    version: str = faiss.__version__
    return version


def set_threads(n_threads: int) -> None:
    """Set the OpenMP threads of FAISS calls made by the calling thread."""
    faiss.omp_set_num_threads(n_threads)


def make_coarse(centroids: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return FAISS's holder of centroids (n_lists, width) and a view of its memory.

    The view is the one copy of the centroids: shards and routing share it.
    """
    n_lists, width = centroids.shape
    coarse = faiss.IndexFlatL2(width)
    coarse.add(np.ascontiguousarray(centroids, np.float32))
    view = faiss.rev_swig_ptr(coarse.get_xb(), n_lists * width).reshape(n_lists, width)
    return coarse, view


def make_lists(coarse: Any) -> Any:
    """Return an `IndexIVFRaBitQ` with empty lists over ``coarse``, which the caller keeps alive."""
    index = faiss.IndexIVFRaBitQ(coarse, coarse.d, coarse.ntotal, faiss.METRIC_L2)
    index.own_fields = False
    index.is_trained = True  # one-bit RaBitQ has nothing to learn beside the centroids
    index.qb = QUERY_BITS
    return index


def encode(index: Any, vectors: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Return codes of shape (n, code_size), uint8.

    Parameters
    ----------
    index : IndexIVFRaBitQ
    vectors : ndarray of shape (n, width), float32
        Centered and rotated.
    lists : ndarray of shape (n,), int64
        The list of each vector.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    lists = np.ascontiguousarray(lists, np.int64)
    codes = np.zeros((len(vectors), index.code_size), np.uint8)
    index.encode_vectors(
        len(vectors),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(lists),
        faiss.swig_ptr(codes),
        False,
    )
    return codes


def fill_lists(
    index: Any, codes: np.ndarray, rows: np.ndarray, sizes: np.ndarray, *, first_id: int
) -> None:
    """Append codes that are grouped by list.

    Parameters
    ----------
    index : IndexIVFRaBitQ
    codes : ndarray of shape (n, code_size), uint8
        This and ``rows`` may be memory-mapped; they are copied list by list.
    rows : ndarray of shape (n,), uint32
        Counted from ``first_id``.
    sizes : ndarray of shape (n_lists,), int64
        Sums to n.
    first_id : int
    """
    start = 0
    for list_number, size in enumerate(sizes.tolist()):
        if size:
            piece = np.ascontiguousarray(codes[start : start + size])
            piece_ids = rows[start : start + size].astype(np.int64) + first_id
            index.invlists.add_entries(
                list_number, size, faiss.swig_ptr(piece_ids), faiss.swig_ptr(piece)
            )
            start += size
    index.ntotal += start


def search_lists(
    index: Any, vectors: np.ndarray, k: int, lists: np.ndarray, distances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return estimated squared distances and ids of the ``k`` nearest codes in the given lists.

    Parameters
    ----------
    index : IndexIVFRaBitQ
    vectors : ndarray of shape (n_queries, width), float32
    k : int
    lists : ndarray of shape (n_queries, n_probe), int64
    distances : ndarray of shape (n_queries, n_probe), float32
        Squared distance of each query to the centroid of each list.

    Returns
    -------
    estimates : ndarray of shape (n_queries, k), float32
    ids : ndarray of shape (n_queries, k), int64
        -1 where the lists hold fewer.
    """
    parameters = faiss.IVFRaBitQSearchParameters()
    parameters.nprobe = lists.shape[1]
    parameters.qb = QUERY_BITS
    vectors = np.ascontiguousarray(vectors, np.float32)
    lists = np.ascontiguousarray(lists, np.int64)
    distances = np.ascontiguousarray(distances, np.float32)
    estimates = np.empty((len(vectors), k), np.float32)
    ids = np.empty((len(vectors), k), np.int64)
    # The wrapped method takes no parameters object, and setting nprobe on the index would race.
    index.search_preassigned_c(
        len(vectors),
        faiss.swig_ptr(vectors),
        k,
        faiss.swig_ptr(lists),
        faiss.swig_ptr(distances),
        faiss.swig_ptr(estimates),
        faiss.swig_ptr(ids),
        False,
        parameters,
    )
    return estimates, ids
