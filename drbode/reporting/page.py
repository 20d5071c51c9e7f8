"""The ablation table as one HTML page: sortable, with its figures, and nothing from a network."""

import html
import io

from matplotlib.figure import Figure

from drbode.reporting.escape import visible
from drbode.reporting.table import AblationTable, Cell

CAPTIONS = {
    "intervals": "Runs, and their means with intervals. Blue: the best group.",
    "pareto": "Against what it costs. The line joins what no variant dominates.",
    "over": "Over the number that is swept.",
    "curves": "Validation loss, mean over seeds.",
}

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
tbody tr:hover { background: var(--soft); }
figure { margin: 2rem 0; background: #fff; color: #222; padding: 1rem; border-radius: .4rem; }
figure svg { max-width: 100%; height: auto; }
"""

# A click sorts by the number behind a cell, its text where there is none; empty ones stay last.
SCRIPT = """
document.querySelectorAll('th button').forEach((button, column) => {
  button.addEventListener('click', () => {
    const head = button.parentElement, body = head.closest('table').tBodies[0];
    const up = head.getAttribute('aria-sort') !== 'ascending';
    head.parentElement.querySelectorAll('th').forEach(th => th.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const key = row => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === '' || y === '') return (x === '') - (y === '');
      const order = typeof x === 'number' && typeof y === 'number'
        ? x - y : String(x).localeCompare(String(y));
      return up ? order : -order;
    }).forEach(row => body.append(row));
  });
});
"""


def to_html(table: AblationTable, drawn: dict[str, Figure], title: str) -> str:
    """The page, with all that it needs inside it."""
    heads, rows = table.grid()
    head = "".join(
        f'<th scope="col"><button type="button">{_text(text)}</button></th>' for text in heads
    )
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    notes = "\n".join(f"<li>{_text(note)}</li>" for note in table.notes)
    pictures = "\n".join(
        f"<figure>{_svg(figure)}<figcaption>{CAPTIONS[name]}</figcaption></figure>"
        for name, figure in drawn.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<title>{_text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{_text(title)}</h1>
<div class="wide"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
<ul>
{notes}
</ul>
{pictures}
<script>{SCRIPT}</script>
</body>
</html>
"""


def _text(text: str) -> str:
    return html.escape(visible(text))


def _cell(cell: Cell) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    return f"<td{value}>{_text(cell.text)}</td>"


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    drawn = out.getvalue()
    return drawn[drawn.index("<svg") :]
