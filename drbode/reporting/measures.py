"""Each measure's label, which direction is better, and where it is shown.

Names are those of record/measures.py without their owner (base, stage or run). A measure without an
entry is shown as well, under its plain name.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from drbode.config import STAGES
from drbode.record import BASE, RUN

Direction = Literal["higher", "lower", "neither"]
Section = Literal["result", "beside", "cost"]  # of the ablation table
# Beside these, the axes of figures that hold results against costs, and the table of open answers.
Place = Section | Literal["pareto", "over", "open"]
SECTIONS: dict[Section, str] = {
    "result": "what came out",
    "beside": "what else was measured",
    "cost": "what it took",
}


@dataclass(frozen=True)
class Measure:
    """How a measure is read and written; `factor` takes it to the unit of its label."""

    label: str
    better: Direction
    shown: tuple[Place, ...] = ()
    form: str = ".3f"
    factor: float = 1.0
    phrase: str = ""  # of the line on held-out rows that ends a stage; empty: not said there

    @property
    def section(self) -> Section | None:
        """Its place in the ablation table; None: only there where the table compares by it."""
        return next((name for name in SECTIONS if name in self.shown), None)

    def text(self, value: float, sign: str = "") -> str:
        """A value in the label's unit; `sign` + writes it as a difference."""
        return f"{self.factor * value:{sign}{self.form}}"

    def said(self, value: float) -> str:
        """A value in a sentence."""
        return self.phrase.format(value).replace("%", " %")


def _share(label: str, better: Direction, *shown: Place, phrase: str = "") -> Measure:
    """Of a share from 0 to 1, written in percent."""
    return Measure(label, better, shown, ".1f", 100.0, phrase)


MEASURES: dict[str, Measure] = {
    # On the benchmark, and on general questions and text.
    "accuracy": _share("accuracy, %", "higher", "result"),
    "clean_accuracy": _share("not trained on, %", "higher", "beside"),
    "ece": Measure("calibration error", "lower"),
    "brier": Measure("Brier score", "lower"),
    "validation/loss": Measure("validation loss", "lower", ("beside",)),
    "train/loss": Measure("training loss", "lower"),
    "forgetting": _share("forgotten, points", "lower", "beside"),
    "general_accuracy": _share("general questions, %", "higher", "beside"),
    "bits_per_byte": Measure("general text, bits/byte", "lower", ("beside",)),
    # Of open answers.
    "cautious": _share("cautious, %", "higher", "beside", "open"),
    "advises": _share("advises, %", "neither", "open"),
    "overconfident": _share("overconfident, %", "lower", "beside", "open"),
    "keeps_content": _share("keeps content, %", "higher", "beside", "open"),
    "ends": _share("ends, %", "higher", "open"),
    "repeats": _share("repeats, %", "lower", "open"),
    "stopped": _share("stopped, %", "higher"),
    "words": Measure("words", "neither", ("open",), ".1f"),
    "gold": Measure("gold score", "higher", ("beside", "open"), ".2f"),
    "proxy": Measure("reward model's score", "higher", ("beside", "open"), ".2f"),
    "preferred": _share("prefers chosen, %", "higher", "beside", "open"),
    # By a stage's own objective, on its held-out rows.
    "validation/reward_accuracy": _share(
        "reward accuracy, %", "higher", phrase="reward accuracy {:.1%}"
    ),
    "validation/logp_accuracy": _share(
        "chosen more probable, %", "higher", "beside", phrase="raw logp accuracy {:.1%}"
    ),
    "validation/reward_margin": Measure("margin", "higher", phrase="margin {:.2f}"),
    "validation/reward_chosen": Measure("reward of the chosen", "neither"),
    "validation/reward_rejected": Measure("reward of the rejected", "neither"),
    "validation/logps_chosen": Measure("logps of the chosen, nats", "neither", form=".1f"),
    "validation/logps_rejected": Measure("logps of the rejected, nats", "neither", form=".1f"),
    "validation/tokens_chosen": Measure("tokens of the chosen", "neither", form=".1f"),
    "validation/tokens_rejected": Measure("tokens of the rejected", "neither", form=".1f"),
    "validation/chosen_gain_a_token": Measure(
        "gain of the chosen, nats a token",
        "higher",
        phrase="chosen answers {:+.2f} nats a token",
    ),
    "validation/accuracy": _share(
        "pairs ranked right, %", "higher", "beside", phrase="accuracy {:.1%}"
    ),
    "validation/score_chosen": Measure(
        "score of the chosen", "neither", phrase="score {:.2f} of the chosen"
    ),
    "validation/score_rejected": Measure(
        "score of the rejected", "neither", phrase="{:.2f} of the rejected"
    ),
    "validation/proxy": Measure("held-out score", "higher", form=".2f", phrase="score {:.2f}"),
    "validation/gold": Measure(
        "held-out gold score", "higher", form=".2f", phrase="gold score {:.2f}"
    ),
    "validation/kl": Measure(
        "KL, nats", "lower", ("beside",), ".1f", phrase="KL {:.2f} nats an answer"
    ),
    "validation/benchmark_accuracy": _share("accuracy at the last validation, %", "higher"),
    "validation/cautious": _share("held out, cautious, %", "higher", phrase="cautious {:.1%}"),
    "validation/advises": _share("held out, advises, %", "neither"),
    "validation/overconfident": _share("held out, overconfident, %", "lower"),
    "validation/keeps_content": _share(
        "held out, keeps content, %", "higher", phrase="keeps the content {:.1%}"
    ),
    "validation/ends": _share("held out, ends, %", "higher"),
    "validation/repeats": _share("held out, repeats, %", "lower", phrase="repeats itself {:.1%}"),
    "validation/words": Measure("held out, words", "neither", form=".1f"),
    "validation/length": Measure(
        "held out, tokens", "neither", form=".1f", phrase="{:.1f} tokens an answer"
    ),
    "validation/bits_per_byte": Measure(
        "held-out text, bits/byte", "lower", ("beside",), phrase="{:.3f} bits a byte"
    ),
    "validation/pseudo_perplexity": Measure(
        "pseudo-perplexity", "lower", ("beside",), ".2f", phrase="pseudo-perplexity {:.2f}"
    ),
    "validation/mlm": Measure("loss of masked tokens, nats", "lower"),
    "validation/nsp": Measure("loss of next sentences, nats", "lower"),
    "validation/nsp_accuracy": _share(
        "next sentences told, %", "higher", phrase="next sentences told {:.1%}"
    ),
    "validation/calibration_error": Measure(
        "reward calibration error", "lower", ("beside",), phrase="calibration error {:.3f}"
    ),
    # What answers look like, whatever they say.
    "unanswered": _share("no answer, %", "lower", "beside"),
    "stop_rate": _share("stopped, %", "higher", "beside"),
    # What it took.
    "trainable_parameters": Measure("trains", "lower", ("cost", "pareto"), ",.0f"),
    "artefact_mib": Measure("on disk, MiB", "lower", ("cost",), ".2f"),
    "steps": Measure("optimizer steps", "lower", form=",.0f"),
    "tokens": Measure("tokens", "lower", ("cost",), ",.0f"),
    "tokens_per_second": Measure("tokens/s", "higher", ("cost",), ",.0f"),
    "seconds": Measure("seconds", "lower", ("cost", "pareto", "over"), ".0f"),
    "peak_memory_gib": Measure("peak memory, GiB", "lower", ("cost", "pareto", "over"), ".2f"),
    "seconds_per_question": Measure("seconds a question", "lower", form=".3g"),
    "tokens_per_question": Measure("tokens a question", "lower", form=".0f"),
    "shared_tokens_per_question": Measure("of them run once for all", "neither", form=".0f"),
}
BEFORE = "_before"  # ends the name of what a validation before the first step came to
OWNERS = {BASE, RUN, *STAGES}


