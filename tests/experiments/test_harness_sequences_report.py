"""The report on sequences of games: scores beside fresh agents, what is forgotten, what is missing."""

import pytest
from made_up_runs import Config, make_run, sequence_rows, write_sequence_run
from run_folders import unseal
from test_harness_plasticity_report import Tables
from worked_sequences import (
    FRESH,
    KEPT,
    NAP,
    NONE,
    ONE_LAYER,
    config_of,
    rows_of,
    scores_in,
    write,
    write_fresh,
    write_worked,
)

from envs.scores import REFERENCES
from envs.sequence import Task, parse_tasks
from experiments.harness.errors import UserError
from experiments.harness.read import load_runs
from experiments.harness.report import atari, sequences, sequences_figures, write_figure, write_report
from experiments.harness.report.sequences_scores import difference, summary
from experiments.harness.report.sequences_studies import differing, make_studies

CONSTANT = {"optimizer": "adam", "lr": 1e-3, "schedule": "constant"}


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    return write_worked(tmp_path_factory.mktemp("worked"))


@pytest.fixture(scope="module")
def worked_page(worked):
    """The report on it, as HTML."""
    return write_report([worked]).read_text(encoding="utf-8")


def pages(*paths):
    return Tables(write_report(paths).read_text(encoding="utf-8"))


def test_the_averages_are_those_worked_by_hand(worked_page):
    page = Tables(worked_page)
    assert page.column(0, "fresh agents (%)") == {"none": "50.0", "nap": "100.0"}
    assert page.column(0, "visit 1 (%)") == {"none": "50.0", "nap": "87.5 [75.0, 100.0]"}
    assert page.column(0, "visit 2 (%)")["nap"] == "68.8 [62.5, 75.0]"
    # Over all visits, seed 0: 81.25 - 50, seed 1: 75 - 50.
    assert page.column(0, "all visits: difference to none") == {"none": "baseline", "nap": "+28.1 [+25.0, +31.2]"}
    assert page.column(0, "seeds") == {"none": "2", "nap": "2"} and "state" not in page.tables[0][0]


def test_plasticity_transfer_and_forgetting_are_those_worked_by_hand(worked_page):
    page = Tables(worked_page)
    # The first visit of catch: 100 and 50 against 100; that of bricks is left out, for nothing came before.
    assert page.column(1, "first visit − fresh")["nap"] == "−25.0 [−50.0, 0.0]"
    # Seed 0: (75 + 50)/2 - 100, seed 1: (50 + 100)/2 - 100.
    assert page.column(1, "last visit − fresh")["nap"] == "−31.2 [−37.5, −25.0]"
    # Seed 0: (-25 - 50)/2, seed 1: (-50 + 50)/2.
    assert page.column(1, "last − first visit")["nap"] == "−18.8 [−37.5, 0.0]"
    # Means over the evaluations of catch: 0.875 and 0.375 against 0.75.
    assert page.column(1, "forward transfer")["nap"] == "−12.5 [−37.5, +12.5]"
    # bricks after catch, catch after bricks, bricks after catch. Seed 0: (50 + 50 + 25)/3, seed 1: (75 + 25 + 0)/3.
    assert page.column(1, "forgetting") == {"none": "–", "nap": "+37.5 [+33.3, +41.7]"}
    assert "<b>−31.2 [−37.5, −25.0]</b>" in worked_page and "<b>−25.0 [−50.0, 0.0]</b>" not in worked_page


def test_the_table_of_tasks_has_raw_scores_bold_where_they_differ_from_a_fresh_agents(worked_page):
    page = Tables(worked_page)
    assert page.tables[2][0] == ["task", "method", "fresh", "visit 1", "visit 2", "0 %", "100 %"]
    assert page.tables[2][2] == ["bricks", "nap", "2.00", "2.00", "1.25 [1.00, 1.50]", "0.00", "2.00 fresh"]
    assert page.tables[2][3] == ["catch", "none", "0.500", "0.500", "0.500", "0.00", "1.00 fresh"]
    assert "<b>1.25 [1.00, 1.50]</b>" in worked_page and "<b>0.750 [0.500, 1.00]</b>" not in worked_page


def test_the_page_says_what_the_sequence_is_and_what_happens_at_a_switch(worked_page):
    page = Tables(worked_page)
    assert "A sequence of bricks and catch, 2 passes: none and nap compared" in page.words
    assert "bricks → catch, 2 times: 4 visits; 100 frames a visit, 400 frames in all" in page.words
    assert "experience of earlier tasks: thrown away" in page.words
    assert "2 runs of sequences and 4 runs of fresh agents" in page.words
    assert "Missing here" not in page.words and "differ in" not in page.words


