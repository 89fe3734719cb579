"""Averages with the seeds that diverged: what is left of a method without them is its better half."""

import numpy as np
from made_up_runs import write_plasticity_run
from test_harness_plasticity_report import Tables, config_of, rows_of
from test_harness_report_diverged import diverge, page_of
from test_supervised import make_run
from worked_sequences import FRESH, NAP, NONE, scores_in, write, write_fresh
from worked_sequences import config_of as sequence_of

from experiments.harness.read import load_runs
from experiments.harness.report import supervised, write_report
from experiments.harness.report.sequences_scores import Scores, summary

NOTHING = (None, None)
ONE_LOST = [NAP[0], *([of[0], NOTHING] for of in NAP[1:])]  # seed 1 scores 100 % once, seed 0 100, 100, 75 and 50 %


def firsts(scores: Scores) -> tuple[float, int, int]:
    """The average over the first visits of both tasks; over how many visits and seeds it is."""
    found = summary(scores.scores(scores.study.methods[-1], scores.study.nth(0)))
    assert found is not None
    return found.interval.value, found.items, found.seeds


def test_a_seed_that_diverges_in_a_sequence_scores_as_random_play_from_there_on(tmp_path):
    write(tmp_path, sequence_of(), ONE_LOST)
    write_fresh(tmp_path, sequence_of(), FRESH)
    scores = scores_in(tmp_path)
    counting = Scores(scores.study, counts_diverged=True)
    assert firsts(scores) == (100.0, 2, 1)  # of seed 0 alone
    assert firsts(counting) == (75.0, 2, 2)
    (method,) = scores.study.methods
    of_seeds = [sorted(of.items()) for of in counting.scores(method, scores.study.sequence.visits).values()]
    assert of_seeds == [[(0, 100), (1, 100)], [(0, 100), (1, 0)], [(0, 75), (1, 0)], [(0, 50), (1, 0)]]
    assert list(counting.against_fresh(method, scores.study.sequence.visits).values())[1] == {0: 0.0, 1: -100.0}
    assert counting.forgetting(method) == scores.forgetting(method)
    page = page_of(tmp_path)
    assert page.column(0, "visit 1 (%)")["nap"] == "100.0 1 of 2 seeds"
    assert page.column(2, "visit 1 (%)")["nap"] == "75.0 [50.0, 100.0]"


def test_a_run_that_ended_counts_in_all_visits_and_one_that_goes_on_as_far_as_the_others_are(tmp_path):
    for folder, visits in (("ended", 2), ("going on", 2)):
        out = tmp_path / folder
        evaluations = [NAP[0], [NOTHING, NOTHING]] if folder == "ended" else ONE_LOST[:visits]
        run = write(out, sequence_of(), evaluations, finish=False)
        write_fresh(out, sequence_of(), FRESH)
        if folder == "ended":
            diverge(run, 70)
        study = scores_in(out).study
        found = Scores(study, counts_diverged=True).scores(study.methods[0], study.sequence.visits)
        lost = {"ended": [{0: 0.0, 1: 0.0}] * 3, "going on": [{0: 100.0, 1: 0.0}, {}, {}]}[folder]
        assert list(found.values()) == [{0: 100.0, 1: 100.0}, *lost]


def test_a_fresh_agent_that_diverges_counts(tmp_path):
    write(tmp_path, sequence_of("none"), NONE)
    write_fresh(tmp_path, sequence_of("none"), [FRESH[0], [(0.5, 1), NOTHING]])
    scores = scores_in(tmp_path)
    (method,) = scores.study.methods
    of_catch = [list(Scores(scores.study, way).fresh(method).values())[1] for way in (False, True)]
    assert of_catch == [{0: 100.0}, {0: 100.0, 1: 0.0}]


def test_without_divergence_there_is_one_table_of_each_kind(tmp_path):
    write(tmp_path, sequence_of(), NAP)
    write_fresh(tmp_path, sequence_of(), FRESH)
    assert "diverged seed counted" not in page_of(tmp_path).words


def test_a_seed_that_diverges_on_a_stream_scores_as_the_worst_task_of_the_others(tmp_path):
    write_plasticity_run(tmp_path, config_of(), rows_of([[0.9, 0.6], [0.8, 0.5]]))
    rows = rows_of([[0.9, 0.9], [0.7, None]])
    rows[-1]["loss"] = None
    write_plasticity_run(tmp_path, config_of("nap"), rows)
    page = page_of(tmp_path)
    assert page.column(0, "average online accuracy (%)") == {"none": "70.0 [65.0, 75.0]", "nap": "90.0"}
    # Seed 1: (70 + 50) / 2, for 50 is the worst that a seed without divergence had.
    assert page.column(1, "average online accuracy (%)") == {"none": "70.0 [65.0, 75.0]", "nap": "75.0 [60.0, 90.0]"}
    assert page.column(1, "difference to none")["nap"] == "+5.0 [−5.0, +15.0]"
    assert page.column(1, "seeds") == {"none": "2", "nap": "2 (1 diverged)"}


def test_a_run_that_ended_early_is_filled_up_to_the_tasks_of_the_others(tmp_path):
    write_plasticity_run(tmp_path, config_of(), rows_of([[0.8] * 4, [0.4] * 4]))
    diverge(write_plasticity_run(tmp_path, config_of("nap"), rows_of([[0.8], [0.8]]), finish=False), 15)
    assert page_of(tmp_path).column(1, "average online accuracy (%)")["nap"] == "50.0"  # (80 + 3 x 40) / 4


def test_a_supervised_run_that_diverged_has_the_worst_loss_of_the_others(tmp_path):
    for method, losses in (("none", (1.5, None)), ("nap", (1.0, 1.2))):
        for seed, loss in enumerate(losses):
            make_run(tmp_path, method, 0.1, seed, loss)
    diverge(tmp_path / "none-0.1-1", 12)
    arms = supervised.make_arms(load_runs([tmp_path]))
    assert supervised.counting_diverged(supervised.choose(arms)) == [{0: 1.5, 1: 1.5}, {0: 1.0, 1: 1.2}]
    page = Tables(write_report([tmp_path]).read_text(encoding="utf-8"))
    assert page.column(0, "held-out loss")["none"] == "1.500" and page.column(0, "seeds")["none"] == "1 of 2"
    assert page.column(1, "seeds") == {"none": "2 (1 diverged)", "nap": "2"}
    np.testing.assert_allclose(float(page.column(1, "difference to none")["nap"].split()[0].replace("−", "-")), -0.4)
