"""The renderer against exact token ids, and against what a model meets when it generates."""

import json
from typing import Any

import pytest

from drbode.config import BadInput
from drbode.data.corpus import Cut
from drbode.data.prompts import Renderer
from drbode.data.rows import Chat, Message, Pair, parse_question
from drbode.models.base import bodinho_folder
from drbode.trees import Tree

# What Qwen3's template does that a renderer can get wrong: history loses its thinking blocks, the
# generation prompt carries an empty one where thinking is off.
QWEN3_LIKE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(bodinho_folder())


def chat(*turns: str) -> Chat:
    roles = ("user", "assistant")
    return Chat(tuple(Message(roles[i % 2], t) for i, t in enumerate(turns)), "here")


def test_one_turn_is_the_template_and_the_end_of_the_turn(tokenizer: Any) -> None:
    (tree,) = Renderer(tokenizer, 2048).chat(chat("Qual é a causa?", "vírus.")).trees
    whole = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "Qual é a causa?"},
            {"role": "assistant", "content": "vírus."},
        ],
        tokenize=False,
    )
    ids = tokenizer(whole.removesuffix("\n"), add_special_tokens=False)["input_ids"]
    (completion,) = tree.completions
    assert tree.prompt + completion.ids == ids
    assert tokenizer.decode(completion.ids) == "vírus.<|im_end|>"
    assert completion.supervised == [True] * len(completion.ids)


def test_the_end_token_is_supervised_though_a_tokenizer_pads_with_it(tokenizer: Any) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    (tree,) = Renderer(tokenizer, 2048).chat(chat("a", "b", "c", "d")).trees
    ids, supervised, _ = tree.completions[0]
    ends = [s for token, s in zip(ids, supervised, strict=True) if token == tokenizer.eos_token_id]
    assert ends == [True, False, True]  # the assistant's, the user's, the assistant's


def test_every_assistant_turn_is_supervised_and_no_other(tokenizer: Any) -> None:
    (tree,) = Renderer(tokenizer, 2048).chat(chat("um", "dois", "três", "quatro")).trees
    ids, supervised, _ = tree.completions[0]
    said = [token for token, s in zip(ids, supervised, strict=True) if s]
    assert tokenizer.decode(said) == "dois<|im_end|> quatro<|im_end|>"


