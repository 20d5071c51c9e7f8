"""Which alternative a written answer states."""

import re
import unicodedata
from collections.abc import Collection

# Pieces of the grammar below. Cues are read in either case, letters as they are written.
SEVERAL = "\0"  # stands in the cleaned text for a list of letters, which states none of them
NOUN = r"(?i:letra|alternativa|op[çc][ãa]o|item|assertiva|resposta|gabarito)"
RIGHT = r"(?i:corret[ao]|cert[ao]|adequad[ao]|apropriad[ao]|prov[áa]vel|melhor)"
LABEL = (
    rf"(?:{NOUN}|(?i:resp\.?|r(?=\s*:)|escolha|solu[çc][ãa]o|conclus[ãa]o)"
    rf"|(?:[aAoO]\s+(?:(?i:[úu]nic[ao]|mais)\s+)?|^){RIGHT})"
)
NEGATION = (
    r"(?i:n[ãa]o|nem|nunca|jamais|tampouco|menos|exceto|entre|incorret\w*|errad\w*|fals[ao]s?"
    r"|inadequad\w*|improv\w+|inv[áa]lid\w*|descart\w*|elimin\w*|exclu\w*)"
)
REASON = (
    r"(?i:pois|porque|por\s+(?:ser|que)|j[áa]\s+que|uma\s+vez|visto\s+que|dado\s+que|e\s+n[ãa]o)"
)
OPEN = r"[(\[{<\"'«“‘]{0,2}"
CLOSE = r"[)\]}>\"'»”’]"
END = rf"\s*(?:$|\n|,?\s*\b{REASON}\b)|[!;]|{CLOSE}\s*(?:$|[\n.!;,])"
# What may follow a bare letter. A point and a small letter follow a genus: 'E. coli'.
AFTER = rf"{END}|[,:](?=\s)|\.(?!\w|\s+[a-zà-ú])|\s+[-–—(]|{CLOSE}"
# In small letters a and e are words, so they count after a noun or alone after a colon.
FREE = rf"{OPEN}(?:([A-Eb-d])(?={AFTER})|([ae])(?={CLOSE})|({SEVERAL}))"
NAMED = rf"\b{NOUN}\s+(?:(?i:correta|certa|de\s+letra)\s+)?{OPEN}([A-Ea-e])"
WHICH = rf"(?:(?:[aoà]\s+)?{FREE}|(?:[aoàAO]\s+)?(?:de\s+)?{NAMED}(?={AFTER}|\.))"
IS = r"(?i:é|s[ãa]o|ser[áa]|seria|seja|(?:deve|s[óo]\s+pode)\s+ser|est[áa]\s+na?)"
POINT = r"[\"']?\s*(?::|=|→|⇒|➡|[=-]>|\s[-–—]\s)\s*(?:é\s+)?"
FILLER = rf"(?:\s+(?!(?:{NOUN}|{NEGATION})\b)[\w/-]+){{0,10}}?(?:\s*\([^()\n]{{0,40}}\))?"
ADVERB = r"(?:,\s*(?i:portanto|ent[ãa]o|assim|logo|n[eo]sse\s+caso|neste\s+caso|por\s+isso)\s*,)?"
CLAUSE = (
    r"(?:^|(?<=[.;:,!?\n])"
    r"|\b(?i:e|mas|que|pois|logo|portanto|ent[ãa]o|assim|sim|apenas|somente|s[óo])\b)\s*"
)
CHOICE = (
    r"\b(?i:(?:fico|ficaria|ficarei|escolh\w+|opt[oa]\w*|marc(?:o|aria|arei)|assinal(?:o|aria|arei)"
    r"|voto|vou|iria|aposto|respond(?:o|eria)|selecion(?:o|aria)|prefiro|diria|resta|sobra|chuto"
    r"|seja|trata-se)(?:\s+(?:com|por|pel[ao]|em|n[ao]|d[aeo]))?"
    r"|(?:acho|creio|acredito)\s+que)\s+"
)
CONCLUSION = (
    r"(?:\b(?i:portanto|logo|assim(?:\s+sendo)?|ent[ãa]o|sendo\s+assim|d?n?es[st]a\s+forma"
    r"|des[st]e\s+modo|por\s+is[st]o|consequentemente|em\s+resumo|enfim|ou\s+seja"
    r"|mas(?:\s+sim)?|e\s+sim)\s*[,:]?\s+|[=-]>\s*|[→⇒➡]\s*)"
)
SUBJECT = rf"(?:{NAMED}|{CLAUSE}(?:[aA]\s+)?{OPEN}([A-Eb-d])){CLOSE}?\s+"
A_OR_E = r"[AE](?=\s*(?:[.,;:!?)\]/\n]|$|(?:e|ou|nem|s[ãa]o|est[ãa]o|n[ãa]o|podem|foram|como)\b))"
MEMBER = (
    rf"(?:(?:[aA]\s+)?{NOUN}\s+{OPEN}[A-Ea-e]|{OPEN}(?<![\w-])(?:[B-Db-d]|{A_OR_E}))"
    rf"{CLOSE}?(?![\w+]|-\w)"
)
LIST = (
    rf"(?<![\w-]){MEMBER}"
    rf"(?:[ \t]*(?:,[ \t]*(?:e\b|ou\b)?|/|&|\+|\b(?:e|ou|nem)\b)[ \t]*(?:a[ \t]+)?{MEMBER})+"
    r"(?!\s+(?:est[áa]|é|seria|n[ãa]o\s+é)\b)"  # 'C, e a D está errada' lists nothing
)

