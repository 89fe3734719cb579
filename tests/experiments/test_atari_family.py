"""The Atari experiment's agents: published constants, what can be taken out, several games, memory, exact resume."""

import dataclasses
import importlib.util
import random
import re
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from atari_command import bits, command_line, final_state, finish, folder_of, records, start

from agents.family import FAMILY
from agents.replay import Step
from experiments import atari, harness
from experiments.atari.config import PRESETS, Config, resolve
from experiments.harness import memory
from experiments.harness.catalogue import dispatch
from experiments.harness.methods import NapConfig, learning_rate, make_optimizer, parse_method
from experiments.harness.rivals import RivalsConfig, Setting
from nap import paths
from nap.networks import Network

FRAMES_PER_UPDATE = 16
# Rainbow on Catch: two iterations of 160 agent steps, more than the replay holds.
OPTIONS = {
    "game": "catch", "agent": "rainbow", "frames": 1280, "iteration_frames": 640, "min_replay_frames": 256,
    "replay_capacity": 200, "num_envs": 2, "evaluation_episodes": 2, "batch_size": 8, "target_period": 16,
    "log_every": 4, "lr": 1e-3,
}  # fmt: skip


def arguments(out: Path, *flags: str, **changes) -> list[str]:
    return command_line(OPTIONS | changes, out, *flags)


# --- The published constants -----------------------------------------------------------------------------------------


def test_rainbow_is_that_of_dqn_zoo():
    config = PRESETS["rainbow"]
    assert config.optimizer.optimizer == "adam" and config.optimizer.schedule == "constant"
    assert config.optimizer.lr == 2.5e-4 / 4 and config.optimizer.optimizer_epsilon == 0.005 / 32
    assert (config.optimizer.clip, config.batch_size, config.gamma) == (10, 32, 0.99)
    assert config.ingredients == FAMILY["rainbow"] and config.ingredients.n_step == 3
    assert config.target_period * FRAMES_PER_UPDATE == 32_000
    assert config.update_period * atari.FRAME_SKIP == FRAMES_PER_UPDATE
    assert (config.replay_capacity, config.min_replay_frames) == (1_000_000, 80_000)  # 20,000 agent steps
    assert (config.priority_exponent, config.importance_exponent, config.uniform_probability) == (0.5, 0.4, 1e-3)
    assert (config.frames, config.iteration_frames, config.evaluation_frames) == (200_000_000, 1_000_000, 500_000)
    assert (config.protocol, config.method, config.evaluation_epsilon) == ("dqn-zoo", "none", 0)
    assert config.iterations == 200
    assert atari.epsilon_at(config, 0) == atari.epsilon_at(config, 10**7) == 0


def test_the_first_step_of_rainbows_optimizer_by_hand():
    """Adam moves each weight by lr g / (g + eps) at first, g clipped by the global norm."""
    config = resolve(PRESETS["rainbow"])
    params = {"a": np.zeros((3, 4), np.float32), "output": np.zeros((4, 2), np.float32)}
    network = Network(lambda key: params, lambda *_: None, lambda *_: (None, {}))
    setting = Setting(network, jax.random.key(0), config.total_updates)
    optimizer = make_optimizer(parse_method(config.method), config.optimizer, NapConfig(), RivalsConfig(), setting)
    gradients = jax.tree.map(lambda leaf: np.full_like(leaf, 1e-4), params)
    steps, _ = optimizer.update(gradients, optimizer.init(params), params)
    wanted = -6.25e-5 * 1e-4 / (1e-4 + 1.5625e-4)
    np.testing.assert_allclose(steps["a"], np.full((3, 4), wanted), rtol=1e-4)
    gradients = jax.tree.map(lambda leaf: np.full_like(leaf, 1e4), params)  # of norm 1e4 sqrt(20), clipped to 10
    assert float(optax.tree.norm(gradients)) > 10
    steps, _ = optimizer.update(gradients, optimizer.init(params), params)
    clipped = 10 / np.sqrt(20)
    np.testing.assert_allclose(steps["a"], np.full((3, 4), -6.25e-5 * clipped / (clipped + 1.5625e-4)), rtol=1e-4)


def test_the_target_network_is_copied_every_so_many_frames(tmp_path, monkeypatch):
    """At multiples of that many, as in DQN Zoo: 32,000 for Rainbow, and here 384. The first update is at 256."""
    copied, made = [], atari.build

    def watched(*given, **options):
        functions = made(*given, **options)

        def learn(update):
            def watching(*given):
                agent, *rest = update(*given)
                same = jax.tree.map(lambda a, b: bool((a == b).all()), agent.params, agent.target_params)
                if all(jax.tree.leaves(same)):
                    copied.append(256 + FRAMES_PER_UPDATE * int(agent.updates))
                return agent, *rest

            watching.lower = update.lower
            return watching

        return functions._replace(learn=learn(functions.learn), measure=learn(functions.measure))

    monkeypatch.setattr(atari, "build", watched)
    assert dispatch(arguments(tmp_path, target_period=24)) == 0
    assert copied == [384, 768, 1152]
    rows = [row for row in records(folder_of(tmp_path)) if "elr/output" in row]
    assert all(row["frames"] == 256 + FRAMES_PER_UPDATE * row["updates"] for row in rows)


