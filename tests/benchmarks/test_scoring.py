"""From scores to results: ties, several answers, orders, and the papers' three scores."""

from __future__ import annotations

import difflib
import math
import random

import pytest

from jmedlite.base.records import to_json
from jmedlite.benchmarks.scoring import pick, score
from jmedlite.benchmarks.tasks.items import Item

ITEM = Item("q", "?", ("heart", "lung", "liver", "spleen", "kidney"), (2,), "en")
TWO = Item("q2", "?", ITEM.choices, (0, 4), "en")


def letter(item: Item, by_place: list[float], order: tuple[int, ...] = (0, 1, 2, 3, 4)) -> dict:  # type: ignore[type-arg]
    return to_json(score("letter", item, order, {"n_prompt": 9, "scores": by_place, "n_tokens": [1] * len(by_place)}))


def test_scores_go_back_to_the_items_own_numbering() -> None:
    found = letter(ITEM, [-1.0, -2.0, -3.0, -4.0, -5.0], order=(2, 4, 0, 1, 3))
    assert found["scores"] == [-3.0, -4.0, -1.0, -5.0, -2.0]
    assert found["picks"] == [2]
    assert found["correct"] is True
    assert found["margin"] == 1.0
    assert found["mass"] == pytest.approx(sum(math.exp(-k) for k in range(1, 6)), abs=1e-6)


def test_as_many_as_the_question_has_answers() -> None:
    found = letter(TWO, [-1.0, -4.0, -3.5, -9.0, -2.0])
    assert found["picks"] == [0, 4]
    assert found["correct"] is True
    assert found["margin"] == 1.5
    assert letter(TWO, [-1.0, -1.5, -3.5, -9.0, -2.0])["correct"] is False


def test_of_equal_scores_the_one_shown_first_is_taken() -> None:
    assert pick([-1.0, -1.0, -2.0], (1, 0, 2), 1) == ([1], 0.0)
    assert pick([-1.0, -1.0], (0, 1), 2) == ([0, 1], None)


def test_text_by_sum_and_per_token() -> None:
    answer = {"n_prompt": 5, "scores": [-4.0, -3.0, -6.0, -9.0, -9.0], "n_tokens": [1, 1, 4, 2, 2]}
    found = to_json(score("text", ITEM, (0, 1, 2, 3, 4), answer))
    assert (found["picks"], found["correct"]) == ([1], False)
    assert found["per_token"] == {"picks": [2], "correct": True, "margin": 1.5}
    turned = to_json(score("text", ITEM, (4, 3, 2, 1, 0), answer))
    assert turned["n_tokens"] == [2, 2, 4, 1, 1]


def test_too_long_is_no_wrong_answer() -> None:
    found = to_json(score("letter", ITEM, (0, 1, 2, 3, 4), {"n_prompt": 9000}))
    assert (found["status"], found["correct"], found["n_prompt"]) == ("too long", None, 9000)


def generate(response: str, item: Item = ITEM) -> dict:  # type: ignore[type-arg]
    return to_json(score("generate", item, range(5), {"n_prompt": 5, "response": response, "stop": "eos"}))


@pytest.mark.parametrize(
    ("response", "exact", "correct", "parsed"),
    [
        ("liver", True, True, True),
        (" liver. ", True, True, True),
        ("The liver", False, True, True),
        ("heart", False, False, True),
        ("I do not know", False, False, False),
        ("", False, False, False),
    ],
)
def test_the_papers_scores(response: str, exact: bool, correct: bool, parsed: bool) -> None:
    found = generate(response)
    assert (found["exact"], found["correct"], found["parsed"]) == (exact, correct, parsed)
    assert found["status"] == ("scored" if parsed else "unparsed")


def papers_accuracy(choices: list[str], answers: list[str], response: str) -> bool:
    """Gestalt accuracy, written from its definition: the k nearest choices, one after the other."""
    left, taken = list(choices), []
    for _ in answers:
        best = max(
            left,
            key=lambda c: (
                difflib.SequenceMatcher(None, c, response).ratio() + difflib.SequenceMatcher(None, response, c).ratio()
            ),
        )
        left.remove(best)
        taken.append(best)
    return sorted(taken) == sorted(answers)


def test_gestalt_accuracy_is_that_of_its_definition() -> None:
    draw = random.Random(0)
    words = ["肝硬変", "肝細胞癌", "胆石症", "急性膵炎", "膵癌", "liver abscess", "acute pancreatitis"]
    for _ in range(300):
        item = Item("x", "?", tuple(draw.sample(words, 5)), tuple(draw.sample(range(5), draw.choice([1, 2, 3]))), "ja")
        response = "".join(draw.choice(words)[: draw.randrange(5)] for _ in range(3)).replace(".", "").strip()
        answers = [item.choices[i] for i in item.answers]
        assert generate(response, item)["correct"] == papers_accuracy(list(item.choices), answers, response)


def test_gestalt_score_joins_answers_with_commas() -> None:
    assert generate("heart,kidney", TWO)["gestalt"] == 1.0
    assert generate("heart,kidney", TWO)["exact"] is True
    assert generate("肝臓。", Item("j", "?", ("肝臓", "腎臓"), (0,), "ja"))["exact"] is True


def test_equal_choices_are_judged_by_their_text() -> None:
    item = Item("q", "?", ("heart", "lung", "heart"), (2,), "en")
    found = letter(item, [-1.0, -2.0, -3.0], order=(0, 1, 2))
    assert found["picks"] == [0]
    assert found["correct"] is True
    two = Item("q", "?", ("heart", "lung", "heart"), (1, 2), "en")
    assert letter(two, [-1.0, -2.0, -3.0], order=(0, 1, 2))["correct"] is True
    assert letter(two, [-1.0, -3.0, -2.0], order=(0, 1, 2))["correct"] is False


def test_a_thought_is_no_answer() -> None:
    right, wrong = ITEM.choices[2], ITEM.choices[0]
    found = generate(f"<think>\nIs it the {wrong}? No.\n</think>\n\n{right}")
    assert (found["correct"], found["exact"], found["status"]) == (True, True, "scored")
    found = generate(f"<think>\nIs it the {right}?")
    assert (found["correct"], found["exact"], found["status"], found["picks"]) == (False, False, "unparsed", [])
