"""The paper's ablations as one command, ``art ablate``: which runs they need, and what came out of them."""

from art.experiments.ablate import ablate
from art.experiments.ablation_plan import Plan, make_plan
from art.experiments.ablation_tables import TABLES, ablation_tables

__all__ = ["TABLES", "Plan", "ablate", "ablation_tables", "make_plan"]
