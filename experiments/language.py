"""A decoder-only transformer on text: does Normalize-and-Project cost anything where nothing changes?

`--method none` normalizes what attention and MLP read, as usual (pre-LN); `layernorm` and `rmsnorm` normalize before
every nonlinearity and what is written onto the stream, and leave the weights free; `nap` projects them too. Held-out
loss and accuracy, each per token, are recorded beside weight norms and effective learning rates; `--choices` scores
questions with choices at the end, zero-shot. (After Normalize-and-Project, arXiv 2407.01800, table 1.)

The decoupled weight decay that a baseline usually has is a rival: `--method none+weight-decay --weight-decay 0.1`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from envs.fingerprints import of_parts
from envs.loaders import TextBatch, Tokenizer, fingerprint, held_out_sequences, tokenize
from experiments import harness
from experiments.harness.bounds import A_PATH, A_SEED, at_least, inside, read_if, replaced
from experiments.harness.choices import Choices, load_choices, score
from experiments.harness.mesh import on_every_device
from experiments.harness.methods import NapConfig, OptimizerConfig, learning_rate, norm_of, parse_method
from experiments.harness.processes import together
from experiments.harness.rivals import RivalsConfig, has_part
from experiments.harness.supervised import Judged, State, Task, TrainingConfig, check, evaluated, evaluated_in
from experiments.harness.texts import Source, in_memory, streamed, tokenizer_of, told_of
from experiments.harness.trained import Choice, Saved, Trained
from experiments.harness.training import (
    Data,
    TrainingOptions,
    constraint_of,
    devices_of,
    jobs_of_seeds,
    run_to_end,
    share,
)
from experiments.harness.transformer import NetworkConfig, memory_needed, sized
from nap.layers import identity
from nap.networks import Recipe, StatefulNetwork
from nap.networks.transformer import cross_entropy

_ALL_BUT_RMSNORM = read_if(lambda config: not has_part(config, "rmsnorm"), "other methods than rmsnorm")


@dataclasses.dataclass(frozen=True)
class Config:
    """Text, a transformer and a method."""

    text: Annotated[str, A_PATH, read_if(lambda config: not config.streamed, "text that is not --streamed")] = "stdlib"
    """A file or folder of .txt, .md, .py, .jsonl (.ndjson, .jsonlines, .json) or .parquet; stdlib: Python's own
    library."""
    held_out: Annotated[str, A_PATH] = ""
    """Another file or folder to evaluate on; if not given, a tenth of the documents."""
    streamed: Annotated[str, A_PATH] = ""
    """Instead of `text`: c4, another text data set of the Hugging Face Hub (owner/name), or a folder of train-... and
    validation-..., .jsonl or .parquet."""
    vocabulary: Annotated[int, at_least(0)] = 0
    """Tokens of a vocabulary of byte pairs, learned from the text to train on; 0: bytes."""
    tokenizer: Annotated[str, A_PATH] = ""
    """A tokenizer.json, instead."""
    sequence: Annotated[int, at_least(1)] = 256
    """Tokens of a sequence."""
    evaluation_tokens: Annotated[int, at_least(0)] = 0
    """At most so many held-out tokens are evaluated on; 0: all. Of a stream, a document is read for each 64 of them."""
    choices: Annotated[tuple[str, ...], A_PATH] = ()
    """Questions to score at the end: piqa, siqa, lambada, each from $NAP_DATA or from a file: piqa=valid.jsonl."""
    method: str = "nap"
    """none: pre-LN; layernorm, rmsnorm: a normalization before every nonlinearity and write; nap: that, and projection.
    With interventions joined by +: none+l2, nap+l2-init."""
    seed: Annotated[int, A_SEED] = 0
    """The first seed. Seed, options and data determine a run."""
    updates: Annotated[int, at_least(1)] = 5_000
    """Length of the run."""
    z_loss: Annotated[float, at_least(0)] = 0.0
    """Weight of (log Z)^2, which keeps the logits from drifting; 1e-4 is usual."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What is computed in; weights are float32."""
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    training: TrainingConfig = dataclasses.field(default_factory=lambda: TrainingConfig(batch_size=32))
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            "adam", lr=3e-3, schedule="warmup-cosine", lr_end=0.01, optimizer_epsilon=1e-8, adam_b2=0.95, clip=1.0
        )
    )
    nap: Annotated[NapConfig, inside(norm=_ALL_BUT_RMSNORM)] = dataclasses.field(default_factory=NapConfig)
    rivals: RivalsConfig = dataclasses.field(default_factory=RivalsConfig)


