"""MinAtar (Young & Tian, 2019, arXiv:1903.03176) as pgx has it, made to look like the other games.

pgx is optional, and its MinAtar is under the GNU General Public License: it is imported when a game is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from envs.games.game import Game, Outcome

CLASSES = {
    "asterix": "MinAtarAsterix",
    "breakout": "MinAtarBreakout",
    "freeway": "MinAtarFreeway",
    "seaquest": "MinAtarSeaquest",
    "space_invaders": "MinAtarSpaceInvaders",
}
PLANES = 10
"""Of each game's frames: as many as Seaquest has."""


def minatar(name: str) -> Game:
    """One of the five games, with the same shape of frames and the same actions in all of them.

    A frame has 10 planes of 10x10 cells, 255 where there is something of a kind and 0 elsewhere; a game with fewer
    kinds leaves the last planes empty. The actions are no-op, left, up, right, down, fire, also those that do nothing
    in a game; with probability 0.1 the previous one is repeated. Freeway ends after 2,501 steps, the others when the
    player is hit, which need not happen: here an episode is truncated after 5,000 steps.

    Args:
        name: asterix, breakout, freeway, seaquest or space_invaders.

    Raises:
        ValueError: no such game, or pgx is not installed.
    """
    if name not in CLASSES:
        raise ValueError(f"minatar: no game is called {name!r}; there are {', '.join(CLASSES)}")
    with jax.ensure_compile_time_eval():  # pgx makes arrays as it is imported, which no trace may keep
        try:
            module = importlib.import_module(f"pgx.minatar.{name}")
        except ModuleNotFoundError as error:
            raise ValueError(f"minatar-{name} needs pgx: `pip install pgx`, or the extra jaxenvs") from error
        game = getattr(module, CLASSES[name])(use_minimal_action_set=False, sticky_action_prob=0.1)

    def step(state: Any, action: Int[Array, ""], key: jax.Array) -> Outcome:
        after = game.step(state, jnp.asarray(action, jnp.int32), key)
        return Outcome(after, after.rewards[0], after.terminated)

    def frame(state: Any) -> UInt8[Array, "planes height width"]:
        planes = 255 * jnp.moveaxis(state.observation, -1, 0).astype(jnp.uint8)
        return jnp.pad(planes, ((0, PLANES - planes.shape[0]), (0, 0), (0, 0)))

    return Game(game.init, step, frame, num_actions=6, shape=(PLANES, 10, 10), max_steps=5_000)
