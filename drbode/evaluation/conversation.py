"""Answers of a model, token by token."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal
from unicodedata import category

import torch
from jaxtyping import Float
from torch import Tensor

from drbode.config import BadInput
from drbode.data.prompts import Renderer
from drbode.data.rows import Message
from drbode.models.machine import Machine

Ending = Literal["whole", "cut", "full", "empty"]
Draw = Callable[[Float[Tensor, " vocabulary"]], int]


def sampler(temperature: float, top_p: float, seed: int) -> Draw:
    """Draws a token from its logits; temperature 0 takes the most probable one.

    `top_p` keeps the fewest most probable tokens that together have that probability (Holtzman et
    al. 2020, https://arxiv.org/abs/1904.09751, section 3.1): the most probable one always.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(logits: Float[Tensor, " vocabulary"]) -> int:
        if temperature == 0:
            return int(logits.argmax())
        # From the greatest down and in double, so that no temperature is too low to divide by.
        scaled = (logits.double() - logits.max()) / temperature
        probabilities, tokens = scaled.softmax(-1).sort(descending=True)
        before = probabilities.cumsum(-1) - probabilities
        kept = probabilities * (before < top_p)
        return int(tokens[torch.multinomial(kept, 1, generator=generator)])

    return draw


def generate(
    network: Any,
    prompt: list[int],
    ends: Collection[int],
    max_new_tokens: int,
    draw: Draw,
    machine: Machine,
) -> Iterator[int]:
    """The tokens that follow `prompt`, without the one of `ends` that ends them."""
    device = next(network.parameters()).device
    ids, cache = torch.tensor([prompt], device=device), None
    for _ in range(max_new_tokens):
        # Entered for each token, since what holds while a generator waits holds for its caller.
        with torch.inference_mode(), machine.autocast():
            output = network(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = draw(output.logits[0, -1].float().cpu())
        if token in ends:
            return
        yield token
        ids, cache = torch.tensor([[token]], device=device), output.past_key_values


def pieces(tokenizer: Any, tokens: Iterable[int]) -> Iterator[str]:
    """The text of `tokens`, a piece a token, empty where a character is not whole yet.

    Joined, the pieces are the text of all tokens, without half a character at its end. Control
    characters, which would move a terminal's cursor, are left out but for line ends and tabs.
    """
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd"):
            yield ""
        else:
            yield "".join(c for c in text[len(shown) :] if c in "\n\t" or category(c) != "Cc")
            shown = text


@dataclass
class Speaker:
    """A model in a conversation: it remembers what it was told and what it answered itself."""

    name: str
    network: Any
    renderer: Renderer
    machine: Machine
    draw: Draw
    max_new_tokens: int
    system: str | None = None
    switched: Callable[[], AbstractContextManager[Any]] = nullcontext  # adapter off, or nothing
    history: list[Message] = field(default_factory=list)

    def prepare(self, text: str) -> tuple[list[int], int]:
        """The ids to answer from, and how many of the oldest turns were forgotten to make room.

        Raises BadInput where the message alone leaves no room for a token of an answer.
        """
        context = self.renderer.max_length
        system = [] if self.system is None else [Message("system", self.system)]
        for start in range(0, len(self.history) + 1, 2):
            messages = [*system, *self.history[start:], Message("user", text)]
            prompt = self.renderer.prompt(messages)
            if len(prompt) + self.max_new_tokens <= context:
                break
        if len(prompt) >= context:
            raise BadInput(
                f"the message takes {len(prompt)} tokens and {self.name} has room for {context}, "
                "its answer included; shorten it"
            )
        del self.history[:start]
        return prompt, start // 2

    def answer(self, text: str, prompt: list[int], show: Callable[[str], None]) -> Ending:
        """Answers `text` from its prompt, piece by piece to `show`; says how the answer ended.

        Ended by the model it is `whole`, by `max_new_tokens` `cut`, by the context `full`. One that
        is interrupted is remembered as far as it went; an empty one is not.
        """
        said: list[str] = []
        ends = {self.renderer.turn_end[1], self.renderer.document_end}
        room = min(self.max_new_tokens, self.renderer.max_length - len(prompt))
        tokens = generate(self.network, prompt, ends, room, self.draw, self.machine)
        try:
            with self.switched():
                for piece in pieces(self.renderer.tokenizer, tokens):
                    said.append(piece)
                    show(piece)
        finally:
            if answer := "".join(said):
                self.history += [Message("user", text), Message("assistant", answer)]
        if not answer:
            return "empty"
        if len(said) < room:
            return "whole"
        return "cut" if room == self.max_new_tokens else "full"