# Each ends in the letter that it states, its only group that is filled.
STATEMENTS = [
    rf"(?<!\w){LABEL}{FILLER}(?:{POINT}(?:{WHICH}|([ae])(?=\s*\.?\s*(?:$|\n)))"
    rf"|\s*{ADVERB}\s*{IS}\s*:?\s*{WHICH})",
    rf"{CHOICE}{WHICH}",
    rf"{CLAUSE}(?i:é|(?:deve|s[óo]\s+pode)\s+ser)\s+{WHICH}",
    rf"{CONCLUSION}{WHICH}",
    rf"(?<!\b[nd]a ){NAMED}(?={END}|\.(?!\w))",
]
# What is said of a letter; the clause that follows may deny it.
THE_ONE = (
    rf"{SUBJECT}{IS}\s+(?:mesmo\s+)?a\s+(?:[úu]nica\s+)?"
    rf"(?:{NOUN}|{RIGHT}|(?i:mais|verdadeira|indicada))\b"
)
CALLED_RIGHT = rf"{SUBJECT}(?:est[áa]|é)\s+(?:{RIGHT}|(?i:verdadeir[ao]))\b"
LONE_LINE = rf"^[^\w\n{SEVERAL}]*([A-Ea-e{SEVERAL}])[^\w\n{SEVERAL}+/?°%=:,–—−-]*$"
OPENING = (
    rf"[^\w\n{SEVERAL}]*(?:(?:[aA]\s+)?{NAMED}{CLOSE}?(?:[.:,]\s|\s+[-–—]\s|\))"
    r"|([A-Ea-e])(?:[)\]]|\.\s+(?=[A-ZÀ-Ú\d]))"
    rf"|([A-E])(?::\s|\s+[-–—]\s|,\s+{REASON})|([B-D])\s+{REASON})\s*(.*)"
)
BOUNDARY = (
    r"[.!?;\n,]|\b(?i:mas|por[ée]m|contudo|e\s+sim"
    r"|e(?=\s+(?:[ao]|logo|portanto|assim|ent[ãa]o)\s))\b"
)
CERTAINTY = (
    r"(?i:n[ãa]o\s+(?:h[áa]|tenho|resta\w*)\s+d[úu]vidas?|por\s+(?:exclus|elimina[çc])[ãa]o"
    r"|(?:pelo|ao)\s+menos)"
)


def first_letter(text: str) -> str | None:
    """The chapter's rule: the first of A to E, in any word and of either case, upper-cased."""
    found = re.search("[A-Ea-e]", text)
    return found[0].upper() if found else None


