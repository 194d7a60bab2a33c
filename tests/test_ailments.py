"""The ailments are what their page promises: one for each cause, really training, worse than their twins."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import keras
import numpy as np
import pytest

from demos.ailments import __main__ as program
from demos.ailments import datasets, spoiling
from demos.ailments.bases import BASES
from demos.ailments.catalogue import AILMENTS, find
from demos.ailments.datasets import DATASETS, REPORTED
from demos.ailments.mutations import OPERATORS, SELECTED, mutants, selected_mutants
from demos.ailments.recipe import Recipe
from demos.ailments.scores import SCORES
from monitor import demo_names

KEYS = [ailment.key for ailment in AILMENTS]
BY_KEY = {ailment.key: ailment for ailment in AILMENTS}


# ── The list ──────────────────────────────────────────────────────────────────────────────────────


def test_every_cause_has_an_ailment_and_the_terminal_names_the_same():
    assert {ailment.name for ailment in AILMENTS} == set(demo_names.AILMENTS)
    assert len(demo_names.AILMENTS) == 25


def test_no_two_ailments_have_the_same_name_and_base():
    assert len(set(KEYS)) == len(KEYS)


def test_every_cause_is_on_a_data_set_of_either_part():
    for reported in (False, True):
        assert {ailment.name for ailment in AILMENTS if ailment.reported == reported} == set(
            demo_names.AILMENTS
        )


def test_accepted_causes_are_rules_and_hold_the_ailments_own():
    for ailment in AILMENTS:
        assert ailment.name in ailment.accepted <= set(demo_names.AILMENTS), ailment.key


def test_both_parts_have_bases_and_share_no_data_set():
    assert set(DATASETS) > REPORTED
    assert {base.dataset for base in BASES.values()} == set(DATASETS)


@pytest.mark.parametrize("key", KEYS)
def test_an_ailing_script_differs_from_its_twin(key):
    ailing, repaired = BY_KEY[key].recipe(), BY_KEY[key].recipe(repaired=True)
    assert any(getattr(ailing, one.name) is not getattr(repaired, one.name) for one in fields(Recipe))
    assert ailing.score == repaired.score, "scored differently, the two could not be compared"
    assert ailing.dataset == repaired.dataset


def test_some_are_fed_by_pipelines_some_have_one_hot_labels_some_no_validation_some_a_schedule():
    recipes = [ailment.recipe() for ailment in AILMENTS]
    assert sum(recipe.pipeline for recipe in recipes) >= 2
    assert sum(recipe.one_hot for recipe in recipes) >= 2
    assert sum(not recipe.validated for recipe in recipes) >= 2
    assert sum(recipe.steps_per_execution > 1 for recipe in recipes) >= 2
    assert sum(callable(recipe.learning_rate) for recipe in recipes) >= 1


def test_an_unknown_ailment_is_told_apart_from_a_known_one():
    assert find("dead-units").name == "dead-units"
    assert find("dead-units", "heart-dense").base == "heart-dense"
    with pytest.raises(KeyError, match="no ailment 'hiccups'"):
        find("hiccups")


# ── Data ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", DATASETS)
def test_a_split_is_finite_disjoint_in_size_and_repeats_for_a_seed(name):
    split, again, other = DATASETS[name](0), DATASETS[name](0), DATASETS[name](1)
    parts = (split.x, split.x_validation, split.x_held_out)
    targets = (split.y, split.y_validation, split.y_held_out)
    assert [len(part) for part in parts] == [len(part) for part in targets]
    assert all(np.isfinite(part).all() for part in (*parts, *targets))
    assert {part.dtype for part in parts} == {np.dtype(np.int32 if name in ("text", "prose") else np.float32)}
    if split.classes:
        assert all(set(np.unique(part)) == set(range(split.classes)) for part in targets)
        assert all(part.dtype == np.int64 for part in targets)
    np.testing.assert_array_equal(split.x, again.x)
    assert not np.array_equal(split.x, other.x)


def test_words_stay_within_the_vocabulary():
    split = datasets.text(0)
    assert split.x.min() >= 0 and split.x.max() < datasets.VOCABULARY
    assert (split.x > 0).mean() > 0.5


@pytest.mark.parametrize("share", [0.05, 0.12])
def test_few_of_a_class_are_as_few_as_asked_for(share):
    split = spoiling.few_of_class(1, share)(datasets.heart(0), np.random.default_rng(0))
    assert np.mean(split.y == 1) == pytest.approx(share, abs=0.01)
    assert np.mean(split.y_held_out == 1) == pytest.approx(0.45, abs=0.01)


def test_spoiling_leaves_the_held_out_part_alone():
    clean = datasets.digits(0)
    for spoil in (
        spoiling.sorted_by_target,
        spoiling.shuffled_labels,
        spoiling.wrong_labels(0.4),
        spoiling.one_batch_again_and_again(32),
        spoiling.validation_from_training,
    ):
        spoiled = spoil(clean, np.random.default_rng(0))
        assert spoiled.x_held_out is clean.x_held_out and spoiled.y_held_out is clean.y_held_out
        assert len(spoiled.x) == len(spoiled.y)


def test_missing_values_and_outliers_are_only_where_they_should_be():
    x = np.zeros((1000, 8), np.float32)
    gaps = spoiling.missing_values(0.01)(x, np.random.default_rng(0))
    assert set(np.flatnonzero(np.isnan(gaps).any(axis=0))) == {4}
    assert 0 < np.isnan(gaps).mean(axis=0)[4] < 0.03
    wild = spoiling.outliers(0.02, 300.0)(x, np.random.default_rng(0))
    assert set(np.unique(np.abs(wild))) == {0.0, 300.0}
    assert 0.005 < (wild != 0).any(axis=1).mean() < 0.04
    assert not x.any(), "the data given were changed"


# ── Scores ────────────────────────────────────────────────────────────────────────────────────────


def test_scores_of_right_wrong_and_useless_outputs():
    labels = np.array([0, 1, 1, 1])
    right, useless = np.eye(2)[labels], np.full((4, 2), np.nan)
    assert [SCORES[name].of(labels, right) for name in ("accuracy", "balanced accuracy")] == [1, 1]
    assert [SCORES[name].of(labels, useless) for name in ("accuracy", "balanced accuracy")] == [0, 0]
    all_ones = np.ones((4, 1))
    assert SCORES["accuracy"].of(labels, all_ones) == 0.75
    assert SCORES["balanced accuracy"].of(labels, all_ones) == 0.5
    assert SCORES["log loss"].of(labels, np.full((4, 2), 0.5)) == pytest.approx(np.log(2))
    numbers = np.array([1.0, 2.0, 3.0])
    assert SCORES["R²"].of(numbers, numbers[:, None]) == 1
    assert SCORES["R²"].of(numbers, np.full((3, 1), 2.0)) == 0
    assert SCORES["R²"].of(numbers, np.full((3, 1), np.inf)) == -1


# ── Training ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", {ailment.name: ailment.key for ailment in AILMENTS}.values())
def test_an_ailment_can_be_prepared_with_its_mistake(key):
    training = BY_KEY[key].prepare(seed=0)
    assert training.model.built and training.model.optimizer is not None
    assert training.arguments["epochs"] >= 3
    x, y = training.held_out
    assert len(x) == len(y) and np.isfinite(x).all()
    keras.backend.clear_session()


@pytest.mark.parametrize("key", ["input-scale/breast-cancer", "bad-initialisation/heart-dense"])
def test_an_ailing_training_is_worse_than_its_twin(key):
    ailing, repaired = (BY_KEY[key].prepare(0, one) for one in (False, True))
    for training in (ailing, repaired):
        training.fit()
    assert repaired.held_out_score() > ailing.held_out_score() + 0.1


def test_what_ails_breaks_as_it_says():
    history = BY_KEY["exploding-gradient/diabetes"].prepare(0).fit(epochs=3).history
    assert np.isnan(history["loss"][-1])


def test_the_program_trains_with_a_monitor_and_prints_the_held_out_score(home, capsys):
    program.main(["non-finite", "--quiet", "--base", "diabetes"])
    assert re.fullmatch(r"held-out R²: -1\.000\n", capsys.readouterr().out)
    assert len(list((home / "recordings").glob("non-finite-*.unstuck"))) == 1


def test_the_program_lists_what_there_is_and_refuses_what_there_is_not(capsys):
    program.main(["--list"])
    assert len(capsys.readouterr().out.splitlines()) == len(AILMENTS)
    with pytest.raises(SystemExit):
        program.main(["hiccups"])
    assert "--list" in capsys.readouterr().err


# ── Mutants ───────────────────────────────────────────────────────────────────────────────────────


def test_mutants_differ_from_their_bases_and_name_known_causes():
    made = mutants()
    assert len({mutant.key for mutant in made}) == len(made) > 200
    for mutant in made:
        assert mutant.recipe != BASES[mutant.base]
        assert mutant.cause in mutant.accepted <= set(demo_names.AILMENTS)
    assert {mutant.operator for mutant in made} == {operator.name for operator in OPERATORS}


def test_mutants_are_drawn_by_the_seed():
    first, again, other = ([mutant.key for mutant in mutants(seed, per_base=4)] for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 4 * len(BASES)


def test_selected_mutants_exist_and_were_worse_than_their_base():
    selected = json.loads(Path(SELECTED).read_text())
    assert {mutant.key for mutant in selected_mutants()} == set(selected["mutants"])
    for key, measured in selected["mutants"].items():
        assert len(measured["base"]) == len(measured["mutant"]) == selected["seeds"], key
        assert np.median(measured["base"]) - np.median(measured["mutant"]) >= selected["effect"], key