def test_fresh_agents_are_those_that_differ_in_nothing_but_the_task(tmp_path):
    write(tmp_path, config_of(), NAP)
    write_fresh(tmp_path, config_of(), FRESH)
    for other in (config_of(head="own"), config_of(frames=200), config_of("redo")):
        write_fresh(tmp_path, other, FRESH)
    study, rest = make_studies(load_runs([tmp_path]))
    (method,) = study.methods
    assert [sorted(seeds) for seeds in method.fresh.values()] == [[0, 1], [0, 1]]
    assert all(run.config["frames"] == 100 for run in method.all_runs)
    assert rest.name == "fresh agents" and len(rest.tasks) == 4 and not rest.sequence.visits
    assert {label.label for label in rest.methods} == {"nap (head own)", "nap (head shared)", "redo"}
    words = pages(tmp_path).words
    assert "Fresh agents, of no sequence in this report: bricks (100 frames)" in words


def test_a_task_has_a_budget_of_its_own(tmp_path):
    tasks = "bricks,catch:frames=200,bricks"
    config = config_of(tasks=tasks, passes=1, seeds=1)
    write(tmp_path, config, [[(1, 2)], [(0.5, 1)], [(1, 1)]], [[(2, 0, 2)], [(1, 1, 1)], [(1, 1, 1)]])
    for task in parse_tasks(tasks, 100)[:2]:
        write(tmp_path, config.alone(task), [[(1, 2)]])
    scores = scores_in(tmp_path)
    (method,) = scores.study.methods
    bricks, catch = scores.study.tasks
    assert catch == Task("catch", 200) and [visit.number for visit in scores.study.visits[bricks]] == [0, 2]
    assert scores.plasticity(method) == {bricks: {0: pytest.approx(-50)}}
    # bricks: 2, then 1 when catch is over; catch 1, then 1; the last visit has no other after it.
    lost = scores.forgetting(method)
    assert {visit.number: of for visit, of in lost.items()} == {0: {0: pytest.approx(50)}, 1: {0: pytest.approx(0)}}
    assert "catch (200 frames)" in pages(tmp_path).words


def test_games_with_human_scores_are_normalised_by_them_without_any_fresh_agent(tmp_path):
    pong, breakout = REFERENCES["pong"], REFERENCES["breakout"]
    half = (breakout.random + breakout.human) / 2
    evaluations = [[(0, pong.human)], [(0, half)], [(0, pong.random)], [(0, half)]]
    write(tmp_path, config_of(tasks="pong,breakout", seeds=1), evaluations)
    page = pages(tmp_path)
    assert page.tables[0][1] == ["nap", "–", "75.0", "25.0", "1"]
    assert page.column(1, "last − first visit")["nap"] == "−50.0" and page.column(1, "last visit − fresh")["nap"] == "–"
    assert "nap: no fresh agent for any task yet" in page.words and "no scale" not in page.words
    assert "0 % is random play and 100 % a human tester" in page.words
    assert "One seed has no interval" in page.words


def test_a_game_that_no_fresh_agent_has_learned_has_no_scale(tmp_path):
    write(tmp_path, config_of(), NAP)
    # One seed's evaluations are no better than its first record, which is 0, though both seeds end above it.
    write_fresh(tmp_path, config_of(), [FRESH[0], [(0.1, 0.2), (-0.3, 0.1)]])
    scores = scores_in(tmp_path)
    assert [task.game for task in scores.scales] == ["bricks"] and not scores.has_all_scales
    page = pages(tmp_path)
    assert "catch: no scale, so left out of all averages" in page.words
    assert page.column(0, "visit 2 (%)")["nap"] == "62.5 [50.0, 75.0] over 1 of 2"  # of bricks
    assert page.column(0, "fresh agents (%)")["nap"] == "100.0 over 1 of 2"
    plot = sequences_figures.scores_plot(scores)
    assert plot.label.startswith("return per episode") and max(plot.panels[0].lines[0].y) == 2


def test_a_sequence_in_its_third_visit(tmp_path):
    write(tmp_path, config_of(), [*NAP[:2], [(1, 1), (1, 1)]][:3], KEPT[:3], finish=False)
    rows = rows_of(config_of("none"), NONE[:3])
    write_sequence_run(tmp_path, config_of("none"), rows[:-1], finish=False)  # seed 1 is halfway through the third
    write_fresh(tmp_path, config_of(), FRESH)
    page = pages(tmp_path)
    assert page.column(0, "state") == {"none": "2 to 3 of 4 visits", "nap": "3 of 4 visits"}
    # Seed 0 of none is the one that has most.
    assert page.column(0, "visit 2 (%)") == {"none": "50.0 over 1 of 2, 1 of 2 seeds", "nap": "50.0 over 1 of 2"}
    assert page.column(1, "forgetting")["nap"].endswith("over 2 of 3")
    assert "2 of them have not finished" in page.words and "compare it with care" in page.words
    assert "none: no fresh agent for any task yet" in page.words


