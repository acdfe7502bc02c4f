"""Texts of trees that LightGBM would not survive are refused before it sees them, and the service goes on."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest

from app import trees
from app.errors import ArtifactError
from app.features import FEATURES
from app.recommender import ListOptions, load_recommender
from app.trees import check_trees
from tests.models import in_memory, trained

N_FEATURES = len(FEATURES)


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Forget what passed before; returns the texts that another process is asked about, as that happens."""
    asked: list[bytes] = []
    run = subprocess.run

    def counting(*args: Any, **options: Any) -> Any:
        asked.append(options["input"])
        return run(*args, **options)

    monkeypatch.setattr(trees, "_PASSED", set())
    monkeypatch.setattr("app.trees.subprocess.run", counting)
    return asked


@cache
def sound() -> str:
    ranker = trained()[1].ranker
    assert ranker is not None
    return ranker.text


def refusal(text: str, n_features: int = N_FEATURES) -> str:
    with pytest.raises(ArtifactError) as caught:
        check_trees(text, n_features)
    message = str(caught.value)
    assert message.startswith("the ranker cannot be loaded (")
    for words in (f"expected LightGBM and a text model of its, of {n_features} features", "train_als.py"):
        assert words in message
    assert "\n" not in message
    assert len(message) < 700
    return message


# --- what passes


def test_a_sound_text_is_asked_about_once(runs: list[bytes]) -> None:
    for _ in range(3):
        check_trees(sound(), N_FEATURES)
    assert runs == [sound().encode()]


def test_each_text_and_number_of_features_is_a_question_of_its_own(runs: list[bytes]) -> None:
    check_trees(sound(), N_FEATURES)
    check_trees(sound() + "\n", N_FEATURES)
    assert "it is of 46 features" in refusal(sound(), 45)
    assert len(runs) == 3


