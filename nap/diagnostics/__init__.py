"""What the field logs about a network's health, under names that mean one thing each."""

from nap.diagnostics.churn import output_churn, policy_churn
from nap.diagnostics.curvature import hessian_trace, hessian_vector_product, top_hessian_eigenvalue
from nap.diagnostics.gradients import (
    cosine_kernel,
    empirical_ntk,
    gradient_cosines,
    kernel_condition,
    kernel_rank,
    kernel_srank,
    mean_off_diagonal,
    per_example_gradients,
)
from nap.diagnostics.norms import LeafNorms, distance_to_init, feature_norm, leaf_norms
from nap.diagnostics.probe import Probe, plasticity_probe
from nap.diagnostics.ranks import (
    approximate_rank,
    effective_rank,
    feature_rank,
    ranks,
    singular_values,
    srank,
    stable_rank,
)
from nap.diagnostics.units import (
    active_fraction,
    dead_fraction,
    dormancy_scores,
    dormant_fraction,
    linearized_unit_fraction,
    saturated_fraction,
    zero_unit_fraction,
)

__all__ = [
    "LeafNorms",
    "Probe",
    "active_fraction",
    "approximate_rank",
    "cosine_kernel",
    "dead_fraction",
    "distance_to_init",
    "dormancy_scores",
    "dormant_fraction",
    "effective_rank",
    "empirical_ntk",
    "feature_norm",
    "feature_rank",
    "gradient_cosines",
    "hessian_trace",
    "hessian_vector_product",
    "kernel_condition",
    "kernel_rank",
    "kernel_srank",
    "leaf_norms",
    "linearized_unit_fraction",
    "mean_off_diagonal",
    "output_churn",
    "per_example_gradients",
    "plasticity_probe",
    "policy_churn",
    "ranks",
    "saturated_fraction",
    "singular_values",
    "srank",
    "stable_rank",
    "top_hessian_eigenvalue",
    "zero_unit_fraction",
]
