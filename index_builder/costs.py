"""What an index of each design costs, in bytes: the formulae behind a plan.

``n`` rows of ``w`` numbers, ``L`` lists, ``S`` shards, a code of ``c`` bytes:

    lists in memory   n (c + 4)                      code, row within the shard
                      + 4 w (L + 1)                  centroids, mean
                      + L (S (24 + 8) + 4 + 8)       FAISS's entry, its first code; norm, size
                      + signs of the rotation, and a graph over the centroids where they are many
    lists on disk     the same without n (c + 4) and the 24; instead two read buffers and one table
    graph             `graph_ram_bytes`
    flat              nothing, or the rows and a byte each

The tests hold them against the heap that opening takes, and against the files that are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from .embeddings.space import EmbeddingSpace
from .rotation import N_PASSES, window_of

Code = Literal["flat", "ivf-rabitq", "hnsw-sq8"]
Tier = Literal["memory", "disk"]
Rerank = Literal["source", "fp16", "sq8", "rabitq4"]

# Below this an exact scan takes about a tenth of a second on one core, for a whole batch.
EXACT_SCAN_BYTES = 256 << 20
# k-means: FAISS warns below 39 points a centroid (ClusteringParameters.min_points_per_centroid).
LEAST_POINTS_PER_LIST = 39
# Recall@10 that ranking all candidates by each copy reaches (docs/scaling.md).
MOST_RECALL: dict[Rerank, float] = {"source": 1.0, "fp16": 1.0, "sq8": 0.98, "rabitq4": 0.9}
READ_BUFFER_BYTES = 32 << 20  # of codes that are scanned together; another one fills meanwhile
PROCESS_BYTES = 256 << 20  # Python with NumPy, Arrow and FAISS, and what they allocate on the way
BATCH_BYTES = 32 << 20  # of float32 rows, read, rotated and coded together
_BATCH_COPIES = 6  # as read, as unit vectors, rotated, scores, codes; and the batch read ahead
_METADATA_BYTES = 128 << 20  # 262,144 rows of it, as Arrow reads, joins and keeps them
_TRAINING_BYTES = 128 << 20  # scores of points against centroids, and what decides among them
_LINKING_BYTES = 96 << 20  # codes that are linked together, as bytes and as float32
_CERTIFICATE_BYTES = 288 << 20  # blocks of scores of the exact search, candidates of the queries
_LIST_ENTRY_BYTES = 24  # faiss::OnDiskOneList: size, capacity, offset
_ROW_BYTES = 4  # row within a shard, uint32, in memory and on disk
_NPY_HEADER_BYTES = 128
# Beyond, lists are found by a graph over their centroids: comparing all takes longer.
MOST_COMPARED_LISTS = 16_384
MOST_WIDTH = (2**31 - 1) // 255**2  # of a graph: squared distances are 32-bit integers
N_LINKS = 32  # of a node of a graph on each level above the lowest, which has twice as many


class Design(NamedTuple):
    """What an index is, its rows aside; the fields are those of `planning.IndexPlan`."""

    code: Code
    bits: int
    tier: Tier
    rerank: Rerank
    n_lists: int

    @property
    def name(self) -> str:
        """The design in a few words, for tables."""
        place = "in memory" if self.tier == "memory" else "from disk"
        if self.code == "flat":
            return f"flat, {place}"
        copy = "" if self.rerank == "source" else f", {self.rerank} copy"
        if self.code == "hnsw-sq8":
            return f"hnsw-sq8{copy}"
        return f"ivf-rabitq, {self.n_lists} lists, {self.bits} bit, {place}{copy}"


def code_bytes(width: int, bits: int) -> int:
    """Return the bytes of a RaBitQ code.

    Notes
    -----
    One bit: a bit a coordinate, the distance to the centroid and the correction factor (Gao & Long
    2024, arXiv:2405.12497, section 3.2). More: the other bits, packed, and three more floats (Gao
    et al. 2024, arXiv:2409.09913, as FAISS 1.15 stores them).
    """
    if bits == 1:
        return -(-width // 8) + 8
    return -(-width // 8) + -(-width * (bits - 1) // 8) + 20


@dataclass(frozen=True)
class Costs:
    """Costs of the designs for some rows in some shards.

    Parameters
    ----------
    n_rows : int
    space : EmbeddingSpace
    dtype : {"float16", "float32"}
        Of the rows.
    shard_rows, n_shards : int
    """

    n_rows: int
    space: EmbeddingSpace
    dtype: str
    shard_rows: int
    n_shards: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored row."""
        return self.space.width * (2 if self.dtype == "float16" else 4)

    @property
    def fits_graph(self) -> bool:
        """Whether squared distances of 8-bit codes of this width are 32-bit integers."""
        return self.space.width <= MOST_WIDTH

    def ram(self, design: Design) -> int:
        """Return what the opened index keeps in memory."""
        if design.code == "flat":
            return self.n_rows * (self.row_bytes + 1) if design.tier == "memory" else 0
        if design.code == "hnsw-sq8":
            return graph_ram_bytes(self.n_rows, self.space.width)
        return lists_ram_bytes(self.n_rows, self.space.width, design, self.n_shards)

    def disk(self, design: Design) -> int:
        """Return what the index writes beside records and metadata."""
        tombstones = self.n_shards * _NPY_HEADER_BYTES
        if design.code == "flat":
            return tombstones
        width, n_lists = self.space.width, design.n_lists
        quantizer = 4 * width * (n_lists + 1) + N_PASSES * window_of(width) + 3 * _NPY_HEADER_BYTES
        if n_lists > MOST_COMPARED_LISTS:
            quantizer += graph_disk_bytes(n_lists, width) + 4 * _NPY_HEADER_BYTES + 8
        copy = self.n_rows * copy_row_bytes(design.rerank, width)
        copy += self.n_shards * _NPY_HEADER_BYTES * (design.rerank != "source")
        if design.code == "hnsw-sq8":
            codes = graph_disk_bytes(self.n_rows, width) + self.n_shards * (
                5 * _NPY_HEADER_BYTES + 8
            )
        else:
            codes = self.n_rows * (code_bytes(width, design.bits) + _ROW_BYTES)
            codes += self.n_shards * (8 * n_lists + 3 * _NPY_HEADER_BYTES)
        return quantizer + codes + copy + tombstones

    def build(self, design: Design, n_train: int) -> int:
        """Return what a process that builds needs at its peak: training, a shard, or measuring."""
        if design.code == "flat":
            return PROCESS_BYTES + _BATCH_COPIES * BATCH_BYTES
        train = self._training_bytes(design) + 4 * self.space.width * n_train
        # Opened for the certificate, from disk; a lossy copy holds centroids too.
        opened = self.ram(design._replace(tier="disk"))
        if design.rerank in ("sq8", "rabitq4"):
            opened += router_ram_bytes(self.space.width, design.n_lists)
        certificate = opened + _CERTIFICATE_BYTES + _METADATA_BYTES
        return max(PROCESS_BYTES + max(train, certificate), self.worker(design))

    def worker(self, design: Design) -> int:
        """Return what a process that builds shards alone needs."""
        if design.code == "flat":
            return PROCESS_BYTES + _BATCH_COPIES * BATCH_BYTES
        rows = min(self.shard_rows, self.n_rows)
        return PROCESS_BYTES + self._shard_bytes(design) + rows * self.shard_row_bytes(design)

    def most_training_rows(self, build_limit: int, design: Design) -> int:
        """Return the most rows that a build can train on within its limit."""
        rest = build_limit - PROCESS_BYTES - self._training_bytes(design)
        return max(0, rest // (4 * self.space.width))

    def most_shard_rows(self, build_limit: int, design: Design) -> int:
        """Return the most rows of a shard that a build has memory for within its limit."""
        rest = build_limit - PROCESS_BYTES - self._shard_bytes(design)
        return max(0, rest // self.shard_row_bytes(design))

    def shard_row_bytes(self, design: Design) -> int:
        """Return what a row of a shard takes in memory while the shard is built."""
        width = self.space.width
        if design.code == "hnsw-sq8":
            return graph_ram_bytes(1000, width) // 1000 + 2
        # Code, list and row of each, and the order by list with what sorting it takes.
        return code_bytes(width, design.bits) + 4 + 4 + 16

    def _training_bytes(self, design: Design) -> int:
        """Return what training takes beside the sample: centroids, and those of the turn before."""
        width, n_lists = self.space.width, design.n_lists
        linking = _LINKING_BYTES if n_lists > MOST_COMPARED_LISTS else 0
        centroids = router_ram_bytes(width, n_lists) + 4 * width * n_lists
        return centroids + linking + _TRAINING_BYTES

    def _shard_bytes(self, design: Design) -> int:
        """Return what building a shard takes beside its rows."""
        linking = _LINKING_BYTES if design.code == "hnsw-sq8" else 0
        router = router_ram_bytes(self.space.width, design.n_lists)
        return router + linking + _BATCH_COPIES * BATCH_BYTES + _METADATA_BYTES


def lists_ram_bytes(n_rows: int, width: int, design: Design, n_shards: int) -> int:
    """Return what opened lists keep in memory, for ``n_rows`` rows that are alive."""
    n_lists = design.n_lists
    per_list = n_lists * (8 * n_shards + 8)
    codes = n_rows * code_bytes(width, design.bits)
    if design.tier == "memory":
        own = codes + n_rows * _ROW_BYTES + n_shards * n_lists * _LIST_ENTRY_BYTES
    else:
        own = 2 * (min(READ_BUFFER_BYTES, codes) + n_lists * _LIST_ENTRY_BYTES)
    return router_ram_bytes(width, n_lists) + per_list + own


def router_ram_bytes(width: int, n_lists: int) -> int:
    """Return what mean, rotation, centroids, and the graph over them where there is one keep."""
    graph = graph_ram_bytes(n_lists, width) if n_lists > MOST_COMPARED_LISTS else 0
    return 4 * width * (n_lists + 1) + 4 * n_lists + N_PASSES * window_of(width) + graph


def copy_row_bytes(rerank: Rerank, width: int) -> int:
    """Return the bytes of a row of a copy."""
    if rerank == "source":
        return 0
    if rerank == "fp16":
        return 2 * width
    return width if rerank == "sq8" else -(-width // 2) + 4


def graph_ram_bytes(n_nodes: int, width: int) -> int:
    """Return what opened graphs keep in memory, all shards together.

    Notes
    -----
    Codes; links of the lowest level and, a node being on level l with probability N_LINKS**-l, of
    the others; FAISS's level (4 bytes) and offset (8) of each node; its row (4). A search adds a
    byte a node and thread, which FAISS keeps.
    """
    return int(n_nodes * (width + _link_bytes() + 16)) + 4 * width + N_PASSES * window_of(width)


def graph_disk_bytes(n_nodes: int, width: int) -> int:
    """Return the bytes of the files of all shards, but for headers of 128 bytes a file."""
    return int(n_nodes * (width + _link_bytes() + 5))


def _link_bytes() -> float:
    return 4 * (2 * N_LINKS + N_LINKS / (N_LINKS - 1))