def stated_letter(text: str, letters: Collection[str]) -> str | None:
    r"""The one of `letters` that an answer in Portuguese states, or None: no answer.

        answer     = the statement that stands last, or without one an opening
        statement  = label [words] (":" | "é") which     Resposta final: C; a correta é a (C)
                   | choice which                        fico com B; opto pela letra B
                   | clause "é" which                    ... não é B, é C
                   | conclusion which                    portanto, D
                   | noun letter end                     Letra "a"; alternativa c)
                   | subject "é a" (noun | right)        a letra D é a resposta
                   | subject "está" right                if it is said of one letter alone
                   | letter                              a whole line; the same on all such lines
                   | "\boxed{" letter "}"
        opening    = [noun] letter (")" | "." | ":" | " - " | ", pois") text
                                                         opens the first or the last line, and
                                                         nothing else opens or lists another letter
        which      = ["a"] [noun] letter, then the end of a clause or a reason
        label      = noun | "a" ["mais"] right | escolha | solução | conclusão | R
        noun       = letra | alternativa | opção | item | assertiva | resposta | gabarito
        right      = correta | certa | adequada | apropriada | provável | melhor

    Thinking blocks, markdown, tags and LaTeX are taken off first. A clause that denies ('não',
    'incorreta', 'descarto', 'entre') states nothing, and several letters together ('A e C', 'B ou
    D') are a statement of none. A letter is never part of a word; where it could be a word ('a',
    'e', an 'A' or 'E' before one) or end a name ('vitamina D', 'hepatite C', 'E. coli') it counts
    only in the forms above. A last statement of a letter that is not among `letters` is no answer.
    """
    text = _cleaned(text)
    stated = [found for form in STATEMENTS for found in _stated(form, text)]
    stated += _stated(THE_ONE, text, whole_clause=True)
    stated += _agreed(_stated(CALLED_RIGHT, text, whole_clause=True))
    lone = re.finditer(LONE_LINE, text, re.MULTILINE)
    stated += _agreed([(match.start(1), match[1].upper()) for match in lone])
    letter = max(stated)[1] if stated else _opening(text)
    return letter if letter in letters else None


def _cleaned(text: str) -> str:
    """Text without thinking, marks and LaTeX, with one sign in place of each list of letters."""
    text = unicodedata.normalize("NFKC", text).replace(SEVERAL, "")
    text = re.sub(r"<think>.*?(?:</think>|\Z)", "", text, flags=re.DOTALL).rpartition("</think>")[2]
    text = re.sub(r"~~.*?~~|</?[a-z]\w*\s*/?>|[*`$]|(?<!\w)_+|_+(?!\w)|\\[()\[\]]", "", text)
    text = re.sub(r"^[#>\s]+", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\(?:text|math)\w*\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\boxed\s*\{([^{}]*)\}", r"\nResposta: \1\n", text)
    return re.sub(LIST, SEVERAL, text).strip()


def _stated(form: str, text: str, whole_clause: bool = False) -> list[tuple[int, str]]:
    """Where a form states a letter that its clause, up to there or whole, does not deny."""
    found = []
    bounds = [match.span() for match in re.finditer(BOUNDARY, text)]
    for match in re.finditer(form, text):
        assert match.lastindex is not None
        begin = max((end for start, end in bounds if start <= match.start()), default=0)
        stop = match.end()
        if whole_clause:
            stop = min((start for start, _ in bounds if start >= stop), default=len(text))
        if not re.search(rf"\b{NEGATION}\b", re.sub(CERTAINTY, "", text[begin:stop])):
            found.append((match.start(match.lastindex), match[match.lastindex].upper()))
    return found


def _agreed(found: list[tuple[int, str]]) -> list[tuple[int, str]]:
    return found if len({letter for _, letter in found}) == 1 else []


def _opening(text: str) -> str | None:
    """The letter that opens the first or the last line, if no other one opens or lists anything."""
    lines = text.split("\n")
    found = [re.match(OPENING, line) for line in lines]
    named = {letter.upper() for match in found if match for letter in match.groups()[:-1] if letter}
    named |= set(re.findall(r"(?<![\w(])([A-E])\)", text))
    opening = found[0] or found[-1]
    announced = found[0] is None and lines[-2:-1] and lines[-2].rstrip().endswith(":")
    if len(named) != 1 or opening is None or announced:
        return None
    return None if re.match(r"(?i:incorret|errad|fals)", opening.groups()[-1]) else named.pop()
