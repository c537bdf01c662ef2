import pytest

from benchmarks.attention_charts import crossing_figure, shares_figure, times_figure
from benchmarks.attention_providers import BASELINE, OURS


def record(provider, ms, shape="detr", pass_name="both", dtype="float32"):
    return {
        "shape": shape, "pass": pass_name, "dtype": dtype, "provider": provider, "frames": 8, "queries": 100,
        "regions": 1064, "region_dim": 256, "norm_regions": False, "num_heads": 8, "median_ms": ms,
        "p20_ms": 0.9 * ms, "p80_ms": 1.2 * ms, "speedup_over_mha": 12 / ms, "share_of_copy": 1 / ms,
    }  # fmt: skip


def test_times_stand_beside_their_bars_the_slowest_on_top():
    figure = times_figure([record(OURS, 4.0), record(BASELINE, 12.0), record("sdpa", 124.0)], "a device")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["124 ms   0.10×", "12.0 ms", "4.00 ms   3.00×"]
    bars = {label.get_text(): bar.get_width() for label, bar in zip(axes.get_yticklabels(), axes.patches, strict=True)}
    assert bars == {"sdpa": 124.0, BASELINE: 12.0, OURS: 4.0}
    heights = [bar.get_y() for bar in axes.patches]
    assert heights == sorted(heights, reverse=True)


def test_shares_have_a_panel_for_each_dtype_and_pass_and_every_provider_in_the_legend():
    records = [record(BASELINE, 4.0), record(OURS, 2.0, dtype="bfloat16"), record(OURS, 2.0, pass_name="forward")]
    figure = shares_figure([*records, record(OURS, 5.0, shape="q-former")], "a device")
    assert len(figure.axes) == 4
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [BASELINE, OURS]
    own = next(dots for dots in figure.axes[0].collections if dots.get_label() == OURS)
    assert own.get_offsets().tolist() == [[pytest.approx(20.0), 1.0]]  # of q-former, the second row


def test_crossing_marks_where_the_rule_turns():
    points = [
        {"queries": queries, "pass": "forward", "route": route, "ms": ms * queries}
        for route, ms in (("folded", 1.0), ("projected", 2.0))
        for queries in (1, 4)
    ]
    sizes = {"frames": 2, "regions": 196, "region_dim": 256, "num_heads": 8, "dtype": "float32"}
    figure = crossing_figure({**sizes, "points": points, "rule_turns_at": 31}, "a device")
    (axes,) = figure.axes
    folded, projected, rule = axes.get_lines()
    assert list(folded.get_ydata()) == [1.0, 4.0] and list(projected.get_ydata()) == [2.0, 8.0]
    assert set(rule.get_xdata()) == {31}
