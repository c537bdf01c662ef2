import pytest

from benchmarks import attention_routes
from benchmarks.attention_routes import judge, rule


def points(**ms_by_queries):
    return [
        {"queries": int(queries[1:]), "route": route, "ms": ms}
        for queries, pair in ms_by_queries.items()
        for route, ms in zip(("folded", "projected"), pair, strict=True)
    ]


def test_where_projecting_is_faster_for_good_and_what_the_rule_costs(monkeypatch):
    monkeypatch.setattr(attention_routes, "rule", lambda queries: "folded" if queries < 8 else "projected")
    found = judge(points(k1=(1, 4), k2=(5, 4), k4=(3, 4), k8=(6, 4), k16=(12, 4)))
    assert found == {"turns_at": 8, "largest_loss": pytest.approx(5 / 4), "at_queries": 2}
    late = judge(points(k1=(1, 4), k16=(3, 4)))
    assert late == {"turns_at": None, "largest_loss": pytest.approx(4 / 3), "at_queries": 16}
    assert judge(points(k1=(4, 1)))["turns_at"] == 1
    assert judge([]) == {"turns_at": None, "largest_loss": None, "at_queries": None}


def test_the_rule_is_that_of_the_module():
    assert [rule(queries) for queries in (30, 31)] == ["folded", "projected"]
