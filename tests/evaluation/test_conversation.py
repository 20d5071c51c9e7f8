"""Answers against transformers' generation, and what a conversation remembers and forgets."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from drbode.config import BadInput
from drbode.data.prompts import Renderer
from drbode.data.rows import Message
from drbode.evaluation.conversation import Speaker, generate, pieces, sampler
from drbode.models.base import bodinho_folder
from drbode.models.machine import Machine
from tests.conftest import tiny

CPU = Machine("cpu", "32-true", "fp32", "sdpa", 1)
GREEDY = sampler(0, 1, 0)
LOGITS = torch.tensor([0.2, 0.5, 0.3]).log()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(bodinho_folder())


@pytest.fixture(scope="module")
def network() -> Any:
    return AutoModelForCausalLM.from_pretrained(bodinho_folder(), dtype=torch.float32)


def speaker(network: Any, tokenizer: Any, max_new_tokens: int = 20, context: int = 2048) -> Speaker:
    return Speaker("model", network, Renderer(tokenizer, context), CPU, GREEDY, max_new_tokens)


def ask(model: Speaker, text: str) -> str:
    said: list[str] = []
    model.answer(text, model.prepare(text)[0], said.append)
    return "".join(said)


def test_greedy_tokens_are_those_of_transformers(family: str) -> None:
    network: Any = tiny(family)
    prompt = [5, 17, 3, 60]
    ids = torch.tensor([prompt])
    whole = network.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    expected = whole[0, len(prompt) :].tolist()
    assert list(generate(network, prompt, (), 12, GREEDY, CPU)) == expected
    end = expected[7]
    until = expected[: expected.index(end)]
    assert list(generate(network, prompt, {end}, 12, GREEDY, CPU)) == until


def test_generation_leaves_the_caller_its_gradients() -> None:
    for _ in generate(tiny("qwen3"), [1, 2], (), 2, GREEDY, CPU):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_a_temperature_near_0_draws_what_0_takes() -> None:
    for temperature in (0.0, 1e-300, 1e-3):
        draw = sampler(temperature, 1.0, 0)
        assert {draw(LOGITS) for _ in range(20)} == {1}


@pytest.mark.parametrize(
    ("top_p", "shares"),
    [(1.0, [0.2, 0.5, 0.3]), (0.6, [0.0, 0.625, 0.375]), (0.4, [0.0, 1.0, 0.0])],
)
def test_top_p_draws_from_the_fewest_tokens_of_that_share(
    top_p: float, shares: list[float]
) -> None:
    draw = sampler(1.0, top_p, 0)
    drawn = [draw(LOGITS) for _ in range(2000)]
    frequencies = [drawn.count(token) / 2000 for token in range(3)]
    assert frequencies == pytest.approx(shares, abs=0.04)
    assert all((f == 0) == (s == 0) for f, s in zip(frequencies, shares, strict=True))


def test_temperature_flattens_and_the_seed_repeats() -> None:
    def run(seed: int) -> list[int]:
        draw = sampler(2.0, 1.0, seed)
        return [draw(LOGITS) for _ in range(2000)]

    weights = [p**0.5 for p in (0.2, 0.5, 0.3)]
    frequencies = [run(0).count(token) / 2000 for token in range(3)]
    assert frequencies == pytest.approx([w / sum(weights) for w in weights], abs=0.04)
    assert run(0) == run(0) != run(1)


def test_pieces_are_whole_characters_that_join_to_the_text(tokenizer: Any) -> None:
    text = "Coração:\n\tfebre 🩺 alta"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    streamed = list(pieces(tokenizer, ids))
    assert len(streamed) == len(ids)
    assert "" in streamed  # the bytes of the stethoscope
    assert "".join(streamed).strip() == text
    assert "\ufffd" not in "".join(pieces(tokenizer, ids[: streamed.index("") + 2]))


def test_no_piece_moves_the_cursor(tokenizer: Any) -> None:
    ids = tokenizer("a\x1b[2Jb\rc\x9bd", add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, ids)).strip() == "a[2Jbcd"


def test_the_conversation_is_remembered(network: Any, tokenizer: Any) -> None:
    model = speaker(network, tokenizer)
    first = ask(model, "Qual é o agente causador da dengue?")
    assert model.history == [
        Message("user", "Qual é o agente causador da dengue?"),
        Message("assistant", first),
    ]
    model.system = "Responda."
    expected = [Message("system", "Responda."), *model.history, Message("user", "E agora?")]
    assert model.prepare("E agora?") == (model.renderer.prompt(expected), 0)


def test_the_oldest_turns_are_forgotten_whole(network: Any, tokenizer: Any) -> None:
    model = speaker(network, tokenizer, max_new_tokens=16, context=96)
    turns = [Message(r, f"{r} {n}") for n in range(9) for r in ("user", "assistant")]
    model.history = list(turns)
    prompt, forgotten = model.prepare("E agora?")
    assert 0 < forgotten < 9
    kept = turns[2 * forgotten :]
    assert model.history == kept
    assert prompt == model.renderer.prompt([*kept, Message("user", "E agora?")])
    one_more = [*turns[2 * forgotten - 2 :], Message("user", "E agora?")]
    assert len(prompt) + 16 <= 96 < len(model.renderer.prompt(one_more)) + 16


def test_a_message_past_the_context_is_refused_and_nothing_forgotten(
    network: Any, tokenizer: Any
) -> None:
    model = speaker(network, tokenizer, max_new_tokens=16, context=96)
    model.history = history = [Message("user", "a"), Message("assistant", "b")]
    with pytest.raises(BadInput, match=r"takes \d+ tokens and model has room for 96"):
        model.prepare("febre " * 96)
    assert model.history == history


def test_how_an_answer_ended(network: Any, tokenizer: Any) -> None:
    text = "Qual é o agente causador da dengue?"
    roomy = speaker(network, tokenizer)
    prompt, _ = roomy.prepare(text)
    said: list[str] = []
    assert roomy.answer(text, prompt, said.append) == "whole"
    length = len(said)
    assert length > 3
    short = speaker(network, tokenizer, max_new_tokens=length - 1)
    assert short.answer(text, prompt, said.append) == "cut"
    tight = speaker(network, tokenizer, context=len(prompt) + length - 1)
    assert tight.answer(text, tight.prepare(text)[0], said.append) == "full"
    end = roomy.renderer.turn_end[1]
    mute = speaker(network, tokenizer)
    mute.draw = lambda logits: end
    assert mute.answer(text, prompt, said.append) == "empty"
    assert mute.history == []


def test_an_interrupted_answer_is_remembered_as_far_as_it_went(
    network: Any, tokenizer: Any
) -> None:
    model = speaker(network, tokenizer)
    whole = ask(model, "oi")
    model.history.clear()
    said: list[str] = []

    def show(piece: str) -> None:
        said.append(piece)
        if len(said) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.answer("oi", model.prepare("oi")[0], show)
    assert model.history == [Message("user", "oi"), Message("assistant", "".join(said))]
    assert whole.startswith("".join(said))
    assert whole != "".join(said)