PRESETS = {
    "default": Config(),
    "quick": Config(
        sequence=128,
        evaluation_tokens=65_536,
        updates=600,
        network=NetworkConfig(layers=2, width=64),
        training=TrainingConfig(batch_size=16, evaluations=4, log_every=20),
    ),
    "small": Config(
        streamed="c4",
        vocabulary=32_000,
        sequence=1024,
        evaluation_tokens=4_000_000,
        updates=20_000,
        z_loss=1e-4,
        dtype="bfloat16",
        network=NetworkConfig(layers=12, heads=12, width=768, tied=True, attention="cudnn", scan_layers=True),
        training=TrainingConfig(batch_size=128, accumulate=4, evaluations=20, log_every=50),
    ),
}
"""quick: minutes on two cores. small: 110 million parameters and 2.6 billion tokens of C4, for a GPU."""


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit code."""
    return harness.run_command(
        run, Config, argv, name="language", description=__doc__, presets=PRESETS, options_type=TrainingOptions
    )


def plan(argv: list[str]) -> list[harness.Job]:
    """A command for each seed of a command line. Raises harness.UserError."""
    config, options = harness.parse_command(
        Config, argv, name="language", description=__doc__, presets=PRESETS, options_type=TrainingOptions
    )
    return jobs_of_seeds("language", argv, resolve(config), options, _label)


def run(config: Config, options: TrainingOptions) -> Path:
    """A run, from its beginning or from where it was left; returns its folder. Raises harness.UserError."""
    config = resolve(config)
    mesh = devices_of(config.training, options)  # before anything is loaded
    if config.network.attention == "cudnn" and (jax.default_backend(), config.dtype) != ("gpu", "bfloat16"):
        raise harness.UserError("--attention cudnn: it needs an NVIDIA GPU and --dtype bfloat16; take xla")
    harness.enable_compilation_cache()
    text = load(config, options)
    vocabulary = text.tokenizer.vocabulary

    def task_of(config: Config) -> Task:
        network = network_of(config, vocabulary, constraint_of(mesh, options))
        judging = functools.partial(judge, z_loss=config.z_loss)
        return Task(network, lambda batch: batch.inputs, judging)

    def counted() -> StatefulNetwork:
        return network_of(replaced(config, ("network", "attention"), "xla"), vocabulary)

    def at_end(opened: harness.Run, task: Task, state: State) -> dict[str, float | str]:
        evaluate = task.network.evaluate
        logits = jax.jit(evaluate) if mesh is None else on_every_device(evaluate, mesh)
        scored = {
            f"{choices.form}/{name}": value
            for choices in text.choices
            for name, value in score(
                lambda tokens: logits(*evaluated(state), tokens), choices.questions, text.tokenizer, config.sequence
            ).items()
        }
        if scored:
            opened.record({"phase": "choices", "updates": config.updates, **scored})
        return {**scored, "held_out_text": text.fingerprint}

    return run_to_end(
        "language",
        config,
        options,
        task_of,
        text.data,
        label=_label(config),
        needs=functools.partial(memory_needed, task_of, mesh, shard=options.shard),
        sized=sized(config, mesh),
        counted=counted,
        at_end=at_end,
    )


class Text(NamedTuple):
    """Text that is there.

    Attributes:
        data: the batches.
        tokenizer: of the text.
        fingerprint: of the held-out documents: runs of different ones can't be compared.
        choices: the questions to score.
    """

    data: Data
    tokenizer: Tokenizer
    fingerprint: str
    choices: list[Choices]


def resolve(config: Config) -> Config:
    """The configuration with what it leaves open filled in.

    Raises:
        harness.UserError: a value that makes no sense, with the option.
    """
    method, network = parse_method(config.method), config.network
    if method.activation != "relu":
        raise harness.UserError(f"--method {config.method}: the activation of a transformer is --mlp")
    check(config)
    if config.vocabulary and config.tokenizer:
        raise harness.UserError("--vocabulary learns a tokenizer, and --tokenizer brings one: give one of them")
    if config.streamed and config.held_out:
        raise harness.UserError("--held-out goes with --text; a stream has a validation split")
    if config.streamed and not config.evaluation_tokens:
        raise harness.UserError("--evaluation-tokens 0: a stream's validation split has no end; give a number")
    learning_rate(config.optimizer, config.updates)
    qk_norm = "no" if method.base == "none" else "yes"
    # Of GELU and SwiGLU scale and offset are no free choice of units: projecting them would constrain the function.
    affine = "project" if network.mlp == "squared-relu" else "regularize"
    resolved = dataclasses.replace(
        config,
        network=dataclasses.replace(network, qk_norm=qk_norm if network.qk_norm == "auto" else network.qk_norm),
        nap=dataclasses.replace(config.nap, affine=affine if config.nap.affine == "auto" else config.nap.affine),
    )
    shallow = replaced(resolved, ("network", "layers"), 1)
    jax.eval_shape(network_of(shallow, 257).init, jax.random.key(0))  # whether the sizes fit one another
    return resolved


def network_of(
    config: Config, vocabulary: int, constrain: Callable[[jax.Array], jax.Array] = identity
) -> StatefulNetwork:
    """The transformer of a resolved configuration, as the method trains it.

    Args:
        config: resolved.
        vocabulary: number of tokens.
        constrain: see `nap.networks.transformer.Transformer`.

    Raises:
        harness.UserError: sizes that do not fit.
    """
    try:
        return recipe_of(config, vocabulary).stateful_functions(constrain=constrain)
    except ValueError as error:
        raise harness.UserError(f"the network: {error}") from None


def recipe_of(config: Config, vocabulary: int) -> Recipe:
    """How the transformer of a resolved configuration is made, as the method trains it."""
    method, sizes = parse_method(config.method), vars(config.network)
    plain = method.base == "none"
    norm = config.nap.norm if plain else norm_of(method, config.nap)
    arguments = {
        **sizes, "vocabulary": vocabulary, "qk_norm": sizes["qk_norm"] == "yes", "context": config.sequence,
        "norm": "rms" if norm == "rms" else "layer", "placement": "pre" if plain else "every", "dtype": config.dtype,
    }  # fmt: skip
    return Recipe("Transformer", arguments)


def trained(config: Config, saved: Saved, choice: Choice) -> Trained:
    """What a run has trained; see `experiments.harness.trained`. Inputs are tokens."""
    params, rest = evaluated_in(saved, config.training)
    return Trained(recipe_of(config, params["embedding/embedding"].shape[0]), params, rest)


def load(config: Config, options: TrainingOptions) -> Text:
    """The text of a resolved configuration, tokenized. Raises harness.UserError where it is not there, or damaged."""
    option = "--streamed" if config.streamed else "--text"

    def read() -> tuple[list[Choices], Source]:
        choices = load_choices(config.choices)
        with told_of(option):
            if not config.streamed:
                return choices, in_memory(config.text, config.held_out)
            # A document is seldom shorter than 64 tokens.
            held_out = -(-config.evaluation_tokens // 64)
            return choices, streamed(config.streamed, held_out, learn=bool(config.vocabulary))

    choices, source = together(read)
    tokenizer, of_tokenizer = tokenizer_of(config.tokenizer, config.vocabulary, source.documents, options.out)
    with told_of(option):
        tokens = tokenize(source.held_out, tokenizer)
        if config.evaluation_tokens:
            tokens = tokens[: config.evaluation_tokens + 1]
        held_out = held_out_sequences(tokens, config.sequence, config.training.part, share=share())
        train = source.train(tokenizer, config.sequence, config.training.batch_size, config.seed, share())
    asked = {"--choices": of_parts(repr(of_form).encode() for of_form in choices)} if choices else {}
    data = Data(train, held_out, "tokens", {**source.fingerprints, **of_tokenizer, **asked})
    return Text(data, tokenizer, fingerprint(source.held_out), choices)


def judge(logits: jax.Array, batch: TextBatch, *, z_loss: float = 0.0) -> Judged:
    """Cross-entropy and correctness of each token; `z_loss` is a part of what is minimized, and not of the loss."""
    targets = jnp.asarray(batch.targets)
    loss, objective = cross_entropy(logits, targets), cross_entropy(logits, targets, z_loss=z_loss)
    return Judged(objective, loss, (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32))


def _label(config: Config) -> str:
    source = Path(config.streamed or config.text).name
    return f"{source}-{config.network.layers}x{config.network.width}-{config.method}-seed{config.seed}"
