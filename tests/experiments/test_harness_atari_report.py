"""The report on many Atari games: which scores it takes, what it aggregates, and what it does not claim."""

import dataclasses
import html.parser
import itertools
import json
import statistics

import numpy as np
import pytest
from made_up_runs import LAYERS, Config, make_run, make_runs

from envs.scores import REFERENCES, games_in, human_normalised
from experiments import harness
from experiments.harness.read import load_runs
from experiments.harness.report import atari, write_figure, write_report
from experiments.harness.report import atari_overall as overall
from experiments.harness.report.atari_scores import Scores, baselines, scores_of, with_agents
from experiments.harness.report.looks import palette
from experiments.harness.report.panels import draw, numbers
from experiments.harness.statistics import improvement, stratified_bootstrap

ONE_LAYER = LAYERS[:1]


class Page(html.parser.HTMLParser):
    """The words of the page, and those of each table's cells: [table][row][cell]."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.tables, self.inside = "", [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True
        elif tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        self.words += data
        if self.inside:
            self.tables[-1][-1][-1] += data

    def column(self, table, name):
        """The cells of a column by those of the first one."""
        head, *rows = self.tables[table]
        return {row[0]: row[head.index(name)] for row in rows}


def write_run(out, game, method, seed, evaluations, train=(), agent="double-dqn", lr=1e-4, finish=True):
    """A run with given mean returns of its evaluations, 1,000 frames apart, and training records; gives its folder."""
    config = Config(game=game, method=method, seed=seed, agent=agent, optimizer={"name": "adam", "lr": lr})
    with harness.open_run(
        "atari", config, harness.RunOptions(out=out), label=f"{game}-{agent}-{method}-seed{seed}"
    ) as run:
        run.restore({"count": 0})
        for iteration, frames, episodes, mean_return in train:
            row = {"phase": "train", "iteration": iteration, "frames": frames, "train/episodes": episodes}
            run.record(row | {"train/return": mean_return})
        for number, score in enumerate(evaluations, start=1):
            row = {"phase": "eval", "iteration": number, "frames": 1000 * number, "eval/return": score}
            run.record(row | {"eval/human_normalised": None if score is None else human_normalised(game, float(score))})
        if finish:
            run.finish({})
        return run.folder


def write_scores(out, scores):
    """A run with one evaluation for each score of {(game, method): scores, a seed each}."""
    for (game, method), of_seeds in scores.items():
        for seed, score in enumerate(of_seeds):
            write_run(out, game, method, seed, [score])


SCORES = {
    ("pong", "none"): [-20.0, -18.0, -15.0],
    ("pong", "nap"): [-10.0, 10.0, -19.0],
    ("breakout", "none"): [2.0, 3.0],
    ("breakout", "nap"): [30.0, 31.0, 2.5],
    ("seaquest", "none"): [500.0, 700.0, 600.0],
    ("seaquest", "nap"): [400.0, 800.0, 900.0],
    ("donkey_kong", "none"): [100.0, 200.0],
    ("donkey_kong", "nap"): [300.0, 500.0],
}


@pytest.fixture(scope="module")
def few_games(tmp_path_factory):
    """Three games with human scores and one without."""
    folder = tmp_path_factory.mktemp("few")
    write_scores(folder, SCORES)
    return folder


def test_the_aggregates_are_the_statistics_of_the_last_evaluations(few_games):
    page = Page(write_report([few_games]).read_text(encoding="utf-8"))
    games = ("breakout", "pong", "seaquest")
    normalised = {
        method: {game: [human_normalised(game, score) for score in SCORES[game, method]] for game in games}
        for method in ("none", "nap")
    }
    scores = scores_of(load_runs([few_games]), "eval")
    assert scores.games == games and scores.left_out == {"donkey_kong": "no human score"}
    assert scores.labels == ["none", "nap"]
    assert scores.matrix("nap") == {game: pytest.approx(of_game) for game, of_game in normalised["nap"].items()}
    for method, of_games in normalised.items():
        means = [100 * statistics.mean(of_game) for of_game in of_games.values()]
        for name, value in (("median", statistics.median(means)), ("mean", statistics.mean(means))):
            interval = scores.aggregate(method, name).interval
            shown = f"{value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]".replace("-", "−")
            assert page.column(0, f"{name} (%)")[method] == shown
    assert page.column(0, "seeds") == {"none": "2 to 3", "nap": "3"}
    flat = np.sort([score for of_game in normalised["nap"].values() for score in of_game])
    assert scores.aggregate("nap", "IQM").value == pytest.approx(flat[2:-2].mean())
    pairs = [
        np.mean([(x > y) + 0.5 * (x == y) for x in SCORES[game, "nap"] for y in SCORES[game, "none"]]) for game in games
    ]
    found = improvement(normalised["nap"], normalised["none"])
    assert found.value == pytest.approx(np.mean(pairs))
    assert page.column(1, "probability of improvement") == {
        "nap": f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
    }


def test_the_games_stand_beside_every_aggregate(few_games):
    page = Page(write_report([few_games]).read_text(encoding="utf-8"))
    beside = "Over 3 games: Breakout, Pong, Seaquest. Left out: Donkey Kong (no human score)."
    # Evaluation alone was recorded: a table of aggregates, one of comparisons, and two figures.
    assert page.words.count(beside) == 4
    assert "While training" not in page.words


def test_the_table_of_games_has_raw_and_normalised_scores(few_games):
    page = Page(write_report([few_games]).read_text(encoding="utf-8"))
    shown = page.column(2, "nap")
    assert shown["Donkey Kong"] == "400 ± 141 (2)", "no human score: the raw one alone"
    mean, spread = statistics.mean(SCORES["pong", "nap"]), statistics.stdev(SCORES["pong", "nap"])
    human = [100 * human_normalised("pong", score) for score in SCORES["pong", "nap"]]
    assert (
        shown["Pong"]
        == f"−{-mean:.2f} ± {spread:.2g} (3) {statistics.mean(human):.3g} ± {statistics.stdev(human):.2g} %"
    )
    assert page.column(2, "emulator frames")["Pong"] == "1,000"


def test_a_named_set_of_games_is_named(tmp_path):
    games = games_in("atari-10")
    write_scores(tmp_path, {(game, "nap"): [REFERENCES[game].human] for game in games})
    page = Page(write_report([tmp_path]).read_text(encoding="utf-8"))
    assert "Over 10 games (atari-10): Amidar, Battle Zone" in page.words
    assert page.tables[0][1] == ["nap", "100.0", "100.0", "100.0", "1"]
    assert "Probability of improvement" not in page.words, "there is no other method"


def test_one_seed_claims_no_interval(tmp_path):
    write_scores(tmp_path, {key: of_seeds[:1] for key, of_seeds in SCORES.items()})
    page = Page(write_report([tmp_path]).read_text(encoding="utf-8"))
    for table in page.tables[:3]:
        assert not any("[" in cell or "±" in cell for row in table for cell in row)
    assert "one run says nothing of the spread" in page.words and "bootstrap" not in page.words
    runs = load_runs([tmp_path])
    for game, plot in atari.plots(runs):
        assert game or all(line.low is None for panel in plot.panels for line in panel.lines)


def test_a_single_seed_in_one_game_takes_the_interval_of_its_method_alone(tmp_path):
    write_scores(tmp_path, SCORES | {("pong", "none"): [-20.0]})
    scores = scores_of(load_runs([tmp_path]), "eval")
    assert scores.aggregate("none", "mean").interval is None and scores.aggregate("nap", "mean").interval is not None
    assert scores.improvement("nap", "none").interval is None
    words = Page(write_report([tmp_path]).read_text(encoding="utf-8")).words
    assert "one run says nothing of the spread" in words and "95 % bootstrap intervals" in words


def test_one_game_has_no_aggregates(tmp_path):
    write_scores(tmp_path, {key: of_seeds for key, of_seeds in SCORES.items() if key[0] == "pong"})
    page = Page(write_report([tmp_path]).read_text(encoding="utf-8"))
    assert "one game, so there are no aggregates" in page.words and "IQM" not in page.words


def test_games_that_not_all_methods_have_are_left_out_with_the_reason(tmp_path):
    scores = {key: of_seeds for key, of_seeds in SCORES.items() if key != ("seaquest", "nap")}
    write_scores(tmp_path / "some", scores)
    words = Page(write_report([tmp_path / "some"]).read_text(encoding="utf-8")).words
    assert "Over 2 games: Breakout, Pong. Left out: " in words
    assert "Donkey Kong (no human score)" in words and "Seaquest (not scored with nap)" in words
    write_scores(tmp_path / "one", {key: scores[key] for key in scores if key != ("breakout", "nap")})
    words = Page(write_report([tmp_path / "one"]).read_text(encoding="utf-8")).words
    assert "Here only Pong is such a game, so there are none. Left out:" in words
    assert "performance profiles" not in words.lower()


def test_training_and_evaluation_are_kept_apart(tmp_path):
    for game, method in itertools.product(("pong", "breakout"), ("none", "nap")):
        write_run(tmp_path, game, method, 0, [REFERENCES[game].human], [(1, 1000, 4, REFERENCES[game].random)])
    page = Page(write_report([tmp_path]).read_text(encoding="utf-8"))
    assert page.column(0, "mean (%)") == {"none": "100.0", "nap": "100.0"}
    assert page.column(1, "mean (%)") == {"none": "0.0", "nap": "0.0"}
    assert page.words.index("In evaluation") < page.words.index("While training")


def test_the_agent_is_in_the_label_where_there_are_several(tmp_path):
    for game, (agent, method, lr) in itertools.product(
        ("pong", "breakout"), (("dqn", "none", 1e-4), ("rainbow", "layernorm", 6e-5), ("rainbow", "nap", 6e-5))
    ):
        write_run(tmp_path, game, method, 0, [1.0], agent=agent, lr=lr)
    labels = ["none (agent dqn)", "layernorm (agent rainbow)", "nap (agent rainbow)"]
    assert atari.labels(load_runs([tmp_path])) == labels
    # Another agent with the same method differs in its learning rate too, which goes without saying.
    for game in ("pong", "breakout"):
        write_run(tmp_path, game, "nap", 0, [1.0], agent="dqn", lr=1e-4)
    labels = ["none (agent dqn)", "nap (agent dqn)", "layernorm (agent rainbow)", "nap (agent rainbow)"]
    assert atari.labels(load_runs([tmp_path])) == labels
    assert baselines(labels) == {
        "nap (agent dqn)": "none (agent dqn)",
        "layernorm (agent rainbow)": "none (agent dqn)",
        "nap (agent rainbow)": "layernorm (agent rainbow)",
    }
    write_run(tmp_path, "pong", "nap", 0, [1.0], agent="rainbow", lr=1e-3)  # this one does not
    assert "nap (agent rainbow, lr 0.001)" in atari.labels(load_runs([tmp_path]))
    assert len(with_agents(load_runs([tmp_path]))) == 9
    assert set(atari.labels(load_runs(tmp_path.rglob("*rainbow-nap*")))) == {"nap (lr 6e-05)", "nap (lr 0.001)"}


def test_an_experiment_without_a_choice_of_agents_is_one_itself(tmp_path):
    write_run(tmp_path, "pong", "none", 0, [1.0])
    write_run(tmp_path, "pong", "nap", 0, [1.0])
    (nap,) = tmp_path.rglob("*-nap-*/config.json")
    about = json.loads(nap.read_text(encoding="utf-8"))
    nap.write_text(
        json.dumps(about | {"experiment": "pqn", "config": {"game": "pong", "method": "nap"}, "hash": None}),
        encoding="utf-8",
    )
    assert atari.labels(load_runs([tmp_path])) == ["none (agent double-dqn)", "nap (agent pqn)"]


def test_many_games_share_figures_and_a_few_have_their_own(tmp_path):
    for game, method in itertools.product(("pong", "breakout", "qbert", "seaquest"), ("none", "nap")):
        make_run(tmp_path, Config(game=game, method=method), rows=20, layers=(LAYERS[0], LAYERS[-1]))
    runs = load_runs([tmp_path])
    shared = {
        *("aggregates", "performance-profiles", "evaluation-returns", "training-returns"),
        *("weight-norms", "effective-learning-rates", "dormant-units-of-games"),
    }
    plots = atari.plots(runs)
    assert {plot.name for _, plot in plots} == shared and len(plots) == len(shared)
    few = {(game, plot.name) for game, plot in atari.plots([run for run in runs if run.problem in ("pong", "qbert")])}
    assert {("", "aggregates"), ("", "performance-profiles"), ("pong", "returns"), ("qbert", "weight-norm")} <= few
    words = Page(write_report([tmp_path]).read_text(encoding="utf-8")).words
    assert "4 Atari games: none and nap compared" in words and f"{tmp_path}/atari/breakout-*" in words


def test_the_end_of_the_aggregates_curve_is_what_the_table_says(tmp_path):
    games = ("pong", "breakout")
    make_runs(tmp_path, ["none", "nap"], seeds=2, rows=20, games=games)
    (plot,) = [plot for _, plot in atari.plots(load_runs([tmp_path])) if plot.name == "aggregates"]
    rows = [row for row in numbers(plot) if row[1:4] == ("IQM, in evaluation", "nap", "IQM")]
    estimate = scores_of(load_runs([tmp_path]), "eval").aggregate("nap", "IQM")
    assert rows[-1][0] == "2 games: breakout, pong" and rows[-1][4] == 160_000
    assert rows[-1][5] == pytest.approx(100 * estimate.value)


def test_the_overview_of_several_games_is_over_all_of_them(tmp_path):
    make_runs(tmp_path, ["none", "nap"], seeds=1, rows=20, games=("pong", "breakout"))
    panels = atari.overview(load_runs([tmp_path])).panels
    assert panels[0].title == "IQM of 2 games, in evaluation"
    assert atari.overview(load_runs([tmp_path])).note == "Over 2 games: Breakout, Pong."
    norms = {line.method: line.y for line in panels[1].lines}
    np.testing.assert_allclose(norms["nap"], 1)
    assert norms["none"][-1] > 1.2
    assert write_figure([tmp_path], tmp_path / "overview.png").stat().st_size > 10_000


def test_the_overview_averages_norms_over_the_games_of_all_methods_each_once(tmp_path):
    for game, method, seed, growth in (
        *(("pong", "none", 0, 2.0), ("pong", "none", 1, 2.0), ("breakout", "none", 0, 8.0), ("qbert", "none", 0, 9.0)),
        *(("pong", "nap", 0, 1.0), ("breakout", "nap", 0, 1.0)),
    ):
        config = Config(game=game, method=method, seed=seed)
        label = f"{game}-{method}-seed{seed}"
        with harness.open_run("atari", config, harness.RunOptions(out=tmp_path), label=label) as run:
            run.restore({"count": 0})
            for frames, norm, rate in ((0, 1.0, 0.1), (1000, growth, 0.0)):
                row = {"phase": "train", "iteration": 1, "frames": frames}
                run.record(row | {"weight_norm/a": norm, "weight_norm/b": 1.0 + frames, "elr/a": rate, "elr/b": 0.1})
            run.record({"phase": "eval", "iteration": 1, "frames": 1000, "eval/return": 1.0})
            run.finish({})
    plot = atari.overview(load_runs([tmp_path]))
    norms = {line.method: line.y[-1] for line in plot.panels[1].lines}
    assert norms == {"none": pytest.approx(4), "nap": pytest.approx(1)}  # the mean of 2 and 8
    assert plot.note == "Over 2 games: Breakout, Pong."
    assert plot.panels[2].lines[0].y[-1] == 0


def test_the_games_stand_below_every_figure_over_games(few_games):
    runs = load_runs([few_games])
    of_games = "Over 3 games: Breakout, Pong, Seaquest."
    assert {plot.name: plot.note for game, plot in atari.plots(runs) if plot.note} == {
        "aggregates": of_games,
        "performance-profiles": of_games,
    }
    overview = atari.overview(runs)
    assert overview.note == (
        "IQM over 3 games: Breakout, Pong, Seaquest.\n"
        "Weight norm and effective learning rate over 4 games: Breakout, Donkey Kong, Pong, Seaquest."
    )
    long = dataclasses.replace(overview, note=f"{overview.note} {'Seaquest, ' * 30}")
    figure = draw(long, palette(atari.labels(runs)))
    figure.draw_without_rendering()
    (note,) = [text for text in figure.texts if "Seaquest" in text.get_text()]
    assert note.get_text().count("\n") >= 3, "it is wrapped"
    box = note.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert box.y1 < min(axes.get_tightbbox().y0 for axes in figure.axes)


def test_many_games_below_a_figure_go_by_their_sets_name():
    def note(games):
        curves = {game: {"nap": {0: (np.array([1.0]), np.array([0.0]))}} for game in games}
        return overall.profiles_plot([Scores("eval", curves, {})]).note

    assert note(games_in("atari-57")) == "Over the 57 games of atari-57."
    assert note(games_in("atari-10")).startswith("Over 10 games (atari-10): Battle Zone, ")
    assert note(games_in("atari-57")[:56]).startswith("Over 56 games: Alien, Amidar, ")


def test_runs_that_have_no_score_yet_have_no_aggregates(tmp_path):
    for game in ("pong", "breakout"):
        folder = make_run(tmp_path, Config(game=game), rows=4, finish=False, layers=ONE_LAYER)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        text = "".join(json.dumps(row | {"train/return": None}) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    words = Page(write_report([tmp_path]).read_text(encoding="utf-8")).words
    assert "No run has a score yet" in words
    write_figure([tmp_path], tmp_path / "overview.png")


def test_a_profile_begins_at_random_play_and_ends_where_no_run_is(few_games):
    scores = scores_of(load_runs([few_games]), "eval")
    profile, low, high = scores.profile("nap")
    above_random = np.mean([np.mean(np.array(of_game) > 0) for of_game in scores.matrix("nap").values()])
    assert profile[0] == pytest.approx(above_random) and profile[-1] == 0
    assert (np.diff(profile) <= 0).all() and (low <= profile).all() and (profile <= high).all()
    assert scores.thresholds[-1] == pytest.approx(max(max(x) for x in scores.matrix("nap").values()))
    found = stratified_bootstrap(scores.matrix("nap"))
    assert scores.aggregate("nap", "mean").interval == found
