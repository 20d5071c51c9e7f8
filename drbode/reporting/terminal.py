"""What a run says in the terminal."""

import csv
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from drbode.config import BenchmarkConfig
from drbode.record import Measured, of_open
from drbode.reporting.escape import visible
from drbode.reporting.measures import in_order, measure, shown_in
from drbode.reporting.table import AblationTable

INTERVAL = "cautious"  # the one share of open answers that is shown with its interval


class PlainConsole(Console):
    """Shows every string as it is: no markup and no emoji are read in it, nothing controls it.

    Names of models, paths and what data sets hold come from outside; `[/b]` in one of them would
    end in a MarkupError, `[red]` would vanish, and a control character would reach the terminal.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


# A pipe or a log file has no width; the tables need this much.
console = PlainConsole(
    highlight=False,
    markup=False,
    emoji=False,
    width=None if sys.stdout.isatty() else 128,
)


def show_plan(plan: Mapping[str, str]) -> None:
    """What the run is about to do, one line per part."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in plan.items():
        table.add_row(name, text)
    console.print(table)


def benchmark(settings: BenchmarkConfig, counts: Mapping[str, Any]) -> str:
    """The benchmark's questions and protocol in one line."""
    text = f"{settings.path}, {counts['questions']} questions, {settings.protocol}"
    if settings.scorer:
        text += f", scored by {settings.scorer}"
    if examples := counts["examples"]:
        text += (
            f", {settings.num_fewshot} examples ({settings.fewshot_choice} of {examples['pool']}"
        )
        shared = examples["shared"]
        text += f"; {shared} left out that the benchmark asks)" if shared else ")"
    return text


def curation(counts: Mapping[str, Any]) -> str:
    """How rows were chosen, in one line, with a warning where there are fewer than configured."""
    text = f"{counts['by']}, {counts['chosen']} of {counts['funnel'][0]['before']} rows"
    if counts["chosen"] < counts["asked"]:
        text += f": WARNING: fewer than the {counts['asked']} asked for (sft.curation_n)"
    return text


def show_funnel(funnel: Sequence[Mapping[str, Any]]) -> None:
    """Rows before each filter, dropped by it and left."""
    table = Table(title="curation", title_justify="left", title_style="bold")
    table.add_column("filter")
    for column in ("before", "dropped", "left"):
        table.add_column(column, justify="right")
    for step in funnel:
        table.add_row(*map(str, step.values()))
    console.print(table)


def contamination(counts: Mapping[str, Any]) -> str:
    """How many training rows hold questions of the benchmark, and what is done with them."""
    if not counts["rows"]:
        return "no training row asks a question of the benchmark"
    done = {"drop": "left out", "keep": "trained on", "stop": "the run stops"}[counts["action"]]
    return (
        f"{counts['rows']} training rows ask {counts['questions']} of the benchmark's questions, "
        f"{done}"
    )


def show_contamination(cases: Sequence[Mapping[str, Any]], most: int = 10) -> None:
    """The first training rows that hold questions of the benchmark, and the words that match."""
    table = Table(
        title="questions of the benchmark in training rows",
        title_justify="left",
        title_style="bold",
    )
    for head in ("stage", "row", "question", "found", "words in common"):
        table.add_column(head, overflow="fold")
    for case in cases[:most]:
        match = f"{case['rule']}, {case['score']:.0f} %"
        cells = (case["stage"], case["row"], case["question"], match, case["shared"][:60])
        table.add_row(*cells)
    console.print(table)
    if len(cases) > most:
        console.print(f"and {len(cases) - most} more")


