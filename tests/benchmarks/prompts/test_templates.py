"""Prompts: the project's own templates, files in the forms of the papers' harnesses, examples, and what is trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from jmedlite.base.errors import DataError, InputMissing, UsageError
from jmedlite.benchmarks.prompts.requests import make_ask
from jmedlite.benchmarks.prompts.templates import METHODS, own_template, read_template
from jmedlite.benchmarks.tasks.items import Dataset, Item

ITEM = Item("q", "Which organ makes bile?", ("heart", "liver", "lung"), (1,), "en")
SHOT = Item("s", "Which organ pumps blood?", ("heart", "liver", "lung"), (0, 2), "en")
DATA = Dataset("t-en", "t", "en", "T", (ITEM,))


def prompt(method: str, spec: str | None = None, item: Item = ITEM, shots: tuple[Item, ...] = ()) -> str:
    template = read_template(spec, (method,)) if spec else own_template(method, item.lang)
    data = Dataset("t", "t", item.lang, "T", (item,))
    return make_ask(data, method, template, shots, 1, 0).example()


def test_letter() -> None:
    assert prompt("letter").endswith("Question: Which organ makes bile?\nA. heart\nB. liver\nC. lung\nAnswer:")
    assert prompt("letter", item=Item("j", "胆汁を作る臓器はどれか。", ("心臓", "肝臓"), (1,), "ja")).endswith(
        "問題：胆汁を作る臓器はどれか。\nA. 心臓\nB. 肝臓\n答え："
    )


def test_the_answers_space_is_forced_on_english_only() -> None:
    ask = make_ask(DATA, "text", own_template("text", "en"), (), 1, 0)
    assert ask.prompts()[0]["continuations"] == [" heart", " liver", " lung"]
    japanese = Dataset("j", "j", "ja", "J", (Item("j", "?", ("心臓", "肝臓"), (1,), "ja"),))
    assert make_ask(japanese, "text", own_template("text", "ja"), (), 1, 0).prompts()[0]["continuations"] == [
        "心臓",
        "肝臓",
    ]
    assert make_ask(japanese, "letter", own_template("letter", "ja"), (), 1, 0).prompts()[0]["continuations"] == [
        "A",
        "B",
    ]


def test_examples_come_with_their_answers() -> None:
    text = prompt("letter", shots=(SHOT,))
    assert "Which organ pumps blood?\nA. heart\nB. liver\nC. lung\nAnswer: A,C\n\nQuestion: Which organ makes" in text
    assert text.count("Answer each medical question") == 1
    assert "Answer: heart,lung\n\n" in prompt("text", shots=(SHOT,))


def test_permutations_ask_in_other_orders_only_where_choices_are_shown() -> None:
    ask = make_ask(DATA, "letter", own_template("letter", "en"), (), 3, 0)
    assert len(ask.questions) == 3
    assert [p for _, p, _ in ask.questions] == [0, 1, 2]
    assert len({order for _, _, order in ask.questions}) == 3
    shown = ask.prompts()[1]
    order = ask.questions[1][2]
    assert "A. " + ITEM.choices[order[0]] in "".join(t for t, _ in shown["body"])
    assert len(make_ask(DATA, "text", own_template("text", "en"), (), 3, 0).questions) == 1


def test_a_context_stands_before_the_question() -> None:
    item = Item("p", "Does it help?", ("yes", "no"), (0,), "en", context="We studied 20 mice.")
    assert prompt("text", item=item) == "Abstract: We studied 20 mice.\nQuestion: Does it help?\nAnswer:"


def test_liquid_and_format_files(tmp_path: Path) -> None:
    (tmp_path / "liquid.txt").write_text("### Instruction:\n{{ instruction }}\n### Input:\n{{input}}\n### Response:\n")
    assert prompt("generate", str(tmp_path / "liquid.txt")) == (
        "### Instruction:\nWhich organ makes bile?\n### Input:\nheart,liver,lung\n### Response:\n"
    )
    (tmp_path / "format.txt").write_text("質問：{question}\n{options}\n答え：")
    assert (
        prompt("letter", str(tmp_path / "format.txt"))
        == "質問：Which organ makes bile?\nA. heart\nB. liver\nC. lung\n答え："
    )


def test_python_files_are_read_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "template.py"
    path.write_text(
        "from liquid import Template\nopen('ran', 'w')\nmine = Template('''Q: {{instruction}}\nA: ''')\n"
        'SET = {"other": "W: {question}\\n"}\n'
    )
    assert prompt("text", f"{path}:mine") == "Q: Which organ makes bile?\nA: "
    assert prompt("text", f"{path}:other") == "W: Which organ makes bile?\n"
    assert not Path("ran").exists()
    with pytest.raises(UsageError, match="has mine, other"):
        read_template(f"{path}:none", ("text",))


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("{question} {patient}", DataError, "patient"),
        ("no place", DataError, "no place for the question"),
        ("{question}\n", UsageError, "no {options}"),
    ],
)
def test_bad_templates(tmp_path: Path, text: str, error: type[Exception], says: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(error, match=says):
        read_template(str(tmp_path / "t.txt"), METHODS)


def test_a_missing_file() -> None:
    with pytest.raises(InputMissing):
        read_template("nowhere.txt", ("text",))


def test_only_the_templates_own_text_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("<|im_start|>{question}\nAnswer:")
    item = Item("x", "<|im_end|> or not?", ("<|im_start|>", "b"), (0,), "en")
    ask = make_ask(
        Dataset("t", "t", "en", "T", (item,)), "text", read_template(str(tmp_path / "t.txt"), ("text",)), (), 1, 0
    )
    (one,) = ask.prompts()
    assert one["body"] == [("<|im_start|>", True), ("<|im_end|> or not?", False), ("\n", True)]
    assert one["cue"] == [("Answer:", True)]
