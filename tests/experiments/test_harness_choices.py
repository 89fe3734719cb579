"""Which choice is likeliest for each byte, against numbers worked by hand."""

import jax.numpy as jnp
import numpy as np

from envs.loaders import Question, Tokenizer
from experiments.harness.choices import score

LETTERS = Tokenizer(5, 4, lambda texts: [np.array([" abc".index(c) for c in text], np.uint8) for text in texts], str)
# Behind the separator " " has a log-likelihood of -1; behind " " "a" has -2; then "b" -2.5 and "c" -2.
NEXT = np.zeros((5, 5))
for before, letter, likelihood in ((4, 0, -1.0), (0, 1, -2.0), (1, 2, -2.5), (2, 3, -2.0)):
    NEXT[before, letter] = np.exp(likelihood)
NEXT[:, 4] = 1 - NEXT.sum(axis=1)


def asked(choices: tuple[str, ...], answer: int) -> dict[str, float]:
    return score(
        lambda tokens: jnp.log(jnp.asarray(NEXT, jnp.float32))[tokens], [Question("", choices, answer)], LETTERS, 5
    )


def test_the_space_that_joins_a_choice_to_its_context_is_no_part_of_its_size():
    # -3 and -7.5: a byte of "a" has -3, one of "abc" -2.5; with the space they would have -1.5 and -1.875.
    assert asked((" a", " abc"), 1) == {"accuracy": 0.0, "accuracy_per_byte": 1.0}


def test_a_choice_of_nothing_is_compared_too():
    assert asked((" ", " a"), 0) == {"accuracy": 1.0, "accuracy_per_byte": 1.0}  # -1 and -3