def show_benchmark(results: Mapping[str, Measured]) -> None:
    """Accuracy after each stage, whole and by part, and the paired difference to the base."""
    written = next(iter(results.values())).summary["stop_rate"] is not None
    table = Table(title="benchmark", title_justify="left", title_style="bold")
    table.add_column("after")
    table.add_column("questions")
    table.add_column("", justify="right")
    scorer = next(iter(results.values())).summary.get("scorer")
    table.add_column("accuracy, %" if scorer is None else "score, %", no_wrap=True)
    if written:
        table.add_column("no answer, %", justify="right", min_width=6)
        table.add_column("stopped, %", justify="right", min_width=8)
    if len(results) > 1:
        table.add_column("difference to base", no_wrap=True)
        table.add_column("p", justify="right", no_wrap=True)
    for name, result in results.items():
        whole = result.summary
        against = result.against_base
        parts = {"all": whole, **whole["parts"]}
        if whole.get("clean"):
            parts["clean"] = whole["clean"]
        for number, (part, summary) in enumerate(parts.items()):
            cells = [name if number == 0 else "", part, str(summary["questions"])]
            cells.append(accuracy(summary))
            if written:
                cells += [f"{100 * summary[key]:.1f}" for key in ("unanswered", "stop_rate")]
            cells += difference(against[part]) if against else ()
            table.add_row(*cells, end_section=number == len(parts) - 1)
    console.print(table)
    whole = next(iter(results.values())).summary
    floors = ""
    if whole["chance"] is not None:
        floors = (
            f" Chance is {100 * whole['chance']:.1f}, always the longest alternative "
            f"{100 * whole['floor_longest']:.1f}."
        )
    console.print(f"[95 % interval].{floors}")
    if scorer is not None:
        console.print(f"An answer's score, from 0 to 100 %, is from {scorer}.")
    if written:
        console.print("No answer counts as wrong; stopped: ended its turn before the limit.")
    else:
        errors = ", ".join(f"{name} {r.summary['ece']:.2f}" for name, r in results.items())
        console.print(f"Calibration error (ECE) {errors}.")
    costs = ", ".join(f"{name} {cost(result.cost)}" for name, result in results.items())
    console.print(f"A question takes: {costs}.")
    for name, result in results.items():
        for lost, count in result.summary["examples_dropped"].items():
            console.print(f"{name}: {count} questions had no room for {lost} of their examples.")
    if len(results) > 1:
        console.print(
            f"Difference and p ({_tests(results)}) compare these two models on these questions, "
            "not the methods that made them: for that, run several seeds."
        )
    if whole.get("clean"):
        console.print("clean: the questions that stand in no training row.")
    if whole["prompts_cut"]:
        console.print(f"{whole['prompts_cut']} questions were too long and lost their start.")


def _tests(results: Mapping[str, Measured]) -> str:
    """The tests by which the differences to the base were judged."""
    compared = [result.against_base for result in results.values()]
    # Older records, which have no scores between 0 and 1, do not name their test.
    tests = [
        pair.get("test", "exact McNemar") for parts in compared if parts for pair in parts.values()
    ]
    return " or ".join(dict.fromkeys(tests))


def show_forgetting(results: Mapping[str, Mapping[str, Any]]) -> None:
    """How much of its general knowledge a model keeps after each stage."""
    first = next(iter(results.values()))
    has_questions, has_text = "questions" in first, "bits_per_byte" in first
    table = Table(title="general knowledge", title_justify="left", title_style="bold")
    table.add_column("after")
    if has_questions:
        table.add_column("questions right, %", no_wrap=True)
        table.add_column("difference to base", no_wrap=True)
        table.add_column("p", justify="right", no_wrap=True)
    if has_text:
        table.add_column("bits/byte of text", justify="right")
        table.add_column("rise over base", no_wrap=True)
    for name, result in results.items():
        cells = [name]
        is_base = result is first
        if has_questions:
            cells.append(accuracy(result["questions"]))
            cells += ("", "") if is_base else difference(result["against_base"])
        if has_text:
            rise = result["bits_per_byte_rise"]
            low, high = rise["interval"]
            cells.append(f"{result['bits_per_byte']:.3f}")
            text = f"{rise['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
            cells.append("" if is_base else text)
        table.add_row(*cells)
    if has_questions or has_text:
        console.print(table)


def show_table(table: AblationTable) -> None:
    """The ablation table and its notes."""
    for piece in table.to_terminal():
        console.print(piece)
    for note in table.notes:
        console.print(note)


