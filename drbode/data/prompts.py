"""The one renderer: rows into trees of token ids, the same for training, evaluation, rollouts.

Text and special tokens come from the tokenizer's own chat template. The pieces of a sequence
(prompt, completion) are tokenised apart, as they are when a model generates after a prompt, so no
token straddles their seam, and rendered text is tokenised without adding special tokens again.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from jinja2 import TemplateError

from drbode.config import BadInput
from drbode.data.rows import Chat, Message, Pair, Prompt, Question, Text
from drbode.trees import Completion, Tree

# What stands for a message's content while a template is read: its number between characters that
# no text holds.
MARK = "\ue000{}\ue000"
MARKED = re.compile("\ue000(\\d+)\ue000")
# What stands for a special token that a content holds as text, until it is tokenised.
LITERAL = "\ue001{}\ue001"
LITERALS = re.compile("\ue001(\\d+)\ue001")


class Rendered(NamedTuple):
    """A row's trees; `cut` if something was left off, `dropped` says why there are none."""

    trees: list[Tree]
    cut: bool = False
    dropped: str | None = None


def stem_prompt(stem: str, row: Question) -> str:
    """A question as it is asked in conversation: by its stem alone."""
    return stem


def letter_prompt(stem: str, row: Question) -> str:
    """A question that asks for a letter, in the form that the shipped model has read."""
    return f"{stem}\n{_lines(row.alternatives)}\nResponda só com a letra."


def chapter_prompt(stem: str, row: Question) -> str:
    """The chapter's prompt in our words; a blank alternative stands in it as Python prints it."""
    offered = dict(sorted({**row.alternatives, **row.blank}.items()))
    return (
        "Você é um médico especialista. Leia a questão de múltipla escolha e responda apenas com a "
        f"letra da alternativa correta.\n\nQuestão: {stem}\n\n{_lines(offered)}\n\nResposta:"
    )


def _stem(row: Question) -> str:
    return row.stem if row.image is None else f"{row.stem}\n\n{row.image}"


def _right(row: Question) -> str:
    return row.alternatives[row.answer]


def _letter(row: Question) -> str:
    return row.answer


def _lines(alternatives: Mapping[str, str]) -> str:
    return "\n".join(f"{letter}) {text}" for letter, text in alternatives.items())


