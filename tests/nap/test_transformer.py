"""The transformer: known sizes, NumPy's arithmetic on the same weights, causality, the audit, bad input."""

import math
import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
import scipy.special
from flax import nnx
from small_transformer import HEADS, KEY, LAYERS, SMALL, TIME, TOKENS, VOCABULARY, WIDTH, network, random_params

import nap
from nap import paths
from nap.interventions.units import count_units
from nap.invariance import Verdict
from nap.networks import Transformer, as_functions, cross_entropy
from nap.networks.attention import HeadNormalization, rotate
from nap.roles import AFFINE, Role


def size(vocabulary: int, **options) -> int:
    made = as_functions(lambda rngs: Transformer(vocabulary, **options, rngs=rngs))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(made.init, KEY)))


def test_the_size_of_gpt_2():
    """124,439,808 parameters; of these 9 width a block are biases, which there are none of here."""
    gpt_2 = {"context": 1024, "layers": 12, "heads": 12, "width": 768, "mlp": "gelu", "positions": "learned"}
    found = size(50_257, **gpt_2, tied=True, norm="layer", placement="pre", qk_norm=False, scan_layers=True)
    assert found == 124_439_808 - 12 * 9 * 768


def test_the_size_of_llama():
    """6,738,415,616 parameters of Llama 7B; its 65 normalizations have no offsets, and have them here."""
    llama = {"context": 2048, "layers": 32, "heads": 32, "width": 4096, "mlp": "swiglu", "mlp_factor": 11008 / 4096}
    found = size(32_000, **llama, norm="rms", placement="pre", qk_norm=False, scan_layers=True)
    assert found == 6_738_415_616 + 65 * 4096


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_the_size_with_every_normalization(mlp):
    """Scale and offset before and after attention and MLP, and of the MLP's units; scales of queries and keys."""
    matrices = 3 if mlp == "swiglu" else 2
    units, before_units = 4 * WIDTH, (matrices - 1) * 2 * 4 * WIDTH
    block = 4 * WIDTH**2 + matrices * WIDTH * units + 4 * 2 * WIDTH + before_units + 2 * WIDTH // HEADS
    assert size(VOCABULARY, **SMALL, mlp=mlp) == LAYERS * block + 2 * WIDTH + 2 * VOCABULARY * WIDTH


def by_numpy(leaves: dict[str, np.ndarray], tokens: np.ndarray, *, mlp: str, norm: str):
    """Logits and what `down` reads, in double precision, a token and a head at a time, by the leaves there are."""

    def normalized(x, path):
        if f"{path}/scale" not in leaves:
            return x
        x = x - x.mean(-1, keepdims=True) if norm == "layer" else x
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * leaves[f"{path}/scale"] + leaves.get(f"{path}/offset", 0)

    def linear(x, path):
        return normalized(x @ leaves[f"{path}/kernel"], f"{path}/norm")

    def turned(x):
        half = x.shape[-1] // 2
        angles = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(half) / half)
        turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def attention(x, path):
        heads = []
        for head in np.split(np.arange(WIDTH), HEADS):
            q, k, v = (linear(x, f"{path}/{name}")[:, head] for name in ("query", "key", "value"))
            q, k = normalized(q, f"{path}/query_norm"), normalized(k, f"{path}/key_norm")
            if "positions/embedding" not in leaves:
                q, k = turned(q), turned(k)
            read = []
            for t in range(len(x)):
                weights = scipy.special.softmax(k[: t + 1] @ q[t] / np.sqrt(len(head)))
                read.append(weights @ v[: t + 1])
            heads.append(np.stack(read))
        return linear(np.concatenate(heads, axis=-1), f"{path}/output")

    def units(x, path):
        up = linear(x, f"{path}/up")
        if mlp == "swiglu":
            gate = linear(x, f"{path}/gate")
            return gate * scipy.special.expit(gate) * up
        return up * scipy.special.ndtr(up) if mlp == "gelu" else np.maximum(up, 0) ** 2

    logits, read_by_down = [], {f"blocks/{i}/mlp/up": [] for i in range(LAYERS)}
    for sequence in tokens:
        x = leaves["embedding/embedding"][sequence]
        if "positions/embedding" in leaves:
            x = x + leaves["positions/embedding"][: len(x)]
        x = np.sqrt(WIDTH) * x
        for block in (f"blocks/{i}" for i in range(LAYERS)):
            x = x + attention(normalized(x, f"{block}/attention_norm"), f"{block}/attention")
            hidden = units(normalized(x, f"{block}/mlp_norm"), f"{block}/mlp")
            read_by_down[f"{block}/mlp/up"].append(hidden)
            x = x + linear(hidden, f"{block}/mlp/down")
        output = leaves.get("output/kernel", leaves["embedding/embedding"].T)
        logits.append(normalized(x, "norm") @ output)
    return np.stack(logits), read_by_down


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mlp": "swiglu", "norm": "layer", "tied": True},
        {"mlp": "squared-relu", "positions": "learned"},
        {"placement": "pre", "norm": "layer", "positions": "learned", "tied": True, "qk_norm": False},
        {"placement": "pre", "mlp": "swiglu"},
    ],
)
def test_logits_are_those_of_numpy(options):
    made = network(**options)
    params = random_params(made)
    leaves = {path: np.asarray(leaf, np.float64) for path, leaf in paths.leaves(params).items()}
    expected, read_by_down = by_numpy(
        leaves, np.asarray(TOKENS), mlp=options.get("mlp", "gelu"), norm=options.get("norm", "rms")
    )
    logits, activations = jax.jit(made.activations)(params, TOKENS)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert activations.keys() == read_by_down.keys()
    for path, hidden in read_by_down.items():
        np.testing.assert_allclose(activations[path], hidden, rtol=1e-3, atol=1e-3 * np.abs(hidden).max())