def show_open(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Open answers by the rules, and how often each model's are better than an earlier one's."""
    summaries = {name: result["summary"] for name, result in results.items()}
    values = {name: of_open(summary) for name, summary in summaries.items()}
    first = next(iter(values.values()))
    shown = [name for name in shown_in("open") if name in first]
    table = Table(
        title=f"open answers to {next(iter(summaries.values()))['prompts']} held-out prompts",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("after", overflow="fold")
    for name in shown:
        whole = name == INTERVAL
        table.add_column(measure(name).label, justify="left" if whole else "right", no_wrap=whole)
    for after, numbers in values.items():
        cells = [
            share(summaries[after][name]) if name == INTERVAL else measure(name).text(numbers[name])
            for name in shown
        ]
        table.add_row(after, *cells)
    console.print(table)
    for scorer in next(iter(summaries.values())).get("scores") or ():
        each = ", ".join(f"{name} {s['scores'][scorer]:.3f}" for name, s in summaries.items())
        console.print(f"Mean score by {scorer}: {each}")
    for name, result in results.items():
        for other, pair in result["against"].items():
            for by, rate in pair["win_rate"].items():
                text = f"{name} over {other}, by the {by} score: {win_rate(rate)}"
                console.print(text)
            if pair["implicit"] is not None:
                text = f"{name} against {other} as its reference prefers the chosen answer of"
                console.print(f"{text} {share(pair['implicit'])} % of pairs")


def share(counted: Mapping[str, Any]) -> str:
    """A share in percent with its interval."""
    low, high = counted["interval"]
    return f"{100 * counted['share']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def win_rate(rate: Mapping[str, Any]) -> str:
    """A win rate in percent with its interval, its counts, and the sign test's p-value."""
    low, high = rate["interval"]
    p = "<0.001" if rate["p_value"] < 0.001 else f"{rate['p_value']:.3f}"
    return (
        f"wins {100 * rate['rate']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] "
        f"({rate['wins']} won, {rate['ties']} tied, {rate['losses']} lost), p {p}"
    )


def show_side_by_side(table: Path, prompts: int = 3) -> None:
    """The first prompts of a file of answers, each with the answers beside each other."""
    with table.open(encoding="utf-8", newline="") as file:
        for row in itertools.islice(csv.DictReader(file), prompts):
            console.print(f"\n{row.pop('prompt')}", style="bold")
            right = row.pop("right")
            if right:
                console.print(f"right: {right}", style="dim")
            # The scores by the user's scorers stand under `MODEL, module:function`.
            scores = {name: row.pop(name) for name in list(row) if ", " in name}
            console.print(columns(row))
            for name, score in scores.items():
                console.print(f"{name}: {score}", style="dim")


def held_out(stage: str, measures: Mapping[str, float]) -> str:
    """The measures of a stage's objective on held-out rows, in one line; empty without any.

    A measure without an entry in `MEASURES` appears under its plain name.
    """
    named = {f"validation/{name}": value for name, value in measures.items()}
    said = [measure(n).said(named[n]) for n in in_order(named) if measure(n).phrase]
    return f"{stage}, held out: {', '.join(said)}" if said else ""


def columns(texts: Mapping[str, str]) -> Table:
    """Texts beside each other under their names."""
    table = Table(*texts, box=box.SIMPLE_HEAD, show_edge=False, expand=True)
    for column in table.columns:
        column.ratio = 1
    table.add_row(*texts.values())
    return table


def difference(pair: Mapping[str, Any]) -> tuple[str, str]:
    """A paired difference in points with its interval, and its p-value."""
    low, high = pair["interval"]
    p = pair["p_value"]
    points = f"{100 * pair['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return points, "<0.001" if p < 0.001 else f"{p:.3f}"


def accuracy(summary: Mapping[str, Any]) -> str:
    low, high = summary["interval"]
    mark = " at chance" if summary["at_chance"] else ""
    return f"{100 * summary['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]{mark}"


def cost(means: Mapping[str, float]) -> str:
    """The mean time and tokens that a question takes."""
    text = f"{means['seconds_per_question']:.3g} s and {means['tokens_per_question']:.0f} tokens"
    shared = means["shared_tokens_per_question"]
    return f"{text} ({shared:.0f} of them run once for all)" if shared else text


def ledger(counts: Mapping[str, Any]) -> str:
    """A ledger of rows in one line."""
    text = f"{counts['rows']} rows, {counts['tokens']} tokens, {counts['supervised']} "
    if counts["ends_supervised"] is None:
        text += "that may be masked"
    else:
        text += f"supervised, {100 * counts['ends_supervised']:.0f} % of ends supervised"
    if counts["cut"]:
        text += f", {counts['cut']} cut"
    for reason, count in counts["dropped"].items():
        text += f", {count} dropped ({reason})"
    if counts["replay"] is not None:
        text += f", beside {counts['replay']['rows']} general texts"
    return text
