"""The audit, on networks whose verdicts are known, and on every network that is shipped."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import nap
from nap import paths
from nap.invariance import Verdict
from nap.networks import CNN, MLP, QNetwork, as_functions
from nap.roles import Role

FRAMES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 4, 84, 84)), jnp.uint8)
SMALL_FRAMES = FRAMES[:, :, :24, :24]
IMAGES = jax.random.uniform(jax.random.key(1), (8, 8, 8, 1))
VECTORS = jax.random.normal(jax.random.key(0), (16, 8))

SHIPPED = {
    "nature-layer": (lambda rngs: QNetwork(6, norm="layer", rngs=rngs), FRAMES),
    "nature-rms": (lambda rngs: QNetwork(6, norm="rms", rngs=rngs), FRAMES),
    "nature-layer-all": (lambda rngs: QNetwork(6, norm="layer", norm_axes="all", rngs=rngs), FRAMES),
    "nature-rms-all": (lambda rngs: QNetwork(6, norm="rms", norm_axes="all", rngs=rngs), FRAMES),
    "impala-layer": (lambda rngs: QNetwork(6, torso="impala", observation=(4, 24, 24), rngs=rngs), SMALL_FRAMES),
    "impala-rms-all": (
        lambda rngs: QNetwork(6, torso="impala", observation=(4, 24, 24), norm="rms", norm_axes="all", rngs=rngs),
        SMALL_FRAMES,
    ),
    "cnn-layer": (lambda rngs: CNN((8, 8, 1), 10, norm="layer", rngs=rngs), IMAGES),
    "cnn-rms-all": (lambda rngs: CNN((8, 8, 1), 10, norm="rms", norm_axes="all", rngs=rngs), IMAGES),
    "mlp-layer": (lambda rngs: MLP(8, [32, 32, 16], 3, norm="layer", rngs=rngs), VECTORS),
    "mlp-rms": (lambda rngs: MLP(8, [32, 32, 16], 3, norm="rms", rngs=rngs), VECTORS),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_network_is_clean(name):
    """Test (f): nothing is projected without being invariant, nothing is invariant without being projected."""
    make, inputs = SHIPPED[name]
    network = as_functions(make)
    params = jax.jit(network.init)(jax.random.key(0))
    audit = nap.audit(network.apply, params, inputs)
    assert audit.clean, str(audit)
    assert all(row.change < 1e-3 for row in audit if row.projected)
    assert "All fine" in str(audit)


def test_scaling_one_kernel_changes_nothing():
    """The same claim without the audit: one projected kernel, one large constant, outputs to float precision."""
    network = as_functions(SHIPPED["nature-layer"][0])
    params = jax.jit(network.init)(jax.random.key(0))
    kernel = paths.leaves(params)["torso/1/kernel"]
    scaled = paths.replace(params, {"torso/1/kernel": 16 * kernel})
    np.testing.assert_allclose(network.apply(scaled, FRAMES), network.apply(params, FRAMES), rtol=1e-3, atol=1e-5)


class Net(nn.Module):
    bias: bool = False
    norms: tuple[bool, ...] = (True, True)

    @nn.compact
    def __call__(self, x):
        for normalized in self.norms:
            x = nn.Dense(16, use_bias=self.bias)(x)
            x = nn.relu(nn.LayerNorm()(x) if normalized else x)
        return nn.Dense(3)(x)


def audit_of(net, **kwargs):
    params = net.init(jax.random.key(0), VECTORS)
    return nap.audit(net.apply, params, VECTORS, roles={"*Dense_2/kernel": Role.OUTPUT}, **kwargs)


def test_a_bias_before_the_normalization_breaks_invariance():
    audit = audit_of(Net(bias=True))
    assert audit["params/Dense_0/kernel"].verdict == Verdict.CONSTRAINED
    assert not audit.clean
    assert "need a look" in str(audit)


def test_a_missing_normalization_is_found():
    audit = audit_of(Net(norms=(True, False)))
    assert audit["params/Dense_0/kernel"].verdict == Verdict.FINE
    assert audit["params/Dense_1/kernel"].verdict == Verdict.CONSTRAINED


def test_an_invariant_weight_that_is_not_projected_keeps_its_schedule():
    net = Net()
    params = net.init(jax.random.key(0), VECTORS)
    roles = {"*Dense_0/kernel": Role.OUTPUT, "*Dense_2/kernel": Role.OUTPUT}
    audit = nap.audit(net.apply, params, VECTORS, roles=roles)
    assert audit["params/Dense_0/kernel"].verdict == Verdict.IMPLICIT


def test_affine_left_free_keeps_an_implicit_schedule_too():
    net = Net()
    roles = {"*LayerNorm_1/scale": Role.OUTPUT_SCALE, "*LayerNorm_1/bias": Role.OUTPUT_OFFSET}
    params = net.init(jax.random.key(0), VECTORS)
    roles = {**roles, "*Dense_2/kernel": Role.OUTPUT}
    verdicts = {
        affine: nap.audit(net.apply, params, VECTORS, roles=roles, affine=affine)["params/LayerNorm_0/scale"].verdict
        for affine in ("project", "regularize", "free")
    }
    assert verdicts == {"project": Verdict.FINE, "regularize": Verdict.FINE, "free": Verdict.IMPLICIT}


class FlattenedNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.LayerNorm()(nn.Conv(16, (3, 3), use_bias=False)(x)))
        x = nn.relu(nn.LayerNorm()(nn.Dense(16, use_bias=False)(x.reshape(len(x), -1))))
        return nn.Dense(3)(x)


def test_a_scale_and_an_offset_that_are_wrongly_free_are_found_jointly():
    """By shapes only the output layer can read the first normalization. Before a ReLU neither is invariant alone."""
    net = FlattenedNet()
    params = net.init(jax.random.key(0), IMAGES)
    audit = nap.audit(net.apply, params, IMAGES)
    of_first = [audit[f"params/LayerNorm_0/{name}"] for name in ("scale", "bias")]
    assert [row.role for row in of_first] == [Role.OUTPUT_SCALE, Role.OUTPUT_OFFSET]
    assert [row.verdict for row in of_first] == [Verdict.IMPLICIT] * 2
    named = {"*LayerNorm_0/scale": Role.SCALE, "*LayerNorm_0/bias": Role.OFFSET}
    assert nap.audit(net.apply, params, IMAGES, roles=named).clean


def test_affine_projection_before_a_curved_activation_is_a_constraint():
    network = as_functions(lambda rngs: MLP(8, [16, 16], 3, activation=jnp.tanh, rngs=rngs))
    params = network.init(jax.random.key(0))
    projected = nap.audit(network.apply, params, VECTORS)
    assert projected["hidden/0/norm/scale"].verdict == Verdict.CONSTRAINED
    assert nap.audit(network.apply, params, VECTORS, affine="regularize").clean


def test_a_parameter_without_effect_is_named():
    params = {"w0": jax.random.normal(jax.random.key(1), (8, 4)), "w1": jnp.eye(4, 2), "unused": jnp.ones((2, 5))}
    audit = nap.audit(
        lambda p, x: jax.nn.standardize(x @ p["w0"]) @ p["w1"], params, VECTORS, roles={"w1": "output weight"}
    )
    assert audit["unused"].verdict == Verdict.UNUSED


def test_an_output_of_zero_is_refused():
    with pytest.raises(ValueError, match="nothing to compare"):
        nap.audit(lambda p, x: 0 * x @ p["w"], {"w": jnp.ones((8, 2))}, VECTORS)


VECTOR_MLP = as_functions(SHIPPED["mlp-layer"][0])


def test_what_begins_as_zeros_is_not_projected():
    params = VECTOR_MLP.init(jax.random.key(0))
    zeroed = paths.map_leaves(lambda path, leaf: leaf * (path != "hidden/1/kernel"), params)
    rows = nap.audit(VECTOR_MLP.apply, zeroed, VECTORS)
    assert rows["hidden/1/kernel"].verdict is Verdict.IMPLICIT and not rows["hidden/1/kernel"].projected
    assert nap.audit(VECTOR_MLP.apply, params, VECTORS)["hidden/1/kernel"].verdict is Verdict.FINE


def test_what_is_asked_for_must_be_there(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own words, not the type checker's
    params = VECTOR_MLP.init(jax.random.key(0))
    with pytest.raises(ValueError, match="affine must be one of 'project', 'regularize', 'free', got 'projct'"):
        nap.audit(VECTOR_MLP.apply, params, VECTORS, affine="projct")
    with pytest.raises(KeyError, match="no parameter 'hidden/1/kernle'; the nearest path is 'hidden/1/kernel'"):
        nap.audit(VECTOR_MLP.apply, params, VECTORS)["hidden/1/kernle"]


def test_a_network_in_bfloat16_with_a_scan_can_be_audited():
    params = {"a": {"kernel": jnp.eye(4, 6, dtype=jnp.bfloat16)}, "b": {"kernel": jnp.ones((6, 2), jnp.bfloat16)}}

    def apply(params, x):
        def step(carry, _):
            return carry + (x @ params["a"]["kernel"]).mean(0), None

        return jax.lax.scan(step, jnp.zeros(6, jnp.bfloat16), None, length=2)[0] @ params["b"]["kernel"]

    assert len(list(nap.audit(apply, params, jnp.ones((3, 4), jnp.bfloat16)))) == 2