@pytest.mark.parametrize(
    ("name", "lr", "epsilon", "target_frames", "epsilon_end", "evaluation_epsilon"),
    [
        ("dqn", 2.5e-4, 0.01 / 32**2, 40_000, 0.1, 0.05),
        ("double-dqn", 2.5e-4, 0.01 / 32**2, 120_000, 0.01, 0.01),
        ("c51", 2.5e-4, 0.01 / 32, 40_000, 0.01, 0.001),
        ("qr-dqn", 5e-5, 0.01 / 32, 40_000, 0.01, 0.001),
        ("iqn", 5e-5, 0.01 / 32, 40_000, 0.01, 0.001),
    ],
)
def test_the_other_agents_are_those_of_dqn_zoo(name, lr, epsilon, target_frames, epsilon_end, evaluation_epsilon):
    config = PRESETS[name]
    assert (config.agent, config.ingredients) == (name, FAMILY[name])
    assert (config.optimizer.lr, config.optimizer.optimizer_epsilon) == (lr, epsilon)
    assert config.optimizer.optimizer == ("rmsprop" if name in ("dqn", "double-dqn") else "adam")
    assert config.target_period * FRAMES_PER_UPDATE == target_frames
    assert (config.epsilon_end, config.evaluation_epsilon) == (epsilon_end, evaluation_epsilon)
    assert config.exploration_frames == 4_000_000


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_sense(name):
    config = resolve(PRESETS[name])
    assert config.total_updates > 0 and config.iterations * config.iteration_frames == config.frames
    assert float(learning_rate(config.optimizer, config.total_updates)(0)) == pytest.approx(config.optimizer.lr)


# --- Ingredients -----------------------------------------------------------------------------------------------------


def config_of(*flags: str) -> Config:
    return harness.parse_command(Config, flags, name="atari", description=None, presets=PRESETS)[0]


@pytest.mark.parametrize(
    ("flag", "changes"),
    [
        ("--no-distribution", {"distribution": "none"}),
        ("--no-double", {"double": False}),
        ("--no-dueling", {"dueling": False}),
        ("--no-noisy", {"noisy": False}),
        ("--no-prioritized", {"prioritized": False}),
        ("--n-step=1", {"n_step": 1}),
    ],
)
def test_a_flag_takes_one_ingredient_out(flag, changes):
    config = resolve(config_of("--preset", "rainbow", flag))
    assert config.ingredients == dataclasses.replace(FAMILY["rainbow"], **changes)


def test_without_noisy_layers_rainbow_explores_by_epsilon():
    config = config_of("--preset", "rainbow", "--no-noisy")
    # From 1, linearly over 4M frames that begin with the first update, at 80,000 frames.
    found = [atari.epsilon_at(config, frames // 4) for frames in (0, 80_000, 2_080_000, 4_080_000, 10_000_000)]
    np.testing.assert_allclose(found, [1, 1, 0.505, 0.01, 0.01], rtol=1e-6)


@pytest.mark.parametrize(
    ("agent", "flag", "line"),
    [
        ("dqn", "--no-noisy", "--no-noisy: dqn does not have it; what can be taken out is nothing"),
        (
            "double-dqn",
            "--no-dueling",
            "--no-dueling: double-dqn does not have it; what can be taken out is --no-double",
        ),
        ("c51", "--no-double", "--no-double: c51 does not have it; what can be taken out is --no-distribution"),
    ],
)
def test_an_ingredient_that_the_agent_lacks_cannot_be_taken_out(agent, flag, line, tmp_path, capsys):
    assert dispatch(arguments(tmp_path, flag, agent=agent)) == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"n_step": -1}, "--n-step -1: it must be at least 0"),
        ({"priority_exponent": 1.5}, "--priority-exponent 1.5: it must lie in 0 to 1"),
        ({"importance_exponent": -1}, "--importance-exponent -1.0: it must lie in 0 to 1"),
        ({"uniform_probability": 2}, "--uniform-probability 2.0: it must lie in 0 to 1"),
        ({"evaluation_frames": 4}, "--evaluation-frames 4: it must be 0, or at least 8"),
        ({"replay_capacity": 13}, "--replay-capacity 13: it must be at least 14, 7 steps of each of 2 environments"),
        (
            {"agent": "iqn", "method": "plasticity-injection"},
            "--method plasticity-injection: plasticity-injection adds",
        ),
    ],
)
def test_bad_input_is_one_line(changes, line, tmp_path, capsys):
    assert dispatch(arguments(tmp_path, **changes)) == 2
    *_, said = capsys.readouterr().err.splitlines()  # before it, that --evaluation-episodes is not read
    assert said.startswith(f"error: {line}")