def test_differences_between_methods_are_over_what_both_have():
    visits = ("first", "second")
    ours = {visits[0]: {0: 10.0, 1: 20.0}, visits[1]: {0: 50.0}}
    theirs = {visits[0]: {0: 0.0, 1: 10.0, 2: 99.0}, visits[1]: {0: 10.0, 1: 10.0}}
    # Seed 0 has both visits, 30 - 5; that of seed 1 would be the first visit's alone.
    assert difference(ours, theirs) == ((25, 25, 25), 2, 2, 1) and difference(ours, {}) is None
    one = difference(ours, {visits[0]: theirs[visits[0]]})  # 10 - 0 and 20 - 10
    assert one == ((10, 10, 10), 1, 2, 2)
    assert summary(ours).interval == (30, 30, 30), "seed 0 has both"
    assert summary(ours)[1:] == (2, 2, 1) and summary({"first": {}}) is None
    assert summary({"first": {0: 1.0}, "second": {1: 1.0}}) is None, "no visit that both seeds have"


def test_a_seed_that_diverged_is_named_and_its_comparisons_are_dropped(tmp_path):
    lost = [*NAP[:2], [(1, 1.5), (1, None)], [(0.25, 0.5), (None, None)]]  # seed 1, in the third visit
    kept = [*KEPT[:2], [(1.5, 0.5), (None, None)], [(1, 0.5), (None, None)]]
    write(tmp_path, config_of(), lost, kept)
    write_fresh(tmp_path, config_of(), [FRESH[0], [FRESH[1][0], (0.5, None)]])
    write(tmp_path, config_of("none"), NONE)
    page = pages(tmp_path)
    assert "nap, seed 1: diverged in visit 3 (bricks), so it has no score from there on; what needs one" in page.words
    assert "nap, seed 1: its fresh agent on catch diverged, so what is compared with that is over the" in page.words
    assert "none, seed" not in page.words and "One seed has no interval" in page.words and "Brackets:" in page.words
    assert page.column(0, "seeds") == {"none": "2", "nap": "2 (1 diverged)"}
    assert "state" not in page.tables[0][0] and "not all visits are over" not in page.words
    assert page.column(0, "visit 1 (%)")["nap"] == "87.5 [75.0, 100.0]"
    # What follows is seed 0's, as in the case that is worked by hand.
    assert page.column(0, "fresh agents (%)")["nap"] == "100.0 1 of 2 seeds"
    assert page.column(0, "visit 2 (%)")["nap"] == "62.5 1 of 2 seeds"
    assert page.column(0, "all visits: difference to none")["nap"] == "+31.2 1 of 2 seeds"
    effects = {name: page.column(1, name)["nap"] for name in page.tables[1][0][1:]}
    assert effects == {
        "first visit − fresh": "0.0 1 of 2 seeds",
        "last visit − fresh": "−37.5 1 of 2 seeds",
        "last − first visit": "−37.5 1 of 2 seeds",
        "forward transfer": "+12.5 1 of 2 seeds",
        "forgetting": "+41.7 1 of 2 seeds",
    }
    assert page.tables[4][2][3:5] == ["2.00", "1.50"]
    assert write_figure([tmp_path], tmp_path / "overview.png").stat().st_size > 10_000


def test_a_method_that_diverged_with_every_seed_makes_a_page(tmp_path):
    nothing = [[(None, None)] * 2] * 4
    write(tmp_path, config_of(), nothing, [[(None, None)] * 2] * 4)
    write_fresh(tmp_path, config_of(), nothing[:2])
    page = pages(tmp_path)
    assert page.tables[0][1] == ["nap", "–", "–", "–", "2 (2 diverged)"]
    assert "nap, seed 0: diverged in visit 1 (bricks)" in page.words and "no fresh agent" not in page.words
    assert write_figure([tmp_path], tmp_path / "overview.png").stat().st_size > 1_000


def test_one_method_with_two_schedules_has_them_in_its_label_and_no_other_has(tmp_path):
    write(tmp_path, config_of(), NAP)
    write(tmp_path, config_of(optimizer=CONSTANT), NAP)
    write(tmp_path, config_of("none", optimizer=CONSTANT), NONE)
    runs = load_runs([tmp_path])
    assert sequences.labels(runs) == ["none", "nap (schedule constant)", "nap (schedule cosine)"]
    (study,) = make_studies(runs)
    constant = ["none", "nap (schedule constant)"]
    assert differing(study) == {"schedule": {"constant": constant, "cosine": ["nap (schedule cosine)"]}}
    words = pages(tmp_path).words
    assert "schedule constant for none and nap (schedule constant), cosine for nap (schedule cosine)" in words