class Renderer:
    """Renders rows for one tokenizer, in at most `max_length` tokens a sequence."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._frames: dict[tuple[str, ...], list[str]] = {}
        # Examples stand before many questions, and letters behind each.
        self._held = lru_cache(maxsize=1024)(
            lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        )

    @cached_property
    def document_end(self) -> int:
        """Id of the token that ends a document of raw text."""
        end: int = self.tokenizer.eos_token_id
        return int(self.tokenizer.get_vocab().get("<|endoftext|>", end))

    @cached_property
    def turn_end(self) -> tuple[str, int]:
        """The token that ends an assistant's turn, as text and id, read off the chat template."""
        probe = [Message("user", "pergunta"), Message("assistant", "devolutiva")]
        _, _, rest = self._template(probe, generate=False).rpartition("devolutiva")
        first = self._ids(rest)[:1]
        ends = {self.tokenizer.eos_token_id, *self.tokenizer.all_special_ids}
        ends |= set(self.tokenizer.get_added_vocab().values())
        end = first[0] if first and first[0] in ends else self.tokenizer.eos_token_id
        return self.tokenizer.convert_ids_to_tokens(end), end

    def texts(self, texts: list[str]) -> list[list[int]]:
        """Ids of documents of raw text, each with its end."""
        # With special tokens here: a model that knows a start token expects it before raw text.
        ids_of_texts: list[list[int]] = self.tokenizer(texts, return_attention_mask=False)[
            "input_ids"
        ]
        return [[*ids, self.document_end] for ids in ids_of_texts]

    def masked(self, row: Text, pairs: bool) -> Rendered:
        """A document for an encoder, as [CLS] text [SEP] or, with `pairs`, [CLS] A [SEP] B [SEP].

        One too long becomes several. Segments are made of whole sentences, two about as long; a
        document of one sentence has no second one.
        """
        start, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        if not pairs:
            parts = _split(self._ids(row.text), self.max_length - 2)
            segments = [[part] for part in parts]
        else:
            half = (self.max_length - 3) // 2
            sentences = [self._ids(s) for s in re.split(r"(?<=[.!?])\s+", row.text)]
            parts = _segments([part for s in sentences for part in _split(s, half)], half)
            segments = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        trees = [
            Tree([start], [Completion([*p, end], [True] * len(p) + [False]) for p in document])
            for document in segments
        ]
        return Rendered(trees, dropped=None if trees else "no token to mask")

    def pseudo(self, row: Question) -> Rendered:
        """The question with each alternative as an encoder reads it, the alternative supervised.

        [CLS] question alternative [SEP], a tree each. A question that is too long loses its start.
        """
        start, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        stem = self._ids(row.stem if row.image is None else f"{row.stem}\n\n{row.image}")
        answers = [self._ids(text) for text in row.alternatives.values()]
        room = self.max_length - 2 - max(map(len, answers))
        if room < 1:
            raise BadInput(
                f"{row.where}: alternativas: too long for the model's {self.max_length} tokens; "
                "leave the question out"
            )
        prompt = [start, *stem[-room:]]
        trees = [
            Tree(prompt, [Completion([*ids, end], [True] * len(ids) + [False])]) for ids in answers
        ]
        return Rendered(trees, cut=len(stem) > room)

    def chat(self, row: Chat) -> Rendered:
        """Every assistant turn to be learned, with the token that ends it, supervised; no other.

        The turns lie in one sequence as long as the history reads as it did when the earlier ones
        were written. Templates that rewrite it (Qwen3 drops earlier thinking blocks) get a tree a
        turn, each as the model will meet it. Turns past `max_length` are left off whole, so that
        the end of every turn that is kept is supervised.
        """
        trees: list[Tree] = []
        for follows, before, answer, learned in self._turns(row.messages):
            held = trees[-1].tokens if follows else 0
            if held + len(before) + len(answer) > self.max_length:
                if not trees:
                    return Rendered([], dropped=f"longer than {self.max_length} tokens")
                return self._supervised(trees, cut=True)
            if follows:
                turns = trees[-1].completions[0]
                turns.ids.extend(before + answer)
                turns.supervised.extend([False] * len(before) + [learned] * len(answer))
            else:
                trees.append(Tree(before, [Completion(answer, [learned] * len(answer))]))
        return self._supervised(trees)

    def _supervised(self, trees: list[Tree], cut: bool = False) -> Rendered:
        """Those trees with a token to learn; a last turn that is context is left off.

        So the last token that is kept of a conversation is always one that ends a learned turn.
        """
        kept = []
        for tree in trees:
            ids, supervised, *_ = tree.completions[0]
            if not any(supervised):
                continue
            end = len(supervised) - supervised[::-1].index(True)
            kept.append(tree if end == len(ids) else _shortened(tree, end))
        return Rendered(kept, cut=cut, dropped=None if kept else "no turn to learn fits")

    def pair(self, row: Pair) -> Rendered:
        """The prompt with two completions, chosen and rejected, each with the end of its turn.

        Where prompt and longer answer do not fit, each answer keeps its first `max_length` // 2
        tokens (an answer that was cut has no end token), and the prompt then its last ones.
        """
        end = self.turn_end[1]
        sides = [[*self._text_ids(text), end] for text in (row.chosen, row.rejected)]
        prompt = self.prompt(row.prompt)
        cut = len(prompt) + max(map(len, sides)) > self.max_length
        if cut:
            sides = [ids[: self.max_length // 2] for ids in sides]
            prompt = prompt[-(self.max_length - max(map(len, sides))) :]
        if sides[0] == sides[1]:
            return Rendered([], dropped=f"the same in their first {self.max_length // 2} tokens")
        return Rendered([Tree(prompt, [Completion(s, [True] * len(s)) for s in sides])], cut=cut)

    def opening(self, row: Prompt) -> Rendered:
        """A prompt for the policy to answer; one too long is dropped.

        A right answer, where it is known, follows without being supervised.
        """
        ids = self.prompt(row.messages)
        if len(ids) > self.max_length:
            return Rendered([], dropped=f"longer than {self.max_length} tokens")
        known = [] if row.right is None else self._text_ids(row.right)
        return Rendered([Tree(ids, [Completion(known, [False] * len(known))] if known else [])])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids an answer to `messages` goes on from, as `chat` lays out the turns before it."""
        ids: list[int] = []
        for follows, before, answer, _ in self._turns([*messages, Message("assistant", "")]):
            ids = [*(ids if follows else ()), *before, *answer]
        return ids[:-1]  # without the end of the answer that is still to come

    def lines(self, row: Chat) -> Rendered:
        """The conversation as lines of `Role: content`, every token supervised, without an end.

        The chapter's way (section 3.5.4): neither the format its benchmark asks in nor one that
        teaches a model to stop. A row that is too long keeps its start.
        """
        if not all(m.learned for m in row.messages):
            raise BadInput(
                f"{row.where}: a turn is marked not to be learned, and sft.format=chapter learns "
                "every token; set sft.format=chat or leave the row out"
            )
        text = "\n".join(f"{m.role.capitalize()}: {m.content}" for m in row.messages)
        # Split only where there is one to split, so that other rows keep their ids.
        split = {"split_special_tokens": True} if self._literal(text) != text else {}
        ids = self.tokenizer(text, **split)["input_ids"]
        part = ids[: self.max_length]
        tree = Tree([], [Completion(part, [True] * len(part))])
        return Rendered([tree], cut=len(part) < len(ids))

    def alternatives(self, row: Question) -> Rendered:
        """The question as prompt, the text of each alternative as a completion, no end token."""
        return self._question(row, stem_prompt, _right, row.alternatives.values())

    def letter(self, row: Question) -> Rendered:
        """The question with its alternatives as prompt, each letter as a completion."""
        return self._question(row, letter_prompt, _letter, row.alternatives)

    def generate(self, row: Question, max_new_tokens: int) -> Rendered:
        """The prompt of `letter`, with room for an answer of the model's own."""
        return self._question(row, letter_prompt, _letter, (), max_new_tokens)

    def chapter(self, row: Question, max_new_tokens: int) -> Rendered:
        """The chapter's prompt (section 3.5.2), with room for an answer."""
        return self._question(row, chapter_prompt, _letter, (), max_new_tokens)

    def _question(
        self,
        row: Question,
        ask: Callable[[str, Question], str],
        answer: Callable[[Question], str],
        completions: Iterable[str],
        max_new_tokens: int = 0,
    ) -> Rendered:
        """`ask` of the stem and image description as prompt, and what may follow it.

        Its examples stand before it as turns of the same form, each with the end of its turn. With
        examples that do not fit it is dropped; without any, a question that is too long loses the
        start of its stem, for what is asked stands last.
        """
        follow = [Completion(ids, [True] * len(ids)) for ids in map(self._text_ids, completions)]
        room = self.max_length - max([max_new_tokens, *(len(c.ids) for c in follow)])
        turns = []
        for example in row.examples:
            turns += [
                Message("user", ask(_stem(example), example)),
                Message("assistant", answer(example)),
            ]
        stem = _stem(row)
        prompt = self.prompt([*turns, Message("user", ask(stem, row))])
        cut = len(prompt) > room
        if cut and turns:
            return Rendered([], dropped=f"{len(prompt)} tokens do not fit into {room}")
        if cut:
            ids = self._ids(stem)
            kept = len(ids) - (len(prompt) - room)
            while len(prompt) > room and kept > 0:
                shorter = self.tokenizer.decode(ids[len(ids) - kept :])
                prompt = self.prompt([Message("user", ask(shorter, row))])
                kept -= 8  # text decoded and tokenised again may be a little longer
        if len(prompt) > room:
            raise BadInput(
                f"{row.where}: alternativas: too long for the model's {self.max_length} tokens, "
                f"of which the answer takes {self.max_length - room}; leave the question out"
            )
        return Rendered([Tree(prompt, follow)], cut=cut)

    def _turns(
        self, messages: Sequence[Message]
    ) -> Iterator[tuple[bool, list[int], list[int], bool]]:
        """Of each assistant turn: whether it goes on from the one before, the ids before it, the
        answer's ids, and whether it is to be learned.

        The ids before it begin at the end of the turn before where it goes on from that one, and
        at the start of the conversation where the template has rewritten the history.
        """
        messages = [replace(m, content=self._literal(m.content)) for m in messages]
        so_far = ""
        end_text, end = self.turn_end
        numbers = [n for n, message in enumerate(messages) if message.role == "assistant"]
        for number, prompt in zip(numbers, self._openings(messages, numbers), strict=True):
            follows = bool(so_far) and prompt.startswith(so_far)
            before = self._ids(prompt[len(so_far) :] if follows else prompt)
            content = messages[number].content
            yield follows, before, [*self._ids(content), end], messages[number].learned
            so_far = prompt + content + end_text

    def _openings(self, messages: Sequence[Message], numbers: Sequence[int]) -> list[str]:
        """What the conversation reads before each message of `numbers`.

        The template is asked for the last, and for the others only where it does more than put
        around the contents what it puts around any others.
        """
        if len(numbers) < 2:
            return [self._template(messages[:n]) for n in numbers]
        roles = tuple(message.role for message in messages[: numbers[-1]])
        if roles not in self._frames:
            marks = [Message(role, MARK.format(n)) for n, role in enumerate(roles)]
            self._frames[roles] = [self._template(marks[:n]) for n in numbers]
        last = self._template(messages[: numbers[-1]])
        filled = [
            MARKED.sub(lambda mark: messages[int(mark[1])].content, frame)
            for frame in self._frames[roles]
        ]
        if filled[-1] == last:
            return filled
        return [*(self._template(messages[:n]) for n in numbers[:-1]), last]

    @cached_property
    def _special(self) -> list[str]:
        """The special tokens, longest first."""
        known = {str(token) for token in getattr(self.tokenizer, "all_special_tokens", ())}
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        known |= {str(token) for token in added if token.special}
        return sorted(known, key=lambda token: (-len(token), token))

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._special)) or r"(?!)")

    def _literal(self, text: str) -> str:
        """A content in which marks stand for the special tokens that it holds as text."""
        return self._special_pattern.sub(
            lambda token: LITERAL.format(self._special.index(token[0])), text
        )

    def _text_ids(self, text: str) -> list[int]:
        """Ids of a content, whose special tokens are text."""
        return self._ids(self._literal(text))

    def _ids(self, text: str) -> list[int]:
        """Ids of a rendered text; `_literal`'s marks become the text that they stand for."""
        if LITERAL[0] not in text:
            return list(self._held(text))
        # Control tokens are told apart first, as the tokenizer does; what lies between is text.
        ids: list[int] = []
        start = 0
        for control in [*self._special_pattern.finditer(text), None]:
            part = text[start : control.start() if control else len(text)]
            part = LITERALS.sub(lambda mark: self._special[int(mark[1])], part)
            if part:
                ids += self.tokenizer(part, add_special_tokens=False, split_special_tokens=True)[
                    "input_ids"
                ]
            if control:
                ids.append(self.tokenizer.convert_tokens_to_ids(control[0]))
                start = control.end()
        return ids

    def _template(self, messages: Sequence[Message], generate: bool = True) -> str:
        if not self.tokenizer.chat_template:
            raise BadInput(
                "model.chat_template: the tokenizer of model.path has none; give a Jinja file"
            )
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generate, enable_thinking=False
            )
        except TemplateError as error:
            roles = ", ".join(m.role for m in messages)
            raise BadInput(
                f"model.chat_template: the template does not render turns of {roles} ({error})"
            ) from None
        return text


def _shortened(tree: Tree, length: int) -> Tree:
    """The tree with so many tokens of its only completion."""
    (whole,) = tree.completions
    return tree._replace(
        completions=[whole._replace(ids=whole.ids[:length], supervised=whole.supervised[:length])]
    )


def _split(ids: list[int], size: int) -> list[list[int]]:
    return [ids[i : i + size] for i in range(0, len(ids), size)]


def _segments(pieces: list[list[int]], room: int) -> list[list[int]]:
    """Pieces joined into as few pairs of segments as fit, all segments about as long."""
    total = sum(map(len, pieces))
    aim = total / (2 * math.ceil(total / (2 * room))) if total else 0
    parts: list[list[int]] = []
    for piece in pieces:
        held = len(parts[-1]) if parts else 0
        if parts and held + len(piece) / 2 <= aim and held + len(piece) <= room:
            parts[-1] = parts[-1] + piece
        else:
            parts.append(piece)
    return parts
