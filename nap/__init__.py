"""Normalize-and-Project: the learning-rate schedule you write is the one you get.

optimizer = nap.normalize_and_project(optax.adam(1e-4))    # the network normalizes before every nonlinearity
print(nap.audit(apply_fn, params, inputs))                 # ... and this shows whether it does
"""

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
