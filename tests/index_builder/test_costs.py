from __future__ import annotations

import faiss
import pytest

from index_builder.costs import (
    MOST_COMPARED_LISTS,
    MOST_WIDTH,
    Costs,
    Design,
    code_bytes,
    copy_row_bytes,
    graph_ram_bytes,
    lists_ram_bytes,
    router_ram_bytes,
)
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.scalar_codes import four_bit_bytes

CLIP = EmbeddingSpace("ViT-L-14/openai", "final", 1, 768, True)
LISTS = Design("ivf-rabitq", 1, "memory", "source", 1024)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [1, 7, 8, 9, 48, 63, 96, 101, 512, 768, 1027])
def test_code_bytes_are_those_of_faiss(width: int, bits: int) -> None:
    coarse = faiss.IndexFlatL2(width)
    coder = faiss.IndexIVFRaBitQ(coarse, width, 1, faiss.METRIC_L2, False, bits)
    assert code_bytes(width, bits) == coder.code_size


def test_bytes_of_a_copied_row() -> None:
    assert [copy_row_bytes(kind, 49) for kind in ("source", "fp16", "sq8")] == [0, 98, 49]
    assert copy_row_bytes("rabitq4", 49) == four_bit_bytes(49) == 29


def test_a_row_in_memory_costs_its_code_and_number() -> None:
    more = lists_ram_bytes(2_000_000, 768, LISTS, 1) - lists_ram_bytes(1_000_000, 768, LISTS, 1)
    assert more == 1_000_000 * (104 + 4)


def test_each_shard_costs_an_entry_and_a_beginning_of_each_list() -> None:
    one, three = (lists_ram_bytes(10**6, 768, LISTS, n_shards) for n_shards in (1, 3))
    assert three - one == 2 * 1024 * (24 + 8)


def test_lists_on_disk_cost_no_more_memory_for_more_rows() -> None:
    design = LISTS._replace(tier="disk")
    assert lists_ram_bytes(10**6, 768, design, 1) == lists_ram_bytes(10**9, 768, design, 1)
    # Codes that fill no buffer.
    assert lists_ram_bytes(1000, 768, design, 1) < lists_ram_bytes(10**6, 768, design, 1)


def test_many_lists_cost_a_graph() -> None:
    few, many = MOST_COMPARED_LISTS, MOST_COMPARED_LISTS + 1
    added = router_ram_bytes(768, many) - router_ram_bytes(768, few)
    assert added == graph_ram_bytes(many, 768) + 4 * 768 + 4


def test_a_flat_index_costs_its_rows_or_nothing() -> None:
    costs = Costs(1000, CLIP, "float32", 1000, 1)
    assert costs.ram(Design("flat", 0, "memory", "source", 0)) == 1000 * (3072 + 1)
    assert costs.ram(Design("flat", 0, "disk", "source", 0)) == 0


def test_the_width_of_graphs_is_that_of_their_distances() -> None:
    for width, fits in ((MOST_WIDTH, True), (MOST_WIDTH + 1, False)):
        space = EmbeddingSpace("m", "final", 1, width, True)
        assert Costs(1000, space, "float16", 1000, 1).fits_graph == fits


@pytest.mark.parametrize("limit", [1 << 30, 3 << 30])
def test_what_a_build_has_memory_for_is_what_it_needs(limit: int) -> None:
    costs = Costs(10**8, CLIP, "float16", 10**6, 100)
    n_train = costs.most_training_rows(limit, LISTS)
    assert limit - 4 * 768 < costs.build(LISTS, n_train) <= limit
    rows = costs.most_shard_rows(limit, LISTS)
    costs = Costs(10**8, CLIP, "float16", rows, -(-(10**8) // rows))
    assert limit - costs.shard_row_bytes(LISTS) < costs.build(LISTS, 0) <= limit


def test_a_lossy_copy_is_ranked_with_centroids_of_its_own() -> None:
    costs = Costs(10**7, CLIP, "float16", 10**6, 10)
    disk = Design("ivf-rabitq", 1, "disk", "source", MOST_COMPARED_LISTS)
    plain = costs.build(disk, 1)
    assert costs.build(disk._replace(rerank="fp16"), 1) == plain
    assert costs.build(disk._replace(rerank="sq8"), 1) >= plain
