"""Qwen3's facts, on a tokenizer of its special tokens and template and a network of random weights.

Turns end in <|im_end|>, documents and padding are <|endoftext|>, thinking is off, and what is
trained on is what generation is asked to go on from, to the id.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from drbode import config
from drbode.data.prompts import Renderer
from drbode.data.rows import Chat, Message, Pair, Prompt, parse_question
from drbode.models.base import load_policy
from drbode.models.generation import generate
from drbode.trees import Completion, pack

# As in Qwen3's own: thinking is taken out of earlier turns, an answer to the last question carries
# its thinking block (an empty one where there is none), and so does a prompt with thinking off.
TEMPLATE = """\
{%- set ns = namespace(last_query=messages|length - 1, looking=true) %}
{%- for message in messages[::-1] %}
    {%- if ns.looking and message.role == 'user' %}
        {%- set ns.looking = false %}
        {%- set ns.last_query = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# Letters, then whole words, as ids: a byte is its place in ByteLevel's alphabet.
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<think>", "</think>"]  # Qwen3 has them as tokens that are not special
PAD, START, END, THINK, UNTHINK = range(len(ALPHABET), len(ALPHABET) + 5)
NEWLINE = ALPHABET.index("Ċ")
EMPTY_THOUGHT = [THINK, NEWLINE, NEWLINE, UNTHINK, NEWLINE, NEWLINE]


def letters(text: str) -> list[int]:
    return [ALPHABET.index({" ": "Ġ", "\n": "Ċ"}.get(c, c)) for c in text]


def turn(role: str, content: str) -> list[int]:
    return [START, *letters(f"{role}\n{content}"), END, NEWLINE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on the disk, as one comes from the hub."""
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(ALPHABET)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    core.add_tokens(ADDED)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    path = tmp_path_factory.mktemp("qwen3")
    network = Qwen3ForCausalLM(shape)
    # As Qwen3's own: generation ends at either, and pads with the latter.
    network.generation_config.eos_token_id = [END, PAD]
    network.generation_config.pad_token_id = PAD
    network.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def policy(folder: Path) -> Any:
    tree: Any = config.compose("evaluate", [f"model.path={folder}", "model=qwen3_0_6b"])
    asked = config.build(config.EvaluateConfig, tree)
    return load_policy(asked.model, torch.float32, "sdpa")


@pytest.fixture(scope="module")
def renderer(policy: Any) -> Renderer:
    return Renderer(policy.tokenizer, policy.context)


def chat(*turns: str) -> Chat:
    roles = ("user", "assistant")
    return Chat(tuple(Message(roles[i % 2], t) for i, t in enumerate(turns)), "here")


def test_the_end_of_a_turn_and_of_a_document_and_the_pad_are_told_apart(renderer: Renderer) -> None:
    assert renderer.turn_end == ("<|im_end|>", END)
    assert renderer.document_end == PAD
    assert renderer.tokenizer.pad_token_id == PAD
    assert renderer.texts(["oi"]) == [[*letters("oi"), PAD]]


@pytest.mark.parametrize("eos", ["<|im_end|>", "<|endoftext|>"])
def test_a_row_to_the_id_with_an_empty_thought_and_its_end(renderer: Renderer, eos: str) -> None:
    """Also with the tokenizer of a Qwen3 base, whose end token is <|endoftext|>."""
    tokenizer = copy.deepcopy(renderer.tokenizer)
    tokenizer.eos_token = eos
    (tree,) = Renderer(tokenizer, 512).chat(chat("oi", "sim")).trees
    assert tree.prompt == [
        *turn("user", "oi"),
        START,
        *letters("assistant\n"),
        *EMPTY_THOUGHT,
    ]
    assert tree.completions == [Completion([*letters("sim"), END], [True] * 4)]


def test_what_is_trained_is_what_generation_goes_on_from(
    policy: Any, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[list[int]] = []
    model = policy.model
    written = model.generate

    def watched(input_ids: torch.Tensor, **rest: Any) -> Any:
        met.extend(input_ids.tolist())
        return written(input_ids=input_ids, **rest)

    monkeypatch.setattr(model, "generate", watched)
    row = chat("oi", "sim", "e depois", "fim")
    trained = renderer.chat(row).trees
    assert len(trained) == 2  # the template rewrites the history, so each turn has a tree
    histories = [row.messages[:1], row.messages[:3]]
    for tree, history in zip(trained, histories, strict=True):
        prompt = renderer.opening(Prompt(history, None, "here")).trees[0].prompt
        (answer,) = generate(policy, [prompt], end=END, max_new_tokens=3, max_tokens=512)
        assert len(answer.ids) <= 3
        assert met.pop() == prompt == tree.prompt
    first = [*turn("user", "oi"), *turn("assistant", "sim"), *turn("user", "e depois")]
    assert trained[1].prompt == [*first, START, *letters("assistant\n"), *EMPTY_THOUGHT]
    pair = Pair(histories[1], "fim", "nada", "here")
    (tree,) = renderer.pair(pair).trees
    assert tree.prompt == trained[1].prompt
    assert [c.ids for c in tree.completions] == [[*letters(t), END] for t in ("fim", "nada")]


def test_no_pad_and_no_thought_is_ever_a_target(policy: Any, renderer: Renderer) -> None:
    rows = [chat("oi", "sim"), chat("o que fazer", "descansar e beber agua")]
    batch = pack([tree for row in rows for tree in renderer.chat(row).trees])
    targets = batch.targets.tolist()
    assert PAD not in batch.input_ids.tolist()
    assert not {PAD, START, THINK, UNTHINK} & set(targets)
    assert targets.count(END) == 2
    logps = policy.logps(batch)
    assert torch.isfinite(logps).all()
    logps.sum().backward()
    gradients = [p.grad for p in policy.network.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("protocol", ["letter", "generate", "chapter"])
def test_every_question_is_asked_with_thinking_off(renderer: Renderer, protocol: str) -> None:
    row = {"enunciado": "Qual", "alternativas": {"A": "um", "B": "dois"}, "resposta": "A"}
    room = [] if protocol == "letter" else [10]
    (tree,) = getattr(renderer, protocol)(parse_question(row, "here"), *room).trees
    assert tree.prompt[-len(EMPTY_THOUGHT) :] == EMPTY_THOUGHT


def test_batched_answers_are_those_of_one_at_a_time(policy: Any, renderer: Renderer) -> None:
    """Prompts of unlike length are padded on the left, and the pad changes no answer."""
    prompts = [renderer.prompt(chat(text).messages) for text in ("oi", "o que fazer agora")]
    options = {"end": END, "max_new_tokens": 5, "max_tokens": 512}
    alone = [generate(policy, [prompt], **options)[0] for prompt in prompts]
    assert generate(policy, prompts, **options) == alone