# --- Games, memory, evaluation ---------------------------------------------------------------------------------------

needs_pgx = pytest.mark.skipif(importlib.util.find_spec("pgx") is None, reason="pgx (the extra jaxenvs) is optional")


@pytest.mark.parametrize(
    ("game", "frame", "first", "hidden"),
    [
        ("catch", (10, 5), None, (200, 512)),
        ("bricks", (10, 10), None, (400, 512)),
        ("moving-goals-5", (10, 10), None, (400, 512)),
        pytest.param("minatar-seaquest", (10, 10, 10), (3, 3, 40, 16), (1024, 128), marks=needs_pgx),
        ("pong", (84, 84), (8, 8, 4, 32), (3136, 512)),
    ],
)
def test_the_network_and_the_replay_fit_the_game(game, frame, first, hidden):
    """The kernels of the torso's first layer and of the hidden one, and what the replay stores."""
    config = resolve(Config(game=game, agent="dqn", replay_capacity=400))
    made = jax.eval_shape(atari.build(config, 3, (4, *frame)).init, jax.random.key(0))
    assert made.replay.experience.frame.shape == (8, 50, *frame)
    shapes = {path: leaf.shape for path, leaf in paths.leaves(made.agent.params).items()}
    assert (shapes.get("torso/0/kernel"), shapes["hidden/kernel"]) == (first, hidden)


@pytest.mark.parametrize(
    "game", ["bricks", "moving-goals-1", "switching-dim", pytest.param("minatar-breakout", marks=needs_pgx)]
)
def test_every_kind_of_game_is_played_by_its_name(game):
    """A reset, a step and the replay's step, as the loop has them."""
    config = resolve(Config(game=game, agent="dqn", num_envs=2, replay_capacity=400))
    environments = atari.make_environments(config)
    functions = atari.build(config, environments.num_actions, environments.observation_shape)
    state = jax.eval_shape(functions.init, jax.random.key(0))
    before = environments.reset(0)
    environments.send(np.zeros(2, np.int32))
    after = environments.recv()
    assert after.observation.shape == (2, *environments.observation_shape)
    step = Step(before.observation[:, -1], np.zeros(2, np.int32), after.reward, after.discount, before.first)
    jax.eval_shape(functions.add, state.replay, step)


@pytest.mark.parametrize(
    ("game", "near"),
    [
        ("brick", "bricks"),
        ("Switching-Dim", "switching-dim"),
        ("minatar-breakot", "minatar-breakout"),
        ("minatar-space-invaders", "minatar-space_invaders"),
    ],
)
def test_a_misspelt_game_of_ours_is_told(game, near, tmp_path, capsys):
    assert dispatch(arguments(tmp_path, game=game)) == 2
    assert capsys.readouterr().err == f"error: --game: unknown game '{game}'; did you mean '{near}'?\n"


def test_a_game_that_needs_a_package_says_so_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pgx.minatar.breakout", None)  # as if it were not installed
    assert dispatch(arguments(tmp_path, game="minatar-breakout")) == 2
    wanted = "minatar-breakout needs pgx: `pip install pgx`, or the extra jaxenvs"
    assert capsys.readouterr().err == f"error: --game: {wanted}\n"
    assert list(tmp_path.iterdir()) == []


def test_several_games_are_run_one_after_another(tmp_path, monkeypatch):
    played = []
    monkeypatch.setattr(atari, "_run", lambda config, *_: played.append((config.game, config.games, config.seed)))
    monkeypatch.setattr(harness, "tell_end", lambda *_, **__: None)
    assert dispatch(arguments(tmp_path, games="pong,ALE/Breakout-v5", seeds=2)) == 0
    assert played == [("pong", "", 0), ("breakout", "", 0), ("pong", "", 1), ("breakout", "", 1)]
    assert len(list((tmp_path / "atari").iterdir())) == 4
    played.clear()
    assert dispatch(arguments(tmp_path / "ten", games="atari-10")) == 0
    assert len({game for game, *_ in played}) == 10


def test_a_game_that_does_not_exist_among_several_stops_all_of_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(atari, "_run", lambda *_: pytest.fail("nothing must run"))
    assert dispatch(arguments(tmp_path, games="pong,brekout")) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: --games: ") and "breakout" in said


