"""A call of the loop that is left in its middle and gone on with equals the whole one, to the last bit."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest
from test_loops import ENVS, Scripted, Told, schedule, scripted_functions

from agents.loops import LoopState, Stretch, new_stretch, train

STEPS, LENGTHS = 120, [[3, 5], [4, 7, 2]]


class Left(Exception):
    pass


def copied(tree: Any) -> Any:
    """On the host: what `now()` gives is donated to the next update."""
    return jax.tree.map(np.array, tree)


def call(
    state: LoopState, told: Told, begun: Stretch | None = None, leave_at: int = 0
) -> tuple[LoopState, Stretch | None, Scripted]:
    """A call of `train`, left behind so many steps of the environments (0: not at all), and what was saved then."""
    environments, saved, step = Scripted(LENGTHS), [], itertools.count(1)

    def on_state(now):
        if next(step) == leave_at:
            saved.append(copied(now()))
            raise Left

    hooks = told.hooks()._replace(on_state=on_state)
    try:
        state = train(
            scripted_functions(), schedule(), state, environments,
            key=jax.random.key(1), seed=5, steps=STEPS, hooks=hooks, begun=begun,
        )  # fmt: skip
    except Left:
        return *saved[0], environments
    return state, None, environments


def new() -> LoopState:
    return scripted_functions().init(jax.random.key(0))


@pytest.fixture(scope="module")
def whole() -> tuple[LoopState, Told, Scripted]:
    told = Told()
    state, _, environments = call(new(), told)
    return copied(state), told, environments


# Of 60 steps of two environments: before the first update, at a log, between two, behind the last step; and again in
# what is played again, and behind that.
@pytest.mark.parametrize("places", [(1,), (5,), (12,), (13,), (14,), (31,), (60,), (7, 3, 7, 30, 44)])
def test_left_and_gone_on_with_it_equals_the_whole(whole, places):
    told, state, begun = Told(), new(), None
    for place in places:
        state, begun, _ = call(state, told, begun, leave_at=place)
        assert begun is not None and state.agent_steps == ENVS * begun.steps
    state, _, environments = call(state, told, begun)
    expected, expected_told, expected_environments = whole
    jax.tree.map(np.testing.assert_array_equal, copied(state), expected)
    assert told.logs == expected_told.logs
    assert told.losses == expected_told.losses
    np.testing.assert_array_equal(environments.actions, expected_environments.actions)
    assert environments.seeds == [5]


def test_a_new_stretch_has_room_for_every_step_and_is_what_a_call_begins_with(whole):
    assert new_stretch(STEPS + 1, ENVS).actions.shape == (STEPS // ENVS, ENVS)
    state, _, _ = call(new(), Told(), new_stretch(STEPS, ENVS))
    jax.tree.map(np.testing.assert_array_equal, copied(state), whole[0])