def test_seeds_in_several_folders_are_one_method_and_none_counts_twice(tmp_path):
    write(tmp_path, config_of(), [of[:1] * 2 for of in NAP])
    write(tmp_path, config_of(seed=1), [of[1:] * 2 for of in NAP[:3]])  # seeds 1 and 2, not as far
    (study,) = make_studies(load_runs([tmp_path]))
    (method,) = study.methods
    assert sorted(method.runs) == [0, 1, 2]
    last = study.sequence.visits[2]
    assert {seed: y[-1] for seed, (_, y) in method.curves(last).items()} == {0: 1.5, 1: 1.5, 2: 1}


def test_several_sequences_have_a_part_each(tmp_path):
    for tasks, passes in (("bricks", 3), ("bricks,catch", 2), ("catch,bricks", 2), ("bricks,catch,moving-goals-0", 1)):
        write(tmp_path, config_of(tasks=tasks, passes=passes), NAP)
    runs = load_runs([tmp_path])
    names = {study.name for study in make_studies(runs)}
    assert names == {"bricks, 3 passes", "bricks and catch, 2 passes", "catch and bricks, 2 passes", "3 games, 1 pass"}
    assert sequences.title(runs) == "4 sequences: nap"
    assert {name for name, _ in sequences.plots(runs)} == names
    write(tmp_path, config_of(tasks="bricks,catch", passes=2, frames=200), NAP)
    assert "bricks and catch, 2 passes (2)" in {study.name for study in make_studies(load_runs([tmp_path]))}


def test_many_tasks_are_folded_and_have_no_panel_each(tmp_path):
    tasks = ",".join(f"{game}:frames={50 * n}" for n in range(1, 12) for game in ("bricks", "catch"))
    write(tmp_path, config_of(tasks=tasks, passes=1, seeds=1), [[(0, 1)]] * 22)
    assert sequences_figures.tasks_plot(scores_in(tmp_path)) is None
    html = write_report([tmp_path]).read_text(encoding="utf-8")
    assert "<summary>The 22 tasks</summary>" in html and "22 tasks, once: 22 visits" in Tables(html).words


def test_a_single_record_makes_a_page(tmp_path):
    config = config_of(seeds=1)
    write_sequence_run(tmp_path, config, sequence_rows(config, 1, ONE_LAYER, records=2)[:1], finish=False)
    page = pages(tmp_path)
    assert page.column(0, "state") == {"nap": "0 of 4 visits"}
    assert "no fresh agent for any task yet" in page.words and "bricks and catch: no scale" in page.words
    assert write_figure([tmp_path], tmp_path / "overview.png").stat().st_size > 10_000


def test_fresh_agents_alone_make_a_page(tmp_path):
    write_fresh(tmp_path, config_of(), FRESH)
    page = pages(tmp_path)
    assert "Fresh agents: nap" in page.words and page.tables[0][1] == ["nap", "100.0", "2"]
    assert page.tables[1][0] == ["task", "method", "fresh", "0 %", "100 %"]
    assert write_figure([tmp_path], tmp_path / "overview.png").stat().st_size > 10_000


def test_tasks_that_can_not_be_read_are_named(tmp_path):
    write_sequence_run(tmp_path, config_of(), rows_of(config_of(), NAP))
    (config,) = tmp_path.rglob("config.json")
    unseal(config.parent)
    config.write_text(config.read_text(encoding="utf-8").replace("bricks,catch", "brics"), encoding="utf-8")
    with pytest.raises(UserError, match=r"tasks of .* can't be read: .*brics"):
        write_report([tmp_path])


def test_runs_of_other_experiments_beside_keep_their_labels(tmp_path, worked):
    make_run(tmp_path, Config(game="pong"), rows=10, layers=ONE_LAYER)
    runs = load_runs([tmp_path, worked])
    assert atari.labels([run for run in runs if run.experiment == "atari"]) == ["nap"]
    problems = {run.problem for run in runs if run.experiment != "atari"}
    assert problems == {"bricks,catch", "bricks", "catch"}


def test_html_in_a_method_stays_text(tmp_path):
    write(tmp_path, config_of("<script>alert(1)</script>"), NAP)
    assert "<script" not in write_report([tmp_path]).read_text(encoding="utf-8").lower()
