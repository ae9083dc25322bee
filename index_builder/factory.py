"""The FAISS objects of an index, and the only place of this package that imports FAISS.

`IndexIVFRaBitQ` with its lists in plain arrays, rather than the FastScan variant: one layout for
every number of bits, in memory and on disk, and lists of exactly the size of their codes (FastScan
pads them to 32 and rounds the memory up to a power of two). docs/index.md has the rates of both.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import faiss
import numpy as np

QUERY_BITS = 4  # of the quantized query; 8 finds 0.1 % more after re-ranking, in 1.3 of the time
_PLACE_BITS = 32  # of a pair of list and place that FAISS reports as one number (lo_build)


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
    if not n_lists:
        return coarse, np.empty((0, width), np.float32)
    coarse.add(np.ascontiguousarray(centroids, np.float32))
    view = faiss.rev_swig_ptr(coarse.get_xb(), n_lists * width).reshape(n_lists, width)
    return coarse, view


def has_gpu() -> bool:
    """Tell whether the installed FAISS sees a GPU."""
    return bool(faiss.get_num_gpus())


class GpuDirections:
    """Unit vectors on the first GPU, compared with points there.

    Parameters
    ----------
    units : ndarray of shape (n, width), float32, unit rows
    """

    def __init__(self, units: np.ndarray) -> None:
        self._resources = faiss.StandardGpuResources()
        self._index = faiss.GpuIndexFlatIP(self._resources, units.shape[1])
        self._index.add(np.ascontiguousarray(units, np.float32))

    def nearest(self, points: np.ndarray, k: int) -> np.ndarray:
        """Return the ``k`` of largest inner product with each point (n, width): (n, k), int64."""
        numbers: np.ndarray = self._index.search(np.ascontiguousarray(points, np.float32), k)[1]
        return numbers


def make_coder(coarse: Any, bits: int) -> Any:
    """Return what codes vectors against the centroids of ``coarse``, which the caller keeps."""
    coder = faiss.IndexIVFRaBitQ(coarse, coarse.d, coarse.ntotal, faiss.METRIC_L2, False, bits)
    coder.is_trained = True  # RaBitQ has nothing to learn beside the centroids
    coder.qb = QUERY_BITS
    return coder


def encode(coder: Any, vectors: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Return codes of shape (n, code_size), uint8.

    Parameters
    ----------
    coder
        From `make_coder`.
    vectors : ndarray of shape (n, width), float32
        Centered and rotated.
    lists : ndarray of shape (n,), int64
        The list of each vector.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    lists = np.ascontiguousarray(lists, np.int64)
    codes = np.zeros((len(vectors), coder.code_size), np.uint8)
    coder.encode_vectors(
        len(vectors),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(lists),
        faiss.swig_ptr(codes),
        False,
    )
    return codes


class CodeLists:
    """Inverted lists that FAISS scans where they stand, in an array of the caller's.

    FAISS's own holder of lists that lie in one block of memory, meant for a mapped file, is pointed
    at the array. It never maps, moves or frees anything.

    Parameters
    ----------
    coarse
        From `make_coarse`; the caller keeps it.
    bits : int
        Of a code, a coordinate.
    """

    def __init__(self, coarse: Any, bits: int) -> None:
        self._index = make_coder(coarse, bits)
        self._index.own_fields = False
        self.n_lists = int(coarse.ntotal)
        self.code_size = int(self._index.code_size)
        self._lists = faiss.OnDiskInvertedLists(coarse.ntotal, self.code_size, "")
        self._lists.prefetch_nthread = 0
        self._index.replace_invlists(self._lists, False)
        # One faiss::OnDiskOneList a list: its size, its capacity, and where its codes begin.
        address = int(self._lists.lists.data().this)
        entries = (ctypes.c_uint64 * (3 * coarse.ntotal)).from_address(address)
        self._entries = np.frombuffer(entries, np.uint64).reshape(coarse.ntotal, 3)
        self._entries[:] = 0
        self._codes: np.ndarray | None = None
        weakref.finalize(self, _let_go, self._lists)

    def show(
        self, codes: np.ndarray, lists: np.ndarray, sizes: np.ndarray, firsts: np.ndarray
    ) -> None:
        """Point at codes; lists that aren't named keep what they were shown last.

        Parameters
        ----------
        codes : ndarray of shape (n_bytes,), uint8, C-contiguous
            Stays as it is until other codes are shown.
        lists : ndarray of shape (m,), int64
            Numbers of lists.
        sizes, firsts : ndarray of shape (m,), int64
            Codes of each, and the byte of ``codes`` at which they begin.
        """
        if len(lists) and int((firsts + sizes * self.code_size).max()) > len(codes):
            raise ValueError("a list ends beyond the codes that were shown")
        self._codes = codes
        self._lists.ptr = faiss.swig_ptr(codes) if len(codes) else None
        self._entries[lists] = np.stack([sizes, sizes, firsts], axis=1).astype(np.uint64)

    def search(
        self, vectors: np.ndarray, k: int, lists: np.ndarray, distances: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the ``k`` nearest codes in the given lists.

        Parameters
        ----------
        vectors : ndarray of shape (n_queries, width), float32
        k : int
        lists : ndarray of shape (n_queries, n_probe), int64
            -1: none.
        distances : ndarray of shape (n_queries, n_probe), float32
            Squared distance of each query to the centroid of each list.

        Returns
        -------
        estimates : ndarray of shape (n_queries, k), float32
            Of squared distances.
        list_of, place : ndarray of shape (n_queries, k), int64
            List of each code, and place in it; -1 where the lists hold fewer.
        """
        parameters = faiss.IVFRaBitQSearchParameters()
        parameters.nprobe = lists.shape[1]
        parameters.qb = QUERY_BITS
        vectors = np.ascontiguousarray(vectors, np.float32)
        lists = np.ascontiguousarray(lists, np.int64)
        distances = np.ascontiguousarray(distances, np.float32)
        estimates = np.empty((len(vectors), k), np.float32)
        pairs = np.empty((len(vectors), k), np.int64)
        # The wrapped method takes no parameters object, and setting nprobe on the index would race.
        self._index.search_preassigned_c(
            len(vectors),
            faiss.swig_ptr(vectors),
            k,
            faiss.swig_ptr(lists),
            faiss.swig_ptr(distances),
            faiss.swig_ptr(estimates),
            faiss.swig_ptr(pairs),
            True,
            parameters,
        )
        place = np.where(pairs < 0, -1, pairs & ((1 << _PLACE_BITS) - 1))
        return estimates, pairs >> _PLACE_BITS, place


