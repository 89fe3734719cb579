"""What the games of a 10x10 board share, so that one network can play them one after another."""

from jaxtyping import Array, Int

HEIGHT = WIDTH = 10
LEFT, STAY, RIGHT, UP, DOWN = range(5)
NUM_ACTIONS = 5
"""The first three are Catch's. Where something moves sideways only, UP and DOWN are as STAY."""


def sideways(action: Int[Array, ""]) -> Int[Array, ""]:
    """Columns that an action moves by: -1, 0 or 1."""
    return 1 * (action == RIGHT) - (action == LEFT)


def downwards(action: Int[Array, ""]) -> Int[Array, ""]:
    """Rows that an action moves by: -1, 0 or 1."""
    return 1 * (action == DOWN) - (action == UP)
