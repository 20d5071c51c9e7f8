"""Text from outside (data sets, paths, models, overrides), made safe for what shows it."""

import re

# Control characters but tab and newline, marks that reverse the direction of writing, and halves of
# characters that no file can be written with.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_TAG = re.compile(r"<(?=[a-zA-Z/!?])")


def visible(text: str) -> str:
    r"""Control characters written out: the one that starts a terminal's colour becomes `\x1b`."""
    return _UNSAFE.sub(lambda match: repr(match[0])[1:-1], text)


def for_plot(text: str) -> str:
    """For matplotlib, which reads what stands between two dollar signs as a formula."""
    return visible(text).replace("$", r"\$")


def for_markdown(text: str) -> str:
    """For a cell or an item of a list: one line, without columns or tags of its own."""
    return _TAG.sub("&lt;", one_line(text)).replace("|", r"\|")


def for_latex(text: str) -> str:
    """With the characters escaped that LaTeX gives a meaning."""
    marks = {"\\": r"\textbackslash{}", "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S{}"}
    marks |= {"¶": r"\P{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$"}
    line = one_line(text)
    return "".join(marks.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in line)


def one_line(text: str) -> str:
    """On one line, so that a comment or a row does not end before its text does."""
    return " ".join(visible(text).splitlines())