def test_a_refusal_is_not_remembered(runs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as hurried:
        hurried.setattr(trees, "TIMEOUT_SECONDS", 0.01)
        assert "LightGBM does not finish within 0.01 s" in refusal(sound())
    check_trees(sound(), N_FEATURES)
    assert len(runs) == 2


def small_model(matrix: np.ndarray, labels: np.ndarray, **parameters: Any) -> str:
    rows = lightgbm.Dataset(matrix, labels, params={"verbosity": -1})
    settings = {"objective": "binary", "verbosity": -1, "num_threads": 1, "min_data_in_leaf": 5, **parameters}
    return lightgbm.train(settings, rows, 3).model_to_string()


def test_what_lightgbm_itself_writes_passes() -> None:
    rng = np.random.default_rng(0)
    matrix, labels = rng.normal(size=(300, 2)), rng.integers(2, size=300)
    check_trees(small_model(matrix, labels, num_leaves=40), 2)
    single_leaf = small_model(matrix, labels * 0)
    assert "num_leaves=1\n" in single_leaf
    check_trees(single_leaf, 2)
    only_nan_differs = small_model(np.where(labels[:, None] == 1, np.nan, [0.0]), labels)
    assert "threshold=inf" in only_nan_differs
    check_trees(only_nan_differs, 1)


def test_without_lightgbm_nothing_is_checked(runs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    check_trees("no trees", N_FEATURES)
    assert runs == []


def test_it_works_from_any_folder_and_however_python_is_told_to_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    check_trees(sound(), N_FEATURES)


# --- what does not


def resized(text: str) -> str:
    """Make the stated sizes of the trees right again, as damage done on purpose would."""
    model, end, rest = text.partition("end of trees")
    header, *blocks = model.split("\nTree=")
    sizes = " ".join(str(len("Tree=") + len(block.encode()) + 1) for block in blocks[:-1])
    last = len("Tree=") + len(blocks[-1].encode())
    lines = [f"tree_sizes={sizes} {last}" if line.startswith("tree_sizes=") else line for line in header.split("\n")]
    return "\nTree=".join(["\n".join(lines), *blocks]) + end + rest


def with_values(name: str, change: Callable[[list[str]], object], tree: int = 3) -> Callable[[str], str]:
    """Change the values of one line of a tree."""

    def edit(text: str) -> str:
        before, start, after = text.partition(f"\nTree={tree}\n")
        lines = after.split("\n")
        place = next(place for place, line in enumerate(lines) if line.startswith(f"{name}="))
        values = lines[place].removeprefix(f"{name}=").split(" ")
        change(values)
        lines[place] = f"{name}={' '.join(values)}"
        return resized(before + start + "\n".join(lines))

    return edit


def put(value: str, at: int = 0) -> Callable[[list[str]], object]:
    return lambda values: values.__setitem__(at, value)


def swapped(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return edit


def first_size_changed(text: str) -> str:
    before, name, after = text.partition("tree_sizes=")
    size, _, rest = after.partition(" ")
    return f"{before}{name}{int(size) + 7} {rest}"


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "empty": (lambda _: "", "no text model"),
    "garbage": (lambda _: "\0\x1b[31mtree\n=\n\n==%s%n\u2028" * 50, "no text model"),
    "garbage that is no text": (lambda _: "\ud800", "UnicodeDecodeError"),
    "no trees": (lambda text: text.partition("\nTree=")[0], "no text model"),
    "cut in a tree": (lambda text: text[: len(text) // 2], "tree "),
    "cut after a tree": (lambda text: text[: text.index("\nTree=9\n")], "LightGBM dies on it (signal SIG"),
    "cut in the parameters": (lambda text: text[: text.index("[lambda_l2") + 5], "no parameter"),
    "another number of features": (swapped("max_feature_idx=45", "max_feature_idx=44"), "it is of 45 features"),
    "as many features as nobody has": (swapped("max_feature_idx=45", "max_feature_idx=99999999999"), "100000000000"),
    "several classes": (swapped("num_class=1", "num_class=3"), "one score"),
    "several trees for a row": (swapped("num_tree_per_iteration=1", "num_tree_per_iteration=0"), "one score"),
    "a feature without a name": (swapped("als_score als_rank", "als_score"), "Wrong size of feature_names"),
    "trees of other sizes": (first_size_changed, "LightGBM dies on it (signal SIG"),
    "a feature above": (with_values("split_feature", put("46")), "tree 3: it splits on a feature outside 0 to 45"),
    "a feature far above": (with_values("split_feature", put("2147483647")), "outside 0 to 45"),
    "a feature below": (with_values("split_feature", put("-1", -1)), "outside 0 to 45"),
    "a feature too few": (with_values("split_feature", list.pop), "not 9 splits"),
    "a cycle": (with_values("left_child", put("0", 2)), "its children make no tree"),
    "a child that is its own": (with_values("right_child", put("4", 4)), "its children make no tree"),
    "a child that is none": (with_values("left_child", put("1000000")), "its children make no tree"),
    "a leaf that is none": (with_values("right_child", put("-1000000")), "its children make no tree"),
    "a leaf too few": (with_values("leaf_value", list.pop), "its leaves are not"),
    "more leaves than stand there": (with_values("num_leaves", put("2000000000")), "its leaves are not"),
    "NaN in a leaf": (with_values("leaf_value", put("nan", 5)), "its leaves are not as many finite numbers"),
    "infinity in a leaf": (with_values("leaf_value", put("-inf", 5)), "its leaves are not as many finite numbers"),
    "leaves that no float32 holds": (with_values("leaf_value", put("1e300")), "no float32"),
    "NaN as threshold": (with_values("threshold", put("nan")), "a threshold is NaN"),
    "words as thresholds": (with_values("threshold", put("high")), "could not convert string to float: 'high'"),
    "a split of categories": (with_values("decision_type", put("1")), "a split is none of numbers"),
    "categories": (with_values("num_cat", put("2000000000")), "categories or linear leaves"),
    "linear leaves": (with_values("is_linear", put("1")), "categories or linear leaves"),
    "nothing counted": (with_values("internal_count", put("0")), "a node counts no rows"),
    "another number of digits": (with_values("leaf_value", put("0.10")), "would not write it so"),
    "a parameter without a value": (swapped("[seed: 42]", "seed"), "'seed' is no parameter"),
    "a last line that is no JSON": (swapped("pandas_categorical:null", "pandas_categorical:{"), "JSONDecodeError"),
    "parameters without end": (swapped("end of parameters", "end"), "'end' is no parameter"),
}


def test_the_edits_of_these_tests_edit_nothing_else() -> None:
    assert resized(sound()) == sound()
    assert with_values("leaf_value", len)(sound()) == sound()
    check_trees(with_values("leaf_value", put("0.5"))(sound()), N_FEATURES)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_and_named(name: str, runs: list[bytes]) -> None:
    change, words = DAMAGE[name]
    message = refusal(change(sound()))
    assert words in message
    assert message.isascii()
    assert len(runs) == 1


def test_a_process_that_cannot_be_started_is_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert "no process can be started to check it: " in refusal(sound())


def test_a_process_that_ends_otherwise_is_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
    other.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(other))
    assert "its check ended with exit status 3: out of order" in refusal(sound())


@pytest.mark.parametrize("name", ["trees of other sizes", "cut in the parameters"])
def test_the_first_stage_serves_and_the_log_says_why(name: str, caplog: pytest.LogCaptureFixture) -> None:
    change, words = DAMAGE[name]
    model = in_memory(trained()[1])
    assert model.ranker is not None
    with caplog.at_level(logging.ERROR, logger="uvicorn.error"):
        recommender = load_recommender(replace(model, ranker=replace(model.ranker, text=change(sound()))))
    (record,) = caplog.records
    assert "Serving in memory without its second stage: the ranker cannot be loaded (" in record.getMessage()
    assert words in record.getMessage()
    ranking = recommender.recommend(1, 5)
    assert (ranking.source, ranking.ranker_failed) == ("als", True)
    expected = load_recommender(model).recommend(1, 5, ListOptions(ranker=False))
    assert ranking.item_indices.tolist() == expected.item_indices.tolist()


# --- random damage: refused, or LightGBM takes it with all its threads and scores with it

USE = """
import json, sys
import lightgbm, numpy as np
texts = json.load(sys.stdin)
rows = np.random.default_rng(1).normal(size=(500, int(sys.argv[1]))) * 3
for n, text in enumerate(texts):
    booster = lightgbm.Booster(model_str=text)
    booster.feature_name()
    assert np.isfinite(booster.predict(rows, raw_score=True)).all(), n
    assert np.isfinite(booster.predict(rows[:20], pred_contrib=True)).all(), n
sys.exit(0)
"""


def mutate(text: str, rng: np.random.Generator) -> str:
    """Damage a text in one of the ways in which files are damaged, or edited by hand."""
    way, place = rng.integers(6), int(rng.integers(len(text)))
    lines = text.split("\n")
    line = int(rng.integers(len(lines)))
    if way == 0:
        content = bytearray(text.encode())
        content[place] ^= 1 << int(rng.integers(7))
        return content.decode("utf-8", "replace")
    if way == 1:
        del lines[line]
    elif way == 2:
        lines.insert(line, lines[line])
    elif way == 3:
        return text[:place]
    elif way == 4:
        return text[:place] + text[place + int(rng.integers(1, 400)) :]
    else:
        digits = [place for place, character in enumerate(text) if character.isdigit()]
        place = digits[int(rng.integers(len(digits)))]
        return text[:place] + str(rng.integers(10)) + text[place + 1 :]
    return "\n".join(lines)


def mutations(seed: int, n: int) -> Iterator[str]:
    """Damage texts; of two, one gets its sizes right again, so that LightGBM gets further into it."""
    rng = np.random.default_rng(seed)
    for number in range(n):
        text = mutate(sound(), rng)
        yield resized(text) if number % 2 and "\nTree=" in text else text


def split_by_check(texts: Iterator[str]) -> tuple[list[str], list[str]]:
    """Return the texts that pass and the refusals of the others."""
    passed, refused = [], []
    for text in texts:
        try:
            check_trees(text, N_FEATURES)
        except ArtifactError as error:
            refused.append(str(error))
        else:
            passed.append(text)
    return passed, refused


def assert_usable(texts: list[str]) -> None:
    command = [sys.executable, "-c", USE, str(N_FEATURES)]
    done = subprocess.run(command, input=json.dumps(texts).encode(), capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_random_damage_is_refused_or_harmless() -> None:
    passed, refused = split_by_check(mutations(seed=1, n=12))
    assert refused
    assert_usable([*passed, sound()])


@pytest.mark.slow
def test_much_random_damage_is_refused_or_harmless() -> None:
    passed, refused = split_by_check(mutations(seed=2, n=150))
    assert len(refused) > 50
    assert len(passed) > 10
    assert any("LightGBM dies" in message for message in refused)
    assert_usable(passed)
