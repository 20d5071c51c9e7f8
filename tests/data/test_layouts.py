"""Rows come in many layouts; whatever the layout, what they say is learned, or refused by name."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from drbode import config
from drbode.config import BadInput
from drbode.data import sources
from drbode.data.prompts import Renderer
from drbode.data.rows import (
    Chat,
    Message,
    Pair,
    parse_chat,
    parse_pair,
    parse_question,
    parse_questions,
)
from drbode.data.splits import Split, StageRows
from drbode.models.base import bodinho_folder


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    from transformers import AutoTokenizer

    return Renderer(AutoTokenizer.from_pretrained(bodinho_folder()), 2048)


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def bot(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    return path


def splits(
    path: Path, renderer: Renderer, stage: Any = "sft", *words: str
) -> tuple[Split, Split | None]:
    plain = [f"stages=[{stage}]", f"{stage}.data.path={path}"]
    if not any("validation_share" in word for word in words):
        plain.append(f"{stage}.data.validation_share=0")
    plain += words
    block = config.load(config.compose("train", plain), plain).stage(stage)
    return StageRows(stage, block, renderer, seed=0, cache=path.parent).splits()


def trees(path: Path, renderer: Renderer, stage: Any = "sft", *words: str) -> list[Any]:
    return list(splits(path, renderer, stage, *words)[0].trees)


CHATS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [user("O que é?"), bot("É isto.")]},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "O que é?"},
            {"from": "gpt", "value": "É isto."},
        ]
    },
    "alpaca": {"instruction": "O que é?", "input": "", "output": "É isto."},
    "prompt_completion": {"prompt": "O que é?", "completion": "É isto."},
}
SAME = {"data": [user("O que é?"), bot("É isto.")]}


@pytest.mark.parametrize("layout", CHATS)
@pytest.mark.parametrize("forced", [False, True])
def test_a_conversation_is_the_same_in_every_layout(
    layout: str, forced: bool, renderer: Renderer, tmp_path: Path
) -> None:
    words = [f"sft.data.layout={layout}"] if forced else []
    split, _ = splits(write(tmp_path / "a.jsonl", [CHATS[layout]]), renderer, "sft", *words)
    assert list(split.trees) == trees(write(tmp_path / "b.jsonl", [SAME]), renderer)
    assert split.ledger.layout == layout


def test_a_layout_that_the_rows_are_not_in_is_refused(renderer: Renderer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [CHATS["alpaca"]])
    with pytest.raises(BadInput, match=r"a.jsonl, line 1: is not in the layout sharegpt"):
        trees(path, renderer, "sft", "sft.data.layout=sharegpt")
    with pytest.raises(BadInput, match=r"sft.data.layout: rows of this stage come as auto, mess"):
        trees(path, renderer, "sft", "sft.data.layout=hh")
    with pytest.raises(BadInput, match=r"sft.data.layout.*sharegpt"):
        trees(path, renderer, "sft", "sft.data.layout=sharegtp")


@pytest.mark.parametrize("name", ["a.json", "bom.jsonl", "a.csv", "a.tsv"])
def test_files_under_other_names_hold_the_same_rows(
    name: str, renderer: Renderer, tmp_path: Path
) -> None:
    rows = [CHATS["alpaca"], {"instruction": 'a\n"b", c', "input": "x", "output": "d"}]
    path = tmp_path / name
    if path.suffix in sources.DELIMITERS:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter=sources.DELIMITERS[path.suffix])
            table.writeheader()
            table.writerows(rows)
    else:
        text = "\n".join(map(json.dumps, rows))
        path.write_text(text, encoding="utf-8-sig" if name.startswith("bom") else "utf-8")
    assert trees(path, renderer) == trees(write(tmp_path / "plain.jsonl", rows), renderer)


PROMPT, GOOD, BAD = "O que é?", "É isto.", "Não sei."
PAIRS: dict[str, dict[str, Any]] = {
    "implicit_prompt": {"chosen": [user(PROMPT), bot(GOOD)], "rejected": [user(PROMPT), bot(BAD)]},
    "pairs": {
        "prompt": f"{PROMPT} ",
        "chosen": [user(PROMPT), bot(GOOD)],
        "rejected": [user(PROMPT), bot(BAD)],
    },
    "hh": {
        "chosen": f"\n\nHuman: {PROMPT}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {PROMPT}\n\nAssistant: {BAD}",
    },
}


@pytest.mark.parametrize("layout", PAIRS)
def test_a_preference_is_the_same_in_every_layout(
    layout: str, renderer: Renderer, tmp_path: Path
) -> None:
    plain = write(tmp_path / "b.jsonl", [{"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}])
    split, _ = splits(write(tmp_path / "a.jsonl", [PAIRS[layout]]), renderer, "dpo")
    assert list(split.trees) == trees(plain, renderer, "dpo")
    assert split.ledger.layout == layout


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "completion": "b", "label": True}, ["label", "one answer", "good"]),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, ["chosen and rejected are the same"]),
        (
            {"chosen": [user("a"), bot("b")], "rejected": [user("c"), bot("d")]},
            ["chosen and rejected", "the same turns before"],
        ),
        ({"prompt": "a", "chosen": [bot("b", weight=0)], "rejected": "c"}, ["chosen", "learned"]),
        ({"prompt": "a", "chosen": "b<|im_end|>", "rejected": "c"}, ["chosen", "<|im_end|>"]),
    ],
)
def test_a_bad_preference_is_one_sentence(
    row: dict[str, Any], words: list[str], renderer: Renderer, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        trees(write(tmp_path / "a.jsonl", [row]), renderer, "dpo")
    for word in ["a.jsonl, line 1", *words]:
        assert word in str(caught.value)


def test_a_line_separator_inside_a_text_does_not_end_its_line(
    renderer: Renderer, tmp_path: Path
) -> None:
    rows = [{"prompt": f"a\u2028{n}", "chosen": "b\u0085", "rejected": "c"} for n in range(3)]
    assert len(trees(write(tmp_path / "a.jsonl", rows), renderer, "dpo")) == 3


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_a_turn_that_is_not_to_be_learned_is_context(
    mark: dict[str, Any], renderer: Renderer
) -> None:
    turns = [user("um"), bot("errado", **mark), user("dois"), bot("certo", weight=1)]
    plain = [user("um"), bot("errado"), user("dois"), bot("certo")]
    (marked,) = renderer.chat(parse_chat({"data": turns}, "here")).trees
    (whole,) = renderer.chat(parse_chat({"data": plain}, "here")).trees
    assert marked.prompt == whole.prompt
    assert marked.completions[0].ids == whole.completions[0].ids
    ids, supervised, *_ = marked.completions[0]
    learned = [token for token, flag in zip(ids, supervised, strict=True) if flag]
    assert renderer.tokenizer.decode(learned) == "certo<|im_end|>"


def test_a_last_turn_that_is_context_is_left_off(renderer: Renderer) -> None:
    turns = [user("um"), bot("certo"), user("dois"), bot("errado", weight=0)]
    (tree,) = renderer.chat(parse_chat({"data": turns}, "here")).trees
    assert tree == renderer.chat(parse_chat({"data": turns[:2]}, "here")).trees[0]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"data": [user("a"), bot("b", reasoning_content="penso")]}, ["turn 2", "reasoning_con"]),
        ({"messages": [user("a"), bot("b", tool_calls=[{}])]}, ["messages, turn 2", "tool_calls"]),
        ({"data": [user("a"), {"role": "tool", "content": "x"}, bot("b")]}, ["turn 2", "'tool'"]),
        ({"data": [user("a"), bot("b")], "tools": [{"name": "f"}]}, ["tools", "not rendered"]),
        ({"data": [user("a"), bot("b", weight=0.5)]}, ["turn 2", "weight", "0.5"]),
        ({"data": [user("a"), bot("b", weight=0)]}, ["every assistant turn"]),
        ({"data": [user("a"), bot("b")], "train": False}, ["train", "False"]),
        ({"data": [user("<|im_start|>user\na<|im_end|>"), bot("b")]}, ["turn 1", "<|im_start|>"]),
        ({"data": [user("a"), bot("b<|im_end|>\n")]}, ["turn 2", "<|im_end|>"]),
        ({"prompt": "a", "completion": "b", "label": False}, ["label", "a bad one"]),
    ],
)
def test_what_is_not_rendered_is_named(
    row: dict[str, Any], words: list[str], renderer: Renderer, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        trees(write(tmp_path / "a.jsonl", [row]), renderer)
    for word in ["a.jsonl, line 1", *words]:
        assert word in str(caught.value)


def test_a_rows_system_column_is_its_first_turn(renderer: Renderer, tmp_path: Path) -> None:
    row = {"system": "Em latim.", **SAME}
    turn = {"role": "system", "content": "Em latim."}
    same = {"data": [turn, *SAME["data"]]}
    path = write(tmp_path / "a.jsonl", [row])
    assert trees(path, renderer) == trees(write(tmp_path / "b.jsonl", [same]), renderer)
    pair = {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}
    path = write(tmp_path / "c.jsonl", [{**pair, "system": "Em latim."}])
    with_turn: dict[str, Any] = {**pair, "prompt": [turn, user(PROMPT)]}
    other = write(tmp_path / "d.jsonl", [with_turn])
    assert trees(path, renderer, "dpo") == trees(other, renderer, "dpo")


def test_special_tokens_in_a_content_are_text(renderer: Renderer) -> None:
    tokenizer, text = renderer.tokenizer, "O <|im_end|> fecha e <|endoftext|> acaba."
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    chat = Chat((Message("user", text), Message("assistant", text)), "here")
    (tree,) = renderer.chat(chat).trees
    assert tree.prompt.count(end) == 1  # the user's turn ends once
    assert tree.completions[0].ids.count(end) == 1
    assert tree.completions[0].ids[-1] == end
    assert tokenizer.decode(tree.completions[0].ids) == f"{text}<|im_end|>"
    pair = renderer.pair(Pair(chat.messages[:1], text, "outra", "here")).trees[0]
    assert pair.prompt == tree.prompt
    assert pair.completions[0].ids == tree.completions[0].ids
    plain = Chat((Message("user", "oi"), Message("assistant", "olá")), "here")
    (whole,) = renderer.chat(plain).trees
    marked = "<|im_start|>user\noi<|im_end|>\n<|im_start|>assistant\n"
    assert whole.prompt == tokenizer(marked, add_special_tokens=False)["input_ids"]


def test_rows_that_repeat_stand_on_one_side(renderer: Renderer, tmp_path: Path) -> None:
    rows = [{"data": [user(f"p{n}"), bot(f"r{n}")]} for n in range(12)] * 2
    train, held_out = splits(
        write(tmp_path / "a.jsonl", rows), renderer, "sft", "sft.data.validation_share=0.25"
    )
    assert held_out is not None
    assert (len(train.trees), len(held_out.trees)) == (18, 6)
    assert not [tree for tree in held_out.trees if tree in list(train.trees)]


def test_the_pairs_of_a_prompt_stand_on_one_side(renderer: Renderer, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{n % 10}", "chosen": f"sim {n}", "rejected": f"não {n}"} for n in range(30)
    ]
    train, held_out = splits(
        write(tmp_path / "a.jsonl", rows), renderer, "dpo", "dpo.data.validation_share=0.2"
    )
    assert held_out is not None
    prompts = {tuple(tree.prompt) for tree in held_out.trees}
    assert len(prompts) == 2
    assert len(held_out.trees) == 6
    assert not prompts & {tuple(tree.prompt) for tree in train.trees}


def test_bad_rows_are_dropped_and_counted(renderer: Renderer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [SAME, {"data": [user("só")]}, {"data": []}, {"data": []}])
    with path.open("a") as file:
        file.write("{no json\n")
    with pytest.raises(BadInput, match=r"a.jsonl, line 5: is no JSON"):
        trees(path, renderer)
    split, _ = splits(path, renderer, "sft", "sft.data.bad_rows=drop")
    assert len(split.trees) == 1
    assert split.ledger.rows == 5
    assert sorted(split.ledger.dropped.values()) == [1, 1, 2]
    assert not [reason for reason in split.ledger.dropped if "line" in reason and "a.js" in reason]
    texts = write(tmp_path / "t.jsonl", [{"text": "um texto"}, {"text": ""}, {"text": None}])
    split, _ = splits(texts, renderer, "cpt", "cpt.data.bad_rows=drop")
    assert sum(split.ledger.dropped.values()) == 2


EXAM = {"enunciado": "Qual?", "alternativas": {"A": "um", "B": "dois"}, "resposta": "B"}


@pytest.mark.parametrize(
    "row",
    [
        {**EXAM, "resposta": 1},
        {**EXAM, "resposta": 1.0},
        {**EXAM, "resposta": "dois"},
        {**EXAM, "alternativas": ["um", "dois"]},
        {**EXAM, "alternativas": '["um", "dois"]'},
        {**EXAM, "alternativas": {"A": "um", "B": "dois", "C": float("nan")}},
        {"question": "Qual?", "choices": ["um", "dois"], "answer": 1},
        {"question": "Qual?", "choices": ["um", "dois"], "answer": "b"},
    ],
)
def test_a_question_is_the_same_in_every_layout(row: dict[str, Any]) -> None:
    read, plain = parse_question(row, "here"), parse_question(EXAM, "here")
    assert (read.stem, read.alternatives, read.answer) == ("Qual?", plain.alternatives, "B")


def test_ten_alternatives_annulled_questions_and_an_ambiguous_key() -> None:
    ten = {"question": "Qual?", "choices": [f"t{n}" for n in range(10)], "answer": 9}
    annulled = {**EXAM, "resposta": "ANULADA"}
    questions, left_out = parse_questions([("a", ten), ("b", annulled)])
    assert ([q.answer for q in questions], left_out) == (["J"], 1)
    unclear = {"question": "Qual?", "choices": ["1", "2", "3"], "answer": 1}
    with pytest.raises(BadInput, match="is the text of A and, counted from 0, the place of B"):
        parse_question(unclear, "here")


def test_a_missing_cell_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"alternativas": {"A": "um", "E": NaN}}\n')
    ((_, fields),) = sources.read("question", str(tmp_path / "a.jsonl"), "test", None, "key")
    assert fields == {"alternativas": {"A": "um", "E": None}}


def test_a_preferences_rows_parse_as_they_did() -> None:
    row = {"prompt": [user("a")], "chosen": [user("a"), bot("b")], "rejected": "c"}
    assert parse_pair(row, "x") == Pair((Message("user", "a"),), "b", "c", "x")


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no system') }}", "{% for m in messages %}{{ m.role }"]
)
def test_a_template_that_fails_is_one_sentence(template: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bodinho_folder())
    tokenizer.chat_template = template
    with pytest.raises(BadInput, match=r"model.chat_template: the template does not render turns"):
        Renderer(tokenizer, 64).chat(Chat((Message("user", "a"), Message("assistant", "b")), "x"))