def test_rotary_positions_by_hand():
    """Two pairs, (0, 2) and (1, 3): at position t the first turns by t radians, the second by t / 100."""
    x = jnp.ones((3, 1, 1)) * jnp.array([1.0, 2.0, 0.0, 0.0])
    for t, turned in enumerate(rotate(x)[:, 0]):
        expected = [math.cos(t), 2 * math.cos(t / 100), math.sin(t), 2 * math.sin(t / 100)]
        np.testing.assert_allclose(turned, expected, rtol=1e-6, atol=1e-7)


def test_rotary_products_depend_on_distance_alone_and_norms_stay():
    q, k = jax.random.normal(KEY, (2, 8))
    turned_q, turned_k = (rotate(jnp.tile(x, (9, 1, 1)))[:, 0] for x in (q, k))
    products = turned_q @ turned_k.T
    np.testing.assert_allclose(products[1:, 1:], products[:-1, :-1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(products[0, 0], products[0, 1], atol=1e-2)
    np.testing.assert_allclose(jnp.linalg.norm(turned_q, axis=-1), jnp.linalg.norm(q), rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"positions": "learned", "scan_layers": True}])
def test_a_future_token_changes_no_logits_before_it(options):
    made = network(**options)
    params, apply = random_params(made), jax.jit(made.apply)
    changed = TOKENS.at[:, 3].set((TOKENS[:, 3] + 1) % VOCABULARY)
    before, after = apply(params, TOKENS), apply(params, changed)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.all(np.abs(before[:, 3:] - after[:, 3:]).max((0, 2)) > 1e-3)


NAP = {
    "gelu-layer-learned": ({"norm": "layer", "positions": "learned", "tied": True}, "regularize"),
    "swiglu": ({"mlp": "swiglu"}, "regularize"),
    "squared-relu": ({"mlp": "squared-relu"}, "project"),
    "squared-relu-layer-scanned": ({"mlp": "squared-relu", "norm": "layer", "scan_layers": True}, "project"),
}


