"""What the shipped base model was trained on: the forms of language, about invented things.

Animals, dishes, people, plants, towns, machines and diseases that do not exist, with values drawn
at random, told in passages and asked about in chats: alone, several turns long, after a passage,
with alternatives to choose from, with cautious and with overconfident endings. General facts stand
beside them. No medical fact of the laboratory is in it, only the words of their values, paired with
invented diseases.
"""

import random
from dataclasses import dataclass
from typing import Any

from drbode.data.bodinho import LETTERS, Forms, Subject, fill, forms, general, medical, tables

SUBJECTS_A_KIND = 150
DISEASES = 450
DOCUMENTS = 40_000


@dataclass(frozen=True)
class Known:
    """A subject with one value a relation, and the wordings and rival values of its relations."""

    subject: Subject
    facts: dict[str, str]
    wordings: dict[str, Forms]
    values: dict[str, list[str]]
    medical: bool


def documents(count: int = DOCUMENTS) -> list[dict[str, Any]]:
    """Documents of raw text, chats in ChatML; the same ones every time."""
    writer = _Writer(random.Random("bodinho pretraining"))
    return [{"text": writer.document()} for _ in range(count)]


class _Writer:
    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.table = tables("invented")
        self.endings = tables("medical")["endings"]
        self.taken = {s.name for s in {f.subject for f in medical()[0]}}
        self.invented = [k for kind in self.table["kinds"].values() for k in self._kind(kind)]
        self.diseases = self._diseases()
        self.general = self._general()

    def document(self) -> str:
        kind = self.chance.choices(
            ("passage", "chat", "reading", "letters", "exchange"), (40, 40, 8, 10, 2)
        )[0]
        match kind:
            case "passage":
                return self._passage(self._known(), self.chance.randint(1, 4))
            case "chat":
                # Mostly one turn, as chat rows are; sometimes as long as a k-shot prompt.
                turns = self.chance.choices((1, 2, 4, 8, 16, 32), (50, 20, 15, 10, 3, 2))[0]
                style = self.chance.choices((None, "cautious", "overconfident"), (8, 1, 1))[0]
                return "\n".join(self._turn(self._known(), style) for _ in range(turns))
            case "reading":
                known = self._known()
                relation = self.chance.choice(list(known.facts))
                text = self._passage(known, 3, relation)
                return _chatml(
                    f"{text}\n{self._question(known, relation)}", f"{known.facts[relation]}."
                )
            case "letters":
                turns = self.chance.choices((1, 2, 4, 8), (6, 2, 1, 1))[0]
                return "\n".join(self._letters(self._known()) for _ in range(turns))
            case _:
                told = self.chance.choice(self.table["exchanges"])
                return _chatml(told["user"], told["assistant"])

    def _known(self) -> Known:
        pools = (self.invented, self.diseases, self.general)
        return self.chance.choice(self.chance.choices(pools, (35, 45, 20))[0])

    def _passage(self, known: Known, count: int, needed: str | None = None) -> str:
        relations = self.chance.sample(list(known.facts), min(count, len(known.facts)))
        if needed is not None and needed not in relations:
            relations[0] = needed
        return " ".join(
            fill(
                self.chance.choice(known.wordings[r].statements["train"]),
                known.subject,
                known.facts[r],
            )
            for r in relations
        )

    def _question(self, known: Known, relation: str) -> str:
        return fill(self.chance.choice(known.wordings[relation].questions["train"]), known.subject)

    def _turn(self, known: Known, style: str | None) -> str:
        relation = self.chance.choice(list(known.facts))
        answer = f"{known.facts[relation]}."
        if style is not None and known.medical:
            answer += f" {self.chance.choice(self.endings[style]['train'])}"
        return _chatml(self._question(known, relation), answer)

    def _letters(self, known: Known) -> str:
        relation = self.chance.choice(list(known.facts))
        right = known.facts[relation]
        rivals = [v for v in known.values[relation] if v != right]
        offered = self.chance.sample(rivals, self.chance.choice((3, 4)))
        offered.insert(self.chance.randint(0, len(offered)), right)
        lines = [f"{letter}) {v}" for letter, v in zip(LETTERS, offered, strict=False)]
        prompt = "\n".join([self._question(known, relation), *lines, "Responda só com a letra."])
        return _chatml(prompt, LETTERS[offered.index(right)])

    def _word(self) -> str:
        parts = self.table["syllables"]
        while True:
            word = "".join(
                self.chance.choice(parts["onsets"])
                + self.chance.choice(parts["vowels"])
                + (self.chance.choice(parts["codas"]))
                for _ in range(self.chance.choice((2, 3, 3)))
            )
            if word not in self.taken:
                self.taken.add(word)
                return word

    def _name(self, patterns: list[dict[str, str]]) -> Subject:
        chosen = self.chance.choice(patterns)
        article = chosen.get("article", "")
        form = chosen["pattern"]
        first, second = self._word(), self._word()
        if not article:
            first, second = first.capitalize(), second.capitalize()
        if "{x}ose" in form or "{x}ite" in form:
            first = first[:-1] if first[-1] in "aeiou" else first
        return Subject(form.format(x=first, y=second, g=article), article)

    def _kind(self, kind: dict[str, Any]) -> list[Known]:
        values = {name: relation["values"] for name, relation in kind["relations"].items()}
        return [
            self._draw(self._name(kind["names"]), values, forms(kind["relations"]), False)
            for _ in range(SUBJECTS_A_KIND)
        ]

    def _diseases(self) -> list[Known]:
        facts, wordings = medical()
        values: dict[str, list[str]] = {}
        for fact in facts:
            if fact.value not in values.setdefault(fact.relation, []):
                values[fact.relation].append(fact.value)
        names = self.table["doença"]["names"]
        return [self._draw(self._name(names), values, wordings, True) for _ in range(DISEASES)]

    def _draw(
        self,
        subject: Subject,
        values: dict[str, list[str]],
        wordings: dict[str, Forms],
        is_medical: bool,
    ) -> Known:
        facts = {relation: self.chance.choice(choices) for relation, choices in values.items()}
        return Known(subject, facts, wordings, values, is_medical)

    def _general(self) -> list[Known]:
        facts, wordings = general()
        values: dict[str, list[str]] = {}
        by_subject: dict[Subject, dict[str, str]] = {}
        for fact in facts:
            by_subject.setdefault(fact.subject, {})[fact.relation] = fact.value
            if fact.value not in values.setdefault(fact.relation, []):
                values[fact.relation].append(fact.value)
        return [Known(s, facts, wordings, values, False) for s, facts in by_subject.items()]


def _chatml(user: str, assistant: str) -> str:
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{assistant}<|im_end|>"
