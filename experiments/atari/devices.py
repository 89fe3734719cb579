"""A run on several devices, which share each batch. It is the same run: its results differ by rounding only.

Of several processes each plays the same games with the same seeds, so all come to the same replay, bit for bit, and
nothing of it travels. It costs every host the emulators' time, and saves none of it: what is divided is learning.
Whether all saw the same returns is compared whenever they are recorded.
"""

from __future__ import annotations

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from agents.dqn import Agent
from agents.replay import Replay, ReplayState, Sample
from experiments.atari.config import Config
from experiments.harness.command_line import DeviceOptions
from experiments.harness.mesh import check_divisible, data_parallel, mesh_of, on_every_device, replicated


def devices_of(config: Config, options: DeviceOptions) -> Mesh | None:
    """The devices that share each batch; None: there is a single one, and nothing to share.

    Raises:
        harness.UserError: there are not so many, or they can't share a batch evenly.
    """
    mesh = mesh_of(options.devices)
    if mesh is not None:
        check_divisible("--batch-size", config.batch_size, mesh)
    return mesh


def on_mesh(learner: Agent, replay: Replay, mesh: Mesh) -> tuple[Agent, Replay]:
    """The same on several devices.

    Learner and replay have a copy on each. So a device has its part of a batch in its own memory, and nothing but
    gradients and priorities has to travel.
    """

    def sample(state: ReplayState, key: Key[Array, ""]) -> Sample:
        # Every device draws the whole batch: else XLA divides the walk through the sum tree, and gathers at each level.
        return jax.lax.with_sharding_constraint(replay.sample(state, key), replicated(mesh))

    return (
        learner._replace(
            init=on_every_device(learner.init, mesh),
            learn=data_parallel(learner.learn, mesh),
            measure=data_parallel(learner.measure, mesh),
        ),
        replay._replace(init=on_every_device(replay.init, mesh), sample=sample),
    )
