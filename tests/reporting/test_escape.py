"""Text from outside is shown as it is: by the terminal, in plots, in every format of the table."""

import csv
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from drbode.reporting import plots, terminal
from drbode.reporting.escape import for_latex, for_markdown, for_plot, visible
from drbode.reporting.figures import figures
from drbode.reporting.page import to_html
from drbode.reporting.runs import RunRecord
from drbode.reporting.table import build_table

HOSTILE = "[/b] \x1b[31m[red] $\\frac{$ :smile: <b>&| \u202e"
SHOWN = "[/b] \\x1b[31m[red] $\\frac{$ :smile: <b>&| \\u202e"


def run(name: str, seed: int, accuracy: float, error: str | None = None) -> RunRecord:
    return RunRecord(
        folder=Path("absent"),
        overrides=(name,),
        seed=seed,
        status="failed" if error else "finished",
        error=error,
        config=None,
        measures={} if error else {"accuracy": accuracy, "seconds": 1.0 + seed, HOSTILE: 0.5},
        questions=10,
    )


RUNS = [
    *(run(f"x={HOSTILE}", seed, 0.5 + seed / 100) for seed in range(2)),
    *(run("x=1", seed, 0.4 + seed / 100) for seed in range(2)),
    run("x=1", 2, 0.0, error=f"ValueError: {HOSTILE}\nand \\input{{more}}"),
]


def test_control_characters_are_written_out_and_all_else_stays() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("é\tß\n漢") == "é\tß\n漢"
    assert visible("\r\x7f\x9b\udc80") == "\\r\\x7f\\x9b\\udc80"


def test_the_terminal_reads_no_markup_in_text_from_outside(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.console, "width", 200)
    terminal.show_plan({"writes": f"/runs/{HOSTILE}"})
    terminal.show_funnel([{"filter": HOSTILE, "before": 2, "dropped": 1, "left": 1}])
    case = dict.fromkeys(("stage", "row", "question", "rule", "shared"), HOSTILE)
    terminal.show_contamination([case | {"score": 90}])
    terminal.console.print(terminal.columns({HOSTILE: HOSTILE}))
    terminal.console.print(f"sft: {HOSTILE}")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert printed.count("[/b] \\x1b[31m[red]") >= 8
    assert f"/runs/{SHOWN}" in printed


def test_parts_of_a_benchmark_keep_their_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    from drbode.record import Measured

    part = {
        "accuracy": 0.5,
        "questions": 4,
        "interval": [0.1, 0.9],
        "at_chance": False,
        "stop_rate": None,
        "chance": None,
        "ece": 0.1,
        "examples_dropped": {},
        "prompts_cut": 0,
    }
    cost = dict.fromkeys(
        ("seconds_per_question", "tokens_per_question", "shared_tokens_per_question"), 1.0
    )
    summary = part | {"parts": {"[/b] ENARE": part}}
    terminal.show_benchmark({"[base]": Measured(summary=summary, cost=cost, forgetting={})})
    printed = capsys.readouterr().out
    assert "[/b] ENARE" in printed
    assert "[95 % interval]" in printed
    assert "[base] 0.10" in printed


def test_the_table_and_its_figures_show_a_variant_of_any_name(tmp_path: Path) -> None:
    table = build_table(RUNS, baseline="x=1")
    drawn = figures(table)
    assert {"intervals", "pareto"} <= set(drawn)
    for figure in drawn.values():
        figure.savefig(tmp_path / "figure.png")
    page = to_html(table, drawn, HOSTILE)
    assert "\x1b" not in page
    assert "<b>" not in page
    assert "[/b] \\x1b[31m[red] $\\frac{$ :smile: &lt;b&gt;&amp;|" in page
    markdown, latex = table.to_markdown(), table.to_latex()
    for text in (markdown, latex):
        assert "\x1b" not in text
    assert "<b>" not in markdown
    for piece in markdown.split("\n\n")[:-1]:
        assert len({line.replace("\\|", "").count("|") for line in piece.splitlines()}) == 1
    assert not any(line.startswith("and \\input") for line in latex.splitlines())
    assert r"\$\textbackslash{}frac\{\$" in latex
    (note,) = (n for n in table.notes if "ValueError" in n)
    assert f"% {' '.join(visible(note).splitlines())}" in latex


def test_plots_of_a_run_draw_names_with_dollar_signs(tmp_path: Path) -> None:
    plots.funnel([{"filter": HOSTILE, "before": 2, "left": 1}], tmp_path / "funnel.png")
    metrics = tmp_path / "metrics.csv"
    with metrics.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["stage", "split", "name", "step", "value"])
        writer.writerow(["sft", HOSTILE, "loss", 1, 0.5])
    plots.learning_curves(metrics, tmp_path / "curves.png")
    figure = Figure()
    shown = figure.text(0, 0, for_plot("a $\\alpha$ b"))
    assert shown._preprocess_math(shown.get_text()) == ("a $\\alpha$ b", False)  # type: ignore[attr-defined]


def test_each_format_escapes_what_it_gives_a_meaning() -> None:
    assert for_markdown("a|b <script> p <0.001\nc") == "a\\|b &lt;script> p <0.001 c"
    assert for_latex("50 % of a_b\n\\x") == r"50 \% of a\_b \textbackslash{}x"