def test_where_history_is_rewritten_each_turn_is_as_the_model_will_meet_it(tokenizer: Any) -> None:
    tokenizer.chat_template = QWEN3_LIKE
    first, second = Renderer(tokenizer, 2048).chat(chat("um", "dois", "três", "quatro")).trees
    for tree, history in ((first, ["um"]), (second, ["um", "dois", "três"])):
        turns = [{"role": m.role, "content": m.content} for m in chat(*history).messages]
        met = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert tree.prompt == tokenizer(met, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(second.completions[0].ids) == "quatro<|im_end|>"


@pytest.mark.parametrize("template", [None, QWEN3_LIKE])
def test_a_prompt_is_what_stood_before_the_answer_in_training(
    tokenizer: Any, template: str | None
) -> None:
    tokenizer.chat_template = template or tokenizer.chat_template
    renderer = Renderer(tokenizer, 2048)
    turns = chat("um ", " dois", "três", "quatro")
    tree = renderer.chat(turns).trees[-1]
    answer = [*tokenizer("quatro", add_special_tokens=False)["input_ids"], renderer.turn_end[1]]
    seen = tree.prompt + tree.completions[0].ids
    assert renderer.prompt(turns.messages[:-1]) + answer == seen


def test_long_conversations_are_cut_to_whole_turns(tokenizer: Any) -> None:
    row = chat("um", "dois", "três", "quatro " * 50)
    rendered = Renderer(tokenizer, 40).chat(row)
    assert rendered.cut
    assert rendered.dropped is None
    assert rendered.trees[0].completions[0].supervised[-1]
    assert rendered.trees[0].tokens <= 40
    assert Renderer(tokenizer, 5).chat(row).dropped == "longer than 5 tokens"


@pytest.mark.parametrize("limit", [60, 24, 8, 3, 2])
@pytest.mark.parametrize(("long", "short"), [(40, 3), (3, 40), (40, 50), (3, 2)])
def test_a_long_pair_is_cut_on_each_side_and_never_to_nothing(
    tokenizer: Any, long: int, short: int, limit: int
) -> None:
    """Each answer keeps its start, up to half of the limit, and the prompt then its end."""
    renderer = Renderer(tokenizer, limit)
    row = Pair((Message("user", "Qual é a causa?"),), "a b" * long, "c d" * short, "here")
    whole = Renderer(tokenizer, 2048).pair(row).trees[0]
    rendered = renderer.pair(row)
    fits = len(whole.prompt) + max(len(c.ids) for c in whole.completions) <= limit
    assert rendered.cut is not fits
    (tree,) = rendered.trees
    if fits:
        assert tree == whole
        return
    for found, full in zip(tree.completions, whole.completions, strict=True):
        assert found.ids == full.ids[: limit // 2]
        assert found.supervised == [True] * len(found.ids)
        assert len(found.ids) >= 1
    assert len(tree.prompt) >= 1
    assert tree.prompt == whole.prompt[-len(tree.prompt) :]
    longest = max(len(c.ids) for c in tree.completions)
    assert len(tree.prompt) == min(len(whole.prompt), limit - longest)


def test_a_pair_that_differs_only_past_the_cut_is_dropped(tokenizer: Any) -> None:
    row = Pair((Message("user", "Qual é?"),), "a b" * 40 + "x", "a b" * 40 + "y", "here")
    rendered = Renderer(tokenizer, 20).pair(row)
    assert rendered.trees == []
    assert rendered.dropped == "the same in their first 10 tokens"


def test_lines_are_the_chapters_format_without_an_end(tokenizer: Any) -> None:
    row = chat("Oi, doutor?", "Bom dia.")
    (tree,) = Renderer(tokenizer, 64).lines(row).trees
    ids, supervised, _ = tree.completions[0]
    assert tokenizer.decode(ids) == "User: Oi, doutor?\nAssistant: Bom dia."
    assert tree.prompt == []
    assert all(supervised)
    rendered = Renderer(tokenizer, 5).lines(row)
    assert rendered.cut
    assert rendered.trees[0].completions[0].ids == ids[:5]


def test_a_document_ends_and_is_split_without_loss(tokenizer: Any) -> None:
    text = "A dengue é uma doença. " * 10
    (ids,) = Renderer(tokenizer, 2048).texts([text])
    (whole,) = Cut(2048).trees(ids)
    assert whole.completions[0].ids[-1] == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    parts = Cut(16).trees(ids)
    assert [t for part in parts for t in part.completions[0].ids] == whole.completions[0].ids
    assert all(part.tokens <= 16 for part in parts)


def test_no_double_start_token() -> None:
    """A tokenizer that puts a start token before text does so once (OpenRLHF #393)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["<s>", "</s>", "oi", "olá", "user", "assistant", "[UNK]"])}
    core = Tokenizer(models.WordLevel(words, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(["<s>", "</s>"])
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %} {% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    renderer = Renderer(fast, 64)
    (tree,) = renderer.chat(chat("oi", "olá")).trees
    assert tree.prompt == [0, 4, 2, 5]
    assert tree.completions[0].ids == [3, 1]
    assert renderer.texts(["oi"]) == [[0, 2, 1]]


def question(stem: str, image: str | None = None) -> Any:
    return parse_question(
        {
            "enunciado": stem,
            "alternativas": {"A": "um vírus", "B": "uma bactéria", "E": None},
            "resposta": "A",
            "img_description": image,
        },
        "here",
    )


def test_alternatives_share_their_prompt_and_score_no_end(tokenizer: Any) -> None:
    rendered = Renderer(tokenizer, 2048).alternatives(question("Qual é a causa?", "uma foto"))
    (tree,) = rendered.trees
    texts = [tokenizer.decode(c.ids) for c in tree.completions]
    assert texts == ["um vírus", "uma bactéria"]
    assert tokenizer.decode(tree.prompt).count("uma foto") == 1
    assert not rendered.cut


def test_a_long_question_loses_its_start_and_keeps_its_end(tokenizer: Any) -> None:
    rendered = Renderer(tokenizer, 64).alternatives(question("palavra " * 200 + "pergunta final?"))
    (tree,) = rendered.trees
    assert rendered.cut
    assert len(tree.prompt) + max(len(c.ids) for c in tree.completions) <= 64
    assert tokenizer.decode(tree.prompt).rstrip().endswith("assistant")
    assert "pergunta final?" in tokenizer.decode(tree.prompt)


def test_letters_follow_the_prompt_that_the_shipped_model_has_read(tokenizer: Any) -> None:
    (tree,) = Renderer(tokenizer, 2048).letter(question("Qual é a causa?", "uma foto")).trees
    assert [tokenizer.decode(c.ids) for c in tree.completions] == ["A", "B"]
    assert [len(c.ids) for c in tree.completions] == [1, 1]
    met = (
        "<|im_start|>user\nQual é a causa?\n\numa foto\nA) um vírus\nB) uma bactéria\n"
        "Responda só com a letra.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tree.prompt == tokenizer(met, add_special_tokens=False)["input_ids"]
    written = Renderer(tokenizer, 2048).generate(question("Qual é a causa?", "uma foto"), 64)
    assert written.trees == [Tree(tree.prompt, [])]


def test_the_chapters_prompt_shows_what_stands_in_blank_alternatives(tokenizer: Any) -> None:
    (tree,) = Renderer(tokenizer, 2048).chapter(question("Qual é a causa?", "uma foto"), 10).trees
    said = tokenizer.decode(tree.prompt)
    for words in ("médico especialista", "apenas com a letra", "Qual é a causa?\n\numa foto\n"):
        assert words in said
    assert "\nA) um vírus\nB) uma bactéria\nE) None\n" in said
    assert said.split()[-3:] == ["Resposta:<|im_end|>", "<|im_start|>", "assistant"]


def test_thinking_is_off_in_every_question(tokenizer: Any) -> None:
    tokenizer.chat_template = QWEN3_LIKE
    renderer, row = Renderer(tokenizer, 2048), question("Qual?")
    for rendered in (
        renderer.alternatives(row),
        renderer.letter(row),
        renderer.generate(row, 64),
        renderer.chapter(row, 10),
    ):
        said = tokenizer.decode(rendered.trees[0].prompt)
        assert said.endswith("assistant\n<think>\n\n</think>\n\n")


def test_a_long_question_leaves_room_for_the_answer(tokenizer: Any) -> None:
    renderer, row = Renderer(tokenizer, 128), question("palavra " * 200 + "pergunta final?")
    for rendered in (renderer.generate(row, 40), renderer.chapter(row, 40)):
        (tree,) = rendered.trees
        assert rendered.cut
        assert 70 < len(tree.prompt) <= 128 - 40
        assert "pergunta final?" in tokenizer.decode(tree.prompt)
        assert "B) uma bactéria" in tokenizer.decode(tree.prompt)
    with pytest.raises(BadInput, match="here: alternativas: too long for the model's 128 tokens"):
        renderer.chapter(row, 120)


def test_a_tokenizer_without_template_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(BadInput, match=r"model.chat_template"):
        Renderer(tokenizer, 64).chat(chat("a", "b"))


def test_a_word_has_the_same_tokens_at_the_start_of_a_line_and_in_it(tokenizer: Any) -> None:
    ids = [
        tokenizer(text, add_special_tokens=False)["input_ids"][-3:]
        for text in ("dengue", "a dengue", "assistant\ndengue")
    ]
    assert ids[0] == ids[1] == ids[2]
    for text in ("a dengue\nfebre", json.dumps({"a": "ção"}, ensure_ascii=False)):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