def inner_products(queries: np.ndarray, vectors: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the inner product of each query and each of its vectors.

    Parameters
    ----------
    queries : ndarray of shape (n_queries, width), float32
    vectors : ndarray of shape (n_vectors, width), float32
    places : ndarray of shape (n_queries, m), int64
        Rows of ``vectors``; -1: none.

    Returns
    -------
    products : ndarray of shape (n_queries, m), float32
        -infinity where there is none.
    """
    queries, vectors = (np.ascontiguousarray(each, np.float32) for each in (queries, vectors))
    places = np.ascontiguousarray(places, np.int64)
    products = np.empty(places.shape, np.float32)
    faiss.fvec_inner_products_by_idx(
        *(faiss.swig_ptr(array) for array in (products, queries, vectors, places)),
        queries.shape[1],
        *places.shape,
    )
    return products


def _let_go(lists: Any) -> None:
    lists.ptr = None  # FAISS would unmap it


# Graphs over codes of one byte a coordinate.


def make_graph(width: int, n_links: int, breadth: int, n_nodes: int) -> Any:
    """Return an empty graph that compares whole numbers from 0 to 255 in integer arithmetic.

    Parameters
    ----------
    width : int
        At most 33,025: a squared distance fits in 31 bits.
    n_links : int
        Of a node on each level above the lowest, which has twice as many.
    breadth : int
        Nodes in view while the links of a new one are chosen.
    n_nodes : int
        For which memory is set aside; arrays that grow would take up to three times as much.
    """
    graph = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_8bit_direct, n_links)
    graph.is_trained = True  # codes are the numbers themselves
    graph.hnsw.efConstruction = breadth
    codes = faiss.downcast_index(graph.storage).codes
    for array, size in (
        (codes, n_nodes * width),
        (graph.hnsw.neighbors, n_nodes * graph.hnsw.cum_nb_neighbors(1)),
    ):
        array.resize(size)
        array.clear()  # and keeps the capacity
    return graph


def add_nodes(graph: Any, codes: np.ndarray) -> None:
    """Append nodes (n, width), uint8; FAISS 1.15.1 links them alike on any number of threads."""
    graph.add(codes.astype(np.float32))


def read_graph(graph: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return codes, levels and links of a graph, views of its memory, and its entry.

    Returns
    -------
    codes : ndarray of shape (n, width), uint8
    levels : ndarray of shape (n,), int32
        How many levels each node is on.
    links : ndarray of shape (n_links,), int32
        Node by node, and of a node level by level from the lowest; -1: none.
    entry : int
        The node where searches start; -1 in an empty graph.
    """
    hnsw, stored = graph.hnsw, faiss.downcast_index(graph.storage).codes
    codes = faiss.rev_swig_ptr(stored.data(), stored.size()).reshape(graph.ntotal, graph.d)
    links = faiss.rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size())
    return codes, faiss.vector_to_array(hnsw.levels), links, hnsw.entry_point


