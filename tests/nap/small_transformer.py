"""A transformer that compiles soon."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nap import paths
from nap.networks import Network, Transformer, as_functions

KEY = jax.random.key(0)
VOCABULARY, LAYERS, HEADS, WIDTH, TIME = 11, 2, 2, 8, 6
SMALL = {"context": TIME, "layers": LAYERS, "heads": HEADS, "width": WIDTH}
TOKENS = jax.random.randint(jax.random.key(1), (3, TIME), 0, VOCABULARY)


@functools.cache
def network(**options) -> Network:
    return as_functions(lambda rngs: Transformer(VOCABULARY, **{**SMALL, **options}, rngs=rngs))


def random_params(made: Network):
    """Parameters that are nowhere 0; drawn by NumPy, since compiling the initialization takes long."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(made.init, KEY)
    leaves = {
        path: jnp.asarray(0.4 * rng.normal(size=leaf.shape) + path.endswith("scale"), jnp.float32)
        for path, leaf in paths.leaves(shapes).items()
    }
    return paths.replace(shapes, leaves)
