"""The paper's ablations: each a table of rows, each row some configuration keys over those of the whole method.

The order is the paper's: the parts of the method are added one by one; the terms of the MTC loss are tried before the
bank is fine-tuned, the terms of the fine-tuning with the whole MTC loss, K and λ in the whole method.

What a row leaves out is our reading where the paper does not say:

- *without aggregation*: a tracklet is the mean of its responses over time. That is the limit of a high temperature of
  the saliency: at ``model.temperature=1e6`` no weight differs from 1/T by more than a millionth.
- *without enhancement*: the queries are the prompts and the semantics as the bank has them
  (``model.enhancement_layers=0``).
- *without bank fine-tuning*: ``model.weight_sema=0``, so that the bank stays what the text encoder said. The projection
  of the video that chooses the top-K classes is trained by L_sema alone, and stays what it was, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from art.train.config import Config, ConfigError

MEAN_OVER_TIME = 1e6
TRACKLETS = (1, 2, 3, 4)
MARGINS = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: part of the name of its folder.
        title: for a reader.
        values: what it sets, by dotted key.
    """

    name: str
    title: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """One ablation.

    Attributes:
        name: what ``--only`` calls it.
        title: for a reader.
        rows: in the order of the table.
        against: what the runs of a row are compared with, seed by seed: those of the row "before", or of the "first".
        needs: keys that must not be 0 in the whole method, because rows set them to 0.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    against: Literal["before", "first"]
    needs: tuple[str, ...] = ()


def ablation_tables(config: Config) -> dict[str, Table]:
    """Every ablation of a configuration, by name; the configuration is the whole method.

    Examples:
        >>> from art.experiments import ablation_tables
        >>> from art.train.config import Config
        >>> [row.title for row in ablation_tables(Config())["tracklets"].rows]
        ['K = 1', 'K = 2', 'K = 3', 'K = 4']
    """
    tables = (
        _components(),
        _terms(),
        _bank(),
        _values(config, "tracklets", "K, the tracklets of a clip", "K", "num_tracklets", TRACKLETS),
        _values(config, "margin", "λ, the correlated degree", "λ", "margin", MARGINS),
    )
    return {table.name: table for table in tables}


#: The names of the ablations.
TABLES = ("components", "mtc", "bank", "tracklets", "margin")


def check_table(config: Config, table: Table) -> None:
    """Stop where a row would be another one in disguise.

    Raises:
        ConfigError: the configuration is not ART's, or has nothing of what a row leaves out.
    """
    if config.kind != "art":
        raise ConfigError(f"kind: got {config.kind!r}, expected art: the ablations are of the whole method")
    for key in table.needs:
        if getattr(config.model, key.removeprefix("model.")) == 0:
            others = ",".join(name for name in TABLES if name != table.name)
            raise ConfigError(
                f"{key}: is 0, so that a row of the ablation {table.name!r} would leave out what is not there; "
                f"expected another value, such as {key}={_EXAMPLES.get(key, 1)}, or --only {others}"
            )
    if config.model.temperature >= MEAN_OVER_TIME and table.name == "components":
        raise ConfigError(f"model.temperature: got {config.model.temperature:g}, which is no aggregation but the mean")


_EXAMPLES = {"model.enhancement_layers": 4, "model.weight_mtc": 5, "model.weight_sema": 5}
_WITHOUT_ENHANCEMENT = {"model.enhancement_layers": 0}
_WITHOUT_AGGREGATION = {"model.temperature": MEAN_OVER_TIME}
_WITHOUT_MTC = {"model.weight_mtc": 0.0}
_WITHOUT_BANK = {"model.weight_sema": 0.0}


def _components() -> Table:
    regions = {**_WITHOUT_AGGREGATION, **_WITHOUT_MTC, **_WITHOUT_BANK}
    rows = (
        Row("baseline", "baseline: the backbone alone", {"kind": "backbone"}),
        Row("regions", "+ region activation, without enhancement", {**_WITHOUT_ENHANCEMENT, **regions}),
        Row("enhancement", "+ spatial semantic enhancement", regions),
        Row("aggregation", "+ text-guided aggregation over time", {**_WITHOUT_MTC, **_WITHOUT_BANK}),
        Row("mtc", "+ MTC loss", _WITHOUT_BANK),
        Row("bank", "+ fine-tuning of the bank: the whole method", {}),
    )
    needs = ("model.enhancement_layers", "model.weight_mtc", "model.weight_sema")
    return Table("components", "The parts of the method", rows, "before", needs)


_TERMS = ("spatial", "temporal", "tracklet")


def _terms() -> Table:
    """Each alone, each two, all, and none; before the bank is fine-tuned."""
    chosen = [set[str](), *({term} for term in _TERMS), *(set(_TERMS) - {term} for term in reversed(_TERMS)), {*_TERMS}]
    rows = []
    for some in chosen:
        there = [term for term in _TERMS if term in some]
        left_out = {f"model.weight_{term}": 0.0 for term in _TERMS if term not in some}
        name = {0: "none", len(_TERMS): "all"}.get(len(there), "+".join(there))
        values = _WITHOUT_MTC if not there else left_out
        rows.append(Row(name, " + ".join(there) if there else "none", {**values, **_WITHOUT_BANK}))
    needs = ("model.weight_mtc", *(f"model.weight_{term}" for term in _TERMS), "model.weight_sema")
    return Table("mtc", "The terms of the MTC loss, without fine-tuning of the bank", tuple(rows), "first", needs)


def _bank() -> Table:
    video, prototype = {"model.weight_prototype": 0.0}, {"model.weight_consistency": 0.0}
    rows = (
        Row("none", "none", _WITHOUT_BANK),
        Row("video", "video consistency", video),
        Row("prototype", "prototype consistency", prototype),
        Row("both", "both", {}),
    )
    needs = ("model.weight_sema", "model.weight_consistency", "model.weight_prototype")
    return Table("bank", "The terms that fine-tune the bank", rows, "first", needs)


def _values(
    config: Config, name: str, title: str, symbol: str, option: str, usual: tuple[int, ...] | tuple[float, ...]
) -> Table:
    """The usual values of an option and the configuration's own."""
    values = sorted({*usual, getattr(config.model, option)})
    rows = tuple(Row(f"{value:g}", f"{symbol} = {value:g}", {f"model.{option}": value}) for value in values)
    needs = ("model.weight_mtc", "model.weight_temporal") if option == "margin" else ()
    return Table(name, title, rows, "first", needs)