def link_bounds(graph: Any) -> np.ndarray:
    """Return where the links of each level begin among those of a node: (most levels + 1,)."""
    bounds: np.ndarray = faiss.vector_to_array(graph.hnsw.cum_nneighbor_per_level)
    return bounds


def fill_graph(
    graph: Any, codes: np.ndarray, levels: np.ndarray, links: np.ndarray, entry: int
) -> None:
    """Make an empty graph one over arrays as `read_graph` returns them, without a copy.

    The caller keeps ``codes`` and ``links`` alive and has checked that no link leads astray.
    """
    hnsw, storage = graph.hnsw, faiss.downcast_index(graph.storage)
    offsets = np.zeros(len(levels) + 1, np.uint64)
    np.cumsum(link_bounds(graph)[levels], out=offsets[1:], dtype=np.uint64)
    faiss.copy_array_to_vector(levels.astype(np.int32), hnsw.levels)
    faiss.copy_array_to_vector(offsets, hnsw.offsets)
    hnsw.neighbors = _view(faiss.MaybeOwnedVectorInt32(), links)
    storage.codes = _view(faiss.MaybeOwnedVectorUInt8(), codes)
    hnsw.entry_point, hnsw.max_level = entry, int(levels.max()) - 1
    graph.ntotal = storage.ntotal = len(levels)


def _view(vector: Any, array: np.ndarray) -> Any:
    vector.is_owned = False
    vector.view_data = vector.c_ptr = faiss.swig_ptr(array)
    vector.view_size = vector.c_size = array.size
    return vector


def search_graph(
    graph: Any, queries: np.ndarray, k: int, breadth: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return squared distances (n_queries, k), float32, and nodes, int64; -1 where fewer are found.

    Parameters
    ----------
    graph
    queries : ndarray of shape (n_queries, width), uint8
    k : int
    breadth : int
        Nodes in view while the graph is walked, at least ``k``.
    allowed : ndarray of shape (ceil(n / 8),), uint8, or None
        A bit a node, the lowest first: whether it may be found. Others are walked through.
    """
    parameters = faiss.SearchParametersHNSW(sel=_selector(allowed))
    parameters.efSearch = breadth
    distances, nodes = graph.search(queries.astype(np.float32), k, params=parameters)
    return distances, nodes


def scan_graph(
    graph: Any, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `search_graph` does, from a comparison with all nodes."""
    parameters = faiss.SearchParameters(sel=_selector(allowed))
    distances, nodes = graph.storage.search(queries.astype(np.float32), k, params=parameters)
    return distances, nodes


def _selector(allowed: np.ndarray | None) -> Any:
    return None if allowed is None else faiss.IDSelectorBitmap(allowed)
