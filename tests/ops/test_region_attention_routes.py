"""The rule that chooses a route: the operations counted by hand, and where it turns."""

from art_kernels.region_attention.routes import cheaper_route


def test_operations_counted_by_hand():
    # K = 1, H = 2, N = 3, C = 4: folded 2·1·4·(E + 6), projected 2·3·E·(4 + 1); equal at E = 48 / 22.
    sizes = {"queries": 1, "regions": 3, "region_dim": 4, "num_heads": 2}
    assert cheaper_route(embed_dim=2, **sizes) == "projected"  # 64 against 60
    assert cheaper_route(embed_dim=4, **sizes) == "folded"  # 80 against 120


def test_few_queries_fold_and_many_project():
    sizes = {"regions": 196, "region_dim": 256, "embed_dim": 256, "num_heads": 8}
    assert [cheaper_route(queries=count, **sizes) for count in (1, 2, 16, 30, 31, 196)] == ["folded"] * 4 + [
        "projected"
    ] * 2
    # K = 1 over many tokens, as a global block of a video transformer asks.
    assert cheaper_route(queries=1, regions=1568, region_dim=768, embed_dim=768, num_heads=12) == "folded"
