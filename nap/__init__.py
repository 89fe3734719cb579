"""Normalize-and-Project: the learning-rate schedule you write is the one you get.

optimizer = nap.normalize_and_project(optax.adam(1e-4))    # the network normalizes before every nonlinearity
print(nap.audit(apply_fn, params, inputs))                 # ... and this shows whether it does
"""

import importlib
from typing import Any

from nap import schedules
from nap.effective_lr import (
    EffectiveLearningRate,
    effective_learning_rates,
    matching_schedule,
    scale_by_schedules,
)
from nap.invariance import Audit, Verdict, audit
from nap.projection import ProjectionState, normalize_and_project, project, project_weights, weight_norms
from nap.roles import Role, Roles, roles

__all__ = [
    "Audit",
    "EffectiveLearningRate",
    "ProjectionState",
    "Role",
    "Roles",
    "Verdict",
    "audit",
    "effective_learning_rates",
    "matching_schedule",
    "normalize_and_project",
    "project",
    "project_weights",
    "roles",
    "scale_by_schedules",
    "schedules",
    "weight_norms",
]

_ON_DEMAND = ("diagnostics", "interventions", "layers", "networks", "noisy")


def __getattr__(name: str) -> Any:
    """The parts that only some users need, imported when first named: `nap.layers`."""
    if name in _ON_DEMAND:
        return importlib.import_module(f"nap.{name}")
    raise AttributeError(f"module 'nap' has no attribute {name!r}")
