"""Examples for the prompt: where they come from, which are chosen, and how they are laid out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from drbode import config
from drbode.config import BadInput, BenchmarkConfig
from drbode.data import bodinho
from drbode.data.fewshot import PositiveBM25, with_examples
from drbode.data.prompts import Renderer
from drbode.data.rows import Message, Question, parse_question
from drbode.models.base import bodinho_folder

STEMS = ["qual o agente da dengue", "qual o agente da malária", "como se evita a dengue", "febre?"]

# As Qwen3 does, it shows thinking in the last answer alone: turns that are past read otherwise.
REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)


def benchmark_settings(**changes: Any) -> BenchmarkConfig:
    tree = config.compose("evaluate", ["benchmark.num_fewshot=2"])
    return replace(config.build(config.EvaluateConfig, tree).benchmark, **changes)


def row(stem: str, answer: str = "B") -> dict[str, Any]:
    return {"enunciado": stem, "alternativas": {"A": "não", "B": "sim"}, "resposta": answer}


def question(stem: str) -> Question:
    return parse_question(row(stem), stem)


def pool(tmp_path: Path, stems: list[str]) -> str:
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row(stem)) + "\n" for stem in stems))
    return str(path)


def chosen(questions: list[Question], **changes: Any) -> list[list[str]]:
    found, _ = with_examples(questions, benchmark_settings(**changes), "default")
    return [[example.stem for example in q.examples] for q in found]


def test_similar_are_the_highest_by_bm25_the_most_similar_last(tmp_path: Path) -> None:
    """By hand: a rare word counts for more than frequent ones, and word order for nothing."""
    path = pool(tmp_path, ["tosse?", "onde dói?", STEMS[2], STEMS[0], STEMS[3], STEMS[1]])
    (found,) = chosen(
        [question("Malária, agente: qual?")], fewshot_path=path, fewshot_choice="similar"
    )
    assert found == [STEMS[0], STEMS[1]]


def test_fixed_are_the_same_and_random_are_each_questions_own(tmp_path: Path) -> None:
    path = pool(tmp_path, [f"exemplo {n}" for n in range(20)])
    questions = [question(f"pergunta {n}") for n in range(12)]
    fixed = chosen(questions, fewshot_path=path)
    assert len({tuple(own) for own in fixed}) == 1
    drawn = chosen(questions, fewshot_path=path, fewshot_choice="random")
    assert len({tuple(own) for own in drawn}) > 6
    for choice, first in (("fixed", fixed), ("random", drawn)):
        again = {"fewshot_path": path, "fewshot_choice": choice}
        assert chosen(questions[5:], **again) == first[5:]  # whatever is asked beside it
        assert chosen(questions, fewshot_seed=1, **again) != first
        more = chosen(questions, num_fewshot=5, **again)
        assert [own[-2:] for own in more] == first
        assert all(len(set(own)) == 5 for own in more)


def test_a_question_of_the_benchmark_is_no_example(tmp_path: Path) -> None:
    path = pool(tmp_path, [*STEMS[1:], "Qual o agente -- da DÉNGUE?!"])
    found, kept = with_examples(
        [question(STEMS[0])], benchmark_settings(fewshot_path=path, num_fewshot=3), "default"
    )
    assert (len(kept.questions), kept.shared) == (3, 1)
    assert {e.stem for e in found[0].examples} == set(STEMS[1:])
    with pytest.raises(
        BadInput, match=r"expected at most 3, for .* benchmark asks 1 itself, got 4"
    ):
        with_examples(
            [question(STEMS[0])], benchmark_settings(fewshot_path=path, num_fewshot=4), "default"
        )
    with pytest.raises(BadInput, match="fewshot_path: there is no file nowhere"):
        with_examples(
            [question(STEMS[0])], benchmark_settings(fewshot_path="nowhere.jsonl"), "default"
        )


def test_a_question_of_the_benchmark_with_a_word_changed_is_no_example(tmp_path: Path) -> None:
    """By the rules that training rows are checked by; another disease makes another question."""
    form = "de que agente se fala quando o assunto do plantão é {}"
    others = [form.format(name) for name in ("a malária", "a raiva", "o tétano")]
    path = pool(tmp_path, [form.format("a dengue").replace("assunto", "tema"), *others])
    benchmark = [question(form.format(name)) for name in ("a dengue", "a gripe", "a sífilis")]
    benchmark += [question(f"quantos ossos tem {name}?") for name in ("a mão", "o pé", "a face")]
    _, kept = with_examples(
        benchmark, benchmark_settings(fewshot_path=path, num_fewshot=2), "default"
    )
    assert [own.stem for own in kept.questions] == others


def test_bodinhos_examples_share_no_condition_with_its_benchmark() -> None:
    asks = {fact.subject.name for fact in bodinho.medical()[0]}
    names = {fact.subject.name for fact in bodinho.medical("all")[0]}
    stems = [fields["enunciado"] for fields in bodinho.example_questions()]
    assert len(stems) > 300
    for stem in stems:
        assert max((name for name in names if name in stem), key=len) not in asks


def rendered(protocol: str, count: int, template: str | None = None) -> tuple[Renderer, Any]:
    renderer = Renderer(AutoTokenizer.from_pretrained(bodinho_folder()), 2048)
    renderer.tokenizer.chat_template = template or renderer.tokenizer.chat_template
    questions = [question(stem) for stem in STEMS]
    own = replace(questions[0], examples=tuple(questions[1 : 1 + count]))
    return renderer, getattr(renderer, protocol)(own)


@pytest.mark.parametrize("template", [None, REWRITES])
@pytest.mark.parametrize("protocol", ["alternatives", "letter"])
def test_examples_are_turns_of_the_protocols_own_form(protocol: str, template: str | None) -> None:
    renderer, (trees, *_) = rendered(protocol, 2, template)
    asks = "{}" if protocol == "alternatives" else "{}\nA) não\nB) sim\nResponda só com a letra."
    answer = "sim" if protocol == "alternatives" else "B"
    messages = [
        message
        for stem in STEMS[1:3]
        for message in (Message("user", asks.format(stem)), Message("assistant", answer))
    ]
    messages.append(Message("user", asks.format(STEMS[0])))
    turns = [{"role": m.role, "content": m.content} for m in messages]
    text = renderer.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    # Decoded and without spaces, since the shipped tokenizer puts its own around words.
    assert "".join(renderer.tokenizer.decode(trees[0].prompt).split()) == "".join(text.split())
    assert trees[0].prompt == renderer.prompt(messages)
    end = renderer.turn_end[1]
    assert trees[0].prompt.count(end) == 5  # three questions, two answers
    if template is None:  # each answer is tokenised apart, and its turn ends right behind it
        ids = renderer.tokenizer(answer, add_special_tokens=False)["input_ids"]
        starts = range(len(trees[0].prompt))
        assert sum(trees[0].prompt[i : i + len(ids) + 1] == [*ids, end] for i in starts) == 2


def test_a_template_read_once_gives_what_it_gives_turn_by_turn() -> None:
    """The same ids by the quick way, which fills in a frame, and by asking for every turn."""
    messages = [
        Message(role, f"{role} {n} diz: febre, tosse e \ue0001\ue000 mal-estar")
        for n in range(4)
        for role in ("user", "assistant")
    ]
    for template in (None, REWRITES, "{% for m in messages %}{{ m.content | trim }}\n{% endfor %}"):
        renderer, _ = rendered("letter", 0, template)
        for own in (messages, [replace(m, content=f" {m.content} ") for m in messages]):
            numbers = [1, 3, 5, 7]
            expected = [renderer._template(own[:n]) for n in numbers]
            assert renderer._openings(own, numbers) == expected


def test_the_question_asked_alike_is_found_in_a_small_pool() -> None:
    """Words of half of the pool and more keep a positive weight."""
    pool = ["qual a causa da dengue", "qual a causa da gripe", "qual a dose"]
    index = PositiveBM25([stem.split() for stem in pool])
    assert min(index.idf.values()) > 0
    scores = list(index.get_scores(["qual", "a", "causa", "da", "gripe"]))
    assert scores.index(max(scores)) == 1
    assert scores[0] > scores[2] > 0