@pytest.mark.parametrize("name", NAP)
def test_the_audit_is_clean_with_every_normalization(name):
    options, affine = NAP[name]
    made = network(**options)
    audit = nap.audit(made.apply, random_params(made), TOKENS, affine=affine)
    assert audit.clean, str(audit)
    matrices = [row for row in audit if row.path.startswith("blocks") and row.path.endswith("kernel")]
    assert all(row.projected and row.change < 1e-3 for row in matrices)
    assert not any(row.projected for row in audit if not row.path.startswith("blocks"))
    inner = {row.path.removeprefix("blocks/").lstrip("01/").rpartition("/")[0] for row in audit if row.role in AFFINE}
    gate = {"mlp/gate/norm"} if options.get("mlp") == "swiglu" else set()
    assert inner == {"attention_norm", "mlp_norm", "mlp/up/norm"} | gate


@pytest.mark.parametrize(
    ("options", "constrained"),
    [
        ({"placement": "pre"}, {"value", "output", "up", "down"}),
        (
            {"placement": "pre", "mlp": "swiglu", "qk_norm": False},
            {"query", "key", "value", "output", "gate", "up", "down"},
        ),
        ({"qk_norm": False, "mlp": "squared-relu"}, {"query", "key"}),
    ],
)
def test_the_audit_names_the_matrices_that_no_normalization_follows(options, constrained):
    made = network(**options)
    audit = nap.audit(made.apply, random_params(made), TOKENS)
    found = {row.path for row in audit if row.verdict is not Verdict.FINE}
    assert found == {row.path for row in audit if row.role is Role.HIDDEN and row.path.split("/")[-2] in constrained}
    assert {audit[path].verdict for path in found} == {Verdict.CONSTRAINED}


def test_projecting_the_affine_parameters_before_a_curved_activation_is_a_constraint():
    made = network()
    audit = nap.audit(made.apply, random_params(made), TOKENS)
    assert {row.path.split("/", 2)[-1] for row in audit if row.verdict is not Verdict.FINE} == {
        "mlp/up/norm/scale",
        "mlp/up/norm/offset",
    }


def test_bfloat16_is_computed_in_and_float32_comes_out():
    exact, half = network(), network(dtype=jnp.bfloat16)
    params = random_params(exact)
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(half.init, KEY))} == {jnp.dtype("float32")}
    logits, expected = jax.jit(half.apply)(params, TOKENS), jax.jit(exact.apply)(params, TOKENS)
    assert logits.dtype == jnp.float32
    size = float(jnp.abs(expected).max())
    assert 1e-5 * size < float(jnp.abs(logits - expected).max()) < 0.1 * size
    program = str(jax.make_jaxpr(half.apply)(params, TOKENS))
    products = re.findall(r":(\w+)\[[\d,]*\] = dot_general", program)
    # query, key, value, values read, output, up and down of each block; attention's logits, and those of the tokens
    assert (products.count("bf16"), products.count("f32")) == (7 * LAYERS, LAYERS + 1)


