"""The paper's ablations as one command, ``art ablate``: which runs they need, and what came out of them."""

from .ablate import ablate
from .plan import Plan, make_plan
from .tables import TABLES, ablation_tables

__all__ = ["TABLES", "Plan", "ablate", "ablation_tables", "make_plan"]