def test_a_run_that_cannot_fit_is_refused_before_it_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 15_000_000)
    monkeypatch.setattr(atari, "train", lambda *_, **__: pytest.fail("it must not start"))
    assert dispatch(arguments(tmp_path, replay_capacity=100_000)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    replay = (1e5 * (10 * 5 + 4 + 4 + 4 + 1) + 8 * 2**17) / 1e9  # the steps and the tree
    each = r"error: replay ([\d.]+) GB, network and optimizer ([\d.]+) GB, a batch 0.00 GB: "
    there = r"they need ([\d.]+) GB on \S+, and 0.0[12] GB are free there; take a smaller --replay-capacity \((\d+) "
    there += r"fits\), or --hidden \(\d+ fits\)"
    found = re.fullmatch(each + there, last)
    assert found, last
    of_replay, of_network, together, fits = map(float, found.groups())
    assert of_replay == round(replay, 2) and 0 < of_network < 0.02
    assert together == pytest.approx(of_replay + of_network, abs=0.01)
    assert 14 <= fits < 15_000_000 / 63


@pytest.mark.parametrize(("available", "free"), [(3_000_000_000, ", of 3.00 GB free"), (None, "")])
def test_the_line_about_memory_tells_each_part(available, free, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: available)
    parts = {"replay": 2_000_000_000, "network": 50_000_000}
    line = memory.require_memory(parts, jax.devices()[0], "take less")
    assert line == f"memory: replay 2.00 GB, network 0.05 GB{free} on {jax.devices()[0]}"
    parts["network"] = 1_100_000_000
    if available:
        with pytest.raises(harness.UserError, match=r"they need 3.10 GB on .*, and 3.00 GB are free there; take less"):
            memory.require_memory(parts, jax.devices()[0], "take less")


def test_the_bytes_of_a_tree_and_of_its_shapes():
    tree = {"a": np.zeros((3, 4), np.uint8), "b": [np.zeros(5, np.float32)]}
    assert memory.bytes_of(tree) == memory.bytes_of(jax.eval_shape(lambda: tree)) == 12 + 20
    available = memory.available_bytes(jax.devices()[0])
    assert available is None or 1e6 < available < 1e14


def test_an_evaluation_by_frames_counts_the_episodes_that_begin_in_them(tmp_path):
    """400 frames are 50 steps of each of two environments: six episodes of nine steps begin. In 8 steps one does."""
    small = {"frames": 320, "iteration_frames": 320, "agent": "dqn", "min_replay_frames": 256}
    assert dispatch(arguments(tmp_path / "some", evaluation_frames=400, **small)) == 0
    (row,) = records(folder_of(tmp_path / "some"), "eval")
    assert row["eval/episodes"] == 2 * 6 and -1 <= row["eval/return"] <= 1
    assert dispatch(arguments(tmp_path / "short", evaluation_frames=64, **small)) == 0
    (row,) = records(folder_of(tmp_path / "short"), "eval")
    assert row["eval/episodes"] == 2


# --- Exact resume ----------------------------------------------------------------------------------------------------


def test_prioritized_rainbow_killed_and_resumed_equals_the_uninterrupted_run(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(arguments(whole))
    metrics = broken / "atari" / folder_of(whole).name / "metrics.jsonl"
    phases = [records(folder_of(whole), phase) for phase in ("train", "eval")]
    first = sum(row["iteration"] == 1 for rows in phases for row in rows)
    seed = time.time_ns()
    print("seed of the kill:", seed)  # shown when the test fails
    with start(arguments(broken)) as process:
        # In the second iteration, after the first checkpoint.
        while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") > first):
            time.sleep(0.002)
        time.sleep(random.Random(seed).random() * 0.1)
        assert process.poll() is None, f"it ended before it was killed:\n{process.stderr.read()}"
        process.kill()
    assert not (metrics.parent / "DONE").exists()
    finish(arguments(broken))
    for name in ("metrics.jsonl", "summary.json"):
        assert (metrics.parent / name).read_bytes() == (folder_of(whole) / name).read_bytes(), name
    ours, theirs = (
        final_state(folder, arguments(whole), 3, (4, 10, 5)) for folder in (metrics.parent, folder_of(whole))
    )
    assert bits(ours) == bits(theirs)
    assert int(ours.agent_steps) == 320 and np.asarray(ours.replay.tree)[1] > 0 and float(ours.replay.largest) >= 1
    rows = records(metrics.parent, "train")
    for layer in ("value_hidden", "advantage_hidden"):
        norms = [row[f"weight_norm/{layer}"] for row in rows if f"weight_norm/{layer}" in row]
        np.testing.assert_allclose(norms, norms[0], rtol=1e-6)
    assert all(row["epsilon"] == 0 for row in rows)