def test_attention_is_by_the_kernel_that_was_asked_for(monkeypatch):
    asked = []
    attend = jax.nn.dot_product_attention

    def record(*args, implementation, **kwargs):
        asked.append(implementation)
        return attend(*args, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    for kernel in ("xla", "cudnn"):
        made = network(attention=kernel)
        jax.eval_shape(made.apply, jax.eval_shape(made.init, KEY), TOKENS)
    assert asked == ["xla"] * LAYERS + ["cudnn"] * LAYERS


def test_qk_normalization_has_one_scale_for_all_heads():
    layer = HeadNormalization(4, norm="rms")
    x = jax.random.normal(KEY, (2, 3, HEADS, 4))
    expected = x / np.sqrt((np.asarray(x) ** 2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5)
    assert layer.scale.get_metadata()["role"] == Role.OUTPUT_SCALE


@pytest.mark.parametrize("token", [VOCABULARY, -1])
def test_a_token_out_of_range_is_seen(token):
    made = network(scan_layers=True)
    logits = jax.jit(made.apply)(random_params(made), TOKENS.at[1, 2].set(token))
    assert np.isnan(logits[1]).all() and np.isfinite(logits[0]).all() and np.isfinite(logits[2]).all()


def test_cross_entropy_by_hand():
    """Logits log 1, log 2, log 5: Z = 8."""
    logits = jnp.log(jnp.array([1.0, 2.0, 5.0]))
    for target, odds in enumerate((8.0, 4.0, 1.6)):
        plain = cross_entropy(logits, jnp.int32(target))
        assert float(plain) == pytest.approx(math.log(odds), rel=1e-6)
        extra = cross_entropy(logits, jnp.int32(target), z_loss=0.5) - plain
        assert float(extra) == pytest.approx(0.5 * math.log(8) ** 2, rel=1e-6)


def test_cross_entropy_is_that_of_optax_token_by_token():
    logits = 5 * jax.random.normal(KEY, (2, 3, 256))
    targets = jnp.array([[0, 255, 7], [128, 1, 254]], jnp.uint8)  # bytes
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, targets.astype(jnp.int32))
    np.testing.assert_allclose(cross_entropy(logits, targets), expected, rtol=1e-5, atol=1e-5)
    assert np.isnan(cross_entropy(logits, jnp.full((2, 3), -1))).all()
    assert np.isnan(cross_entropy(logits, jnp.full((2, 3), 256))).all()
    assert cross_entropy(logits.astype(jnp.bfloat16), targets).dtype == jnp.float32


def test_the_z_loss_alone_holds_the_logits():
    """Moved together, all logits have a gradient of 2 z_loss log Z, and none without."""
    logits, target = jax.random.normal(KEY, (7,)), jnp.int32(3)
    for z_loss in (0.0, 0.1):
        gradient = jax.grad(lambda shift, z_loss=z_loss: cross_entropy(logits + shift, target, z_loss=z_loss))(1.0)
        assert float(gradient) == pytest.approx(2 * z_loss * float(jax.nn.logsumexp(logits + 1.0)), abs=1e-5)


def test_readers_take_in_what_their_layer_gives():
    made = network(mlp_factor=3.0)
    params = jax.eval_shape(made.init, KEY)
    _, activations = jax.eval_shape(made.activations, params, TOKENS)
    assert {path: a.shape for path, a in activations.items()} == dict.fromkeys(made.readers, (3, TIME, 3 * WIDTH))
    assert count_units(params, made.readers) == dict.fromkeys(made.readers, 3 * WIDTH)
    assert network(mlp="swiglu").readers == network(scan_layers=True).readers == {}


def test_it_learns_a_sequence_by_heart_under_projection():
    made = network(mlp="squared-relu")
    optimizer = nap.normalize_and_project(optax.adam(1e-2))

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry

            def loss(params):
                return jnp.mean(cross_entropy(made.apply(params, TOKENS[:, :-1]), TOKENS[:, 1:], z_loss=1e-4))

            value, gradients = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), None, 80)

    params = jax.jit(made.init)(KEY)
    (trained, _), losses = train(params)
    assert losses[0] > 2.0 and losses[-1] < 0.5  # the first tokens of the three differ
    for path, norm in nap.weight_norms(params).items():
        np.testing.assert_allclose(nap.weight_norms(trained)[path], norm, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads must divide the width, got heads=3 for width=8"),
        ({"heads": 8}, "rotary positions turn pairs of features, so a head needs an even number, got 1"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"mlp_factor": 0.01}, r"mlp_factor \* width must be at least 1, got 0"),
        ({"norm": "none"}, "norm must be one of 'layer', 'rms', got 'none'"),
        ({"mlp": "relu"}, "mlp must be one of 'gelu', 'swiglu', 'squared-relu', got 'relu'"),
        ({"positions": "sine"}, "positions must be one of 'rotary', 'learned', got 'sine'"),
        ({"placement": "post"}, "placement must be one of 'every', 'pre', got 'post'"),
        ({"attention": "flash"}, "attention must be one of 'xla', 'cudnn', got 'flash'"),
    ],
)
def test_bad_input_is_told_in_one_line(options, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # our own words, not the type checker's
    with pytest.raises(ValueError, match=message):
        Transformer(VOCABULARY, **{**SMALL, **options}, rngs=nnx.Rngs(0))


def test_a_sequence_longer_than_the_context_is_refused():
    made = network()
    with pytest.raises(ValueError, match="a sequence of 7 tokens is longer than the context, 6"):
        jax.eval_shape(made.apply, jax.eval_shape(made.init, KEY), jnp.zeros((1, 7), jnp.int32))
