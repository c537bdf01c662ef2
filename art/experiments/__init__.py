"""Experiments of several runs: comparisons of values of a key (``art compare``) and ablations (``art ablate``)."""

from art.experiments.ablate import TABLES, Plan, ablate, ablation_tables, make_plan

__all__ = ["TABLES", "Plan", "ablate", "ablation_tables", "make_plan"]
