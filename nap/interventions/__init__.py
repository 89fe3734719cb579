"""Interventions against loss of plasticity, Normalize-and-Project's rivals and companions, as optax transformations.

Where they go in an optimizer:

    optimizer = optax.chain(
        interventions.l2_init(1e-2),                        # regularizers: on the gradient
        optax.clip_by_global_norm(1.0),
        interventions.redo(                                 # wrappers: around the optimizer, whose state they reset
            interventions.adam(1e-3), readers=network.readers, init=network.init, key=key
        ),
        interventions.shrink_and_perturb(                   # on the weights that the update leads to
            shrink=1 - 1e-4, perturb=1e-2, init=network.init, key=other_key
        ),
    )
    optimizer = nap.normalize_and_project(optimizer)        # projection comes last

    name                      what it does                                         source                     default
    on the gradient
    l2                        pulls all but normalizations to 0                    -                          -
    l2_init                   pulls the same to their initial values               Kumar et al., 2023         -
    w2_init                   pulls the sorted values to the initial ones           Lewandowski et al., 2023   -
    parseval                  pulls the units' weights to orthogonality            Chung et al., 2024         1e-3
    spectral_regularization   pulls the largest singular values to 1               Lewandowski et al., 2024   -
    the optimizer itself
    adam, scale_by_adam       Adam with a step count for every entry               Dohare et al., 2024        optax's
    upgd                      small steps for useful weights, noise for others     Elsayed & Mahmood, 2024    sigma 1e-3
    around the optimizer
    redo                      recycles dormant units                               Sokar et al., 2023         tau 0.025
    continual_backprop        replaces the least useful units all the time         Dohare et al., 2024        rate 1e-4
    self_normalized_resets    recycles units that are silent for unusually long    Farias & Jozefiak, 2024    0.99
    reset_layers              draws layers anew                                    Nikishin et al., 2022      -
    reset_optimizer_state     starts the optimizer's state over                    Asadi et al., 2023         -
    dash                      shrinks what opposes the gradient of new data        Shin et al., 2024          0.3
    plasticity_injection      continues with a second head (with_injection)        Nikishin et al., 2023      -
    behind the optimizer
    shrink_and_perturb        shrinks the weights and adds a fresh draw            Ash & Adams, 2020          -
    noisy_updates             adds noise to the update                             -                          -
    clip_weights              bounds every weight                                  Elsayed et al., 2024       -
    spectral_normalization    bounds the largest singular values                   Miyato et al., 2018        1
    project_units             one norm for each unit's incoming weights            Lee et al., 2025           1
    hare_and_tortoise         now and then returns to the weights' moving average  Lee et al., 2024           0.999

What recycles units takes the activations of the batch: `update(gradients, state, params, activations=...)`, with
`outputs, activations = network.activations(params, x)`. A random key may be traced, so seeds can be run under `vmap`
from `init` on; after `init` only the key in the state counts. "Every N updates" is counted by the transformation.
"""

from nap.interventions.adam import adam, scale_by_adam
from nap.interventions.continual_backprop import continual_backprop
from nap.interventions.dash import dash
from nap.interventions.injection import plasticity_injection, with_injection
from nap.interventions.redo import redo
from nap.interventions.regularizers import l2, l2_init, parseval, spectral_regularization, w2_init
from nap.interventions.resets import reset_layers, reset_optimizer_state
from nap.interventions.self_normalized_resets import self_normalized_resets
from nap.interventions.units import Readers
from nap.interventions.upgd import upgd
from nap.interventions.weights import (
    clip_weights,
    hare_and_tortoise,
    noisy_updates,
    project_units,
    shrink_and_perturb,
    spectral_normalization,
)

__all__ = [
    "Readers",
    "adam",
    "clip_weights",
    "continual_backprop",
    "dash",
    "hare_and_tortoise",
    "l2",
    "l2_init",
    "noisy_updates",
    "parseval",
    "plasticity_injection",
    "project_units",
    "redo",
    "reset_layers",
    "reset_optimizer_state",
    "scale_by_adam",
    "self_normalized_resets",
    "shrink_and_perturb",
    "spectral_normalization",
    "spectral_regularization",
    "upgd",
    "w2_init",
    "with_injection",
]