def measure(name: str) -> Measure:
    """How a measure is read and written; one without an entry goes by its plain name.

    `accuracy/PART` is written as the accuracy of that part, `OWNER/NAME` as NAME of OWNER.
    """
    if (entry := MEASURES.get(name)) is not None:
        return entry
    owner, _, rest = name.partition("/")
    if owner in OWNERS:
        entry = measure(rest)
        return entry if owner == RUN else replace(entry, label=_said_of(entry.label, owner))
    if owner == "accuracy":
        return replace(MEASURES["accuracy"], label=f"{rest}, %")
    if name.endswith(BEFORE):
        entry = measure(name.removesuffix(BEFORE))
        return replace(entry, label=f"before: {entry.label}", shown=(), phrase="")
    label = name.removeprefix("validation/").replace("_", " ")
    return Measure(label, "neither", ("beside",), ".4g", phrase=_literal(label) + " {:.4g}")


def in_order(names: Iterable[str]) -> list[str]:
    """Measures in the order of their entries; those without an entry last."""
    rank = {name: number for number, name in enumerate(MEASURES)}

    def place(name: str) -> int:
        owner, _, rest = name.partition("/")
        known = rest if owner in OWNERS else owner if owner == "accuracy" else name
        return rank.get(known, len(rank))

    return sorted(names, key=place)


def shown_in(place: Place) -> list[str]:
    """The measures that have a place there."""
    return [name for name, entry in MEASURES.items() if place in entry.shown]


def _said_of(label: str, owner: str) -> str:
    """`accuracy of sft, %`."""
    name, comma, unit = label.rpartition(", ")
    return f"{name} of {owner}{comma}{unit}" if comma else f"{label} of {owner}"


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
