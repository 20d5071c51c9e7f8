"""Which alternative a written answer states."""

import re
from collections.abc import Iterable, Iterator, Mapping

from drbode.evaluation import grammar
from drbode.evaluation.grammar import SEVERAL
from drbode.evaluation.wordings import Wording, has_words
from drbode.evaluation.written import Place, Statement, Written


def first_letter(text: str) -> str | None:
    """The chapter's rule: the first of A to E, in any word and of either case, upper-cased."""
    letter = re.search("[A-Ea-e]", text)
    return letter[0].upper() if letter else None


def stated_letter(text: str, alternatives: Mapping[str, str]) -> str | None:
    r"""Which of the alternatives, whose texts stand under their letters, an answer states.

    None is no answer. The forms are read in this order, and the first that is there decides:

        said      = label [words] ("é" | ":") which   Resposta final: C; a conduta correta é a (c)
                  | choice which                      fico com B; opto pela letra b; I choose B
                  | clause "é" which                  ... não é B, é C
                  | conclusion which                  portanto, D
                  | subject "é a" (noun | right)      a letra D é a resposta; só a D contempla
                  | subject "está" right              if that is said of one letter alone
                  | label ... "(" letter ")"          o diagnóstico mais provável é dengue (B)
                  | letter                            a whole line; the same on all such lines
                  | noun letter                       a whole clause: Letra "a"; alternativa c)
                  | "\boxed{" letter "}"
                                                      of all these the one that stands last
        judged    = lines of letters                  one is called right, or all but one wrong
        opening   = [noun] letter (")" | "." | ":" | " - " | ", pois") text
                                                      opens the first or the last line, and
                                                      nothing else opens or lists another letter
        lettered  = letter text of its own            of one letter alone: ou seja, b) texto
        mentioned = noun letter                       ends a clause: conforme a letra B
        worded    = (label | choice | ...) text       a hipótese mais provável é texto
                  | text "é" (noun | right)
                  | text                              a whole line, or what the answer opens with
                  | verb text                         trata-se de texto; deve-se texto
        which     = ["a"] [noun] letter, then the end of a clause, a reason, or the letter's text
        label     = noun | matter | right | escolha | solução | conclusão | R
        noun      = letra | alternativa | opção | item | assertiva | resposta | gabarito
        matter    = diagnóstico | conduta | tratamento | exame | ...; a letter behind it has its own
                    text or none: 'a conduta é A - via aérea' states nothing
        right     = correta | certa | adequada | apropriada | provável | melhor

    The same forms are read in English. Thinking blocks, markdown, tags and LaTeX are taken off
    first, and so is what follows the model's own turn, or another question that it goes on to. A
    clause that denies ('não', 'incorreta', 'descarto', 'entre') or supposes ('se a
    paciente fosse') states nothing; several letters together ('A e C', 'B ou D') state none, and so
    does a tentative one ('talvez seja a B'). A letter is never part of a word. Where it could be a
    word ('a', 'e', 'o', a capital before a word) or part of a name ('vitamina D', 'E. coli') it
    counts only before its own text or in the forms above. A letter before the text of another
    alternative, or one that is not among `alternatives`, is no answer.

    `Wordings` says what a text's wording is: 'hepatite' is none of 'hepatite B aguda'.
    """
    written = Written(text, alternatives)
    for read in (_said, _judged, _opening, _lettered, _mentioned, _worded):
        if statement := read(written):
            return statement.letter if statement.letter in alternatives else None
    return None


def _last(statements: Iterable[Statement]) -> Statement | None:
    return max(statements, key=lambda statement: statement.start, default=None)


def _agreed(statements: list[Statement]) -> list[Statement]:
    return statements if len({statement.letter for statement in statements}) == 1 else []


def _said(written: Written) -> Statement | None:
    """The last of the statements that need no alternative's text to be one."""
    last = _last(
        [
            *_cued(written),
            *_praised(written),
            *_beside(written),
            *_alone(written),
            *written.beside_list(),
        ]
    )
    if last and last.letter:
        start = written.text_after(last.end)
        if start is not None and written.has_other_text(last.letter, start):
            return last._replace(letter=None)
    return last


def _cued(written: Written) -> Iterator[Statement]:
    """'A resposta correta é a B', 'fico com a B', 'portanto, B', '..., é B'."""
    for places in written.places:
        for place in places:
            which = grammar.WHICH.match(written.plain, place.at)
            if which and _is_letter(written, place, which) and not written.refused(place):
                letter = which["letter"].upper()
                none = place.kind == "tentative" or letter[0] == SEVERAL
                start, end = which.span("letter")
                yield Statement(start, end, None if none else letter, "cued")
                break


def _is_letter(written: Written, place: Place, which: re.Match[str]) -> bool:
    """Whether what follows a cue is a letter that it states: no word, no name, no list's first."""
    plain, letter, end = written.plain, which["letter"], which.end()
    if letter[0] == SEVERAL:
        return True
    after = bool(grammar.AFTER.match(plain, end))
    if which["noun"]:
        reads = after or plain[end : end + 1] == "."
    elif place.kind == "quality":  # 'a vitamina indicada é a D'
        reads = False
    elif letter in "aeo":
        lonely = place.link and place.link["point"] and grammar.LONELY.match(plain, end)
        reads = bool(grammar.CLOSED.match(plain, end) or lonely)
    else:
        genus = letter.isupper() and grammar.GENUS.match(written.text, end)
        spelt = place.kind == "matter" and grammar.SPELT.match(plain, end)
        reads = after and not genus and not spelt
    supported = written.has_own_text(letter.upper(), end)
    begin = written.text_after(end)
    verdict = grammar.VERDICT.match(plain, begin) if begin is not None and not supported else None
    wrong = verdict and verdict["wrong"]
    return bool((reads or supported) and not wrong and not _opens_list(written, place, which))


def _opens_list(written: Written, place: Place, which: re.Match[str]) -> bool:
    """Whether the letter opens a list of them all: 'Vejamos cada alternativa:', then a line 'A)'"""
    at = which.start("letter")
    if "\n" not in written.plain[place.end : at]:
        return False
    if grammar.JUDGING.search(written.plain, place.start, place.at):
        return False
    later = [m["letter"].upper() for m in written.items if m.start("letter") > at]
    return later[:1] == [chr(ord(which["letter"].upper()) + 1)]


def _praised(written: Written) -> list[Statement]:
    """'A letra D é a resposta', 'só a D contempla ...'; 'a D está correta' if no other one is."""
    plain = written.plain
    the_one: list[Statement] = []
    right: list[Statement] = []
    for at in written.singles:
        match = grammar.PRAISES.match(plain, at + 1)
        if not match or not _is_subject(plain, at):
            continue
        stop = written.clause_end(match.end())
        further = written.clause_end(stop + 1) if plain[stop : stop + 1] == "," else stop
        begin = written.sentence_start(at)
        if not (written.denied(at, stop) or grammar.CONDITION_AFTER.search(plain, begin, further)):
            statement = Statement(at, at + 1, plain[at].upper(), "praised")
            (the_one if match["one"] else right).append(statement)
    for match in grammar.ONLY.finditer(written.plain):
        if not written.denied(match.start(), written.clause_end(match.end())):
            start, end = match.span("letter")
            the_one.append(Statement(start, end, match["letter"].upper(), "praised"))
    return the_one + _agreed(right)


def _is_subject(plain: str, at: int) -> bool:
    """Whether the letter has its noun before it, or opens a clause and is no word."""
    begin = max(at - 40, 0)
    free = plain[at] not in "aeo" and grammar.FREE.fullmatch(plain, begin, at)
    return bool(free or grammar.NAMED.fullmatch(plain, begin, at))


def _beside(written: Written) -> Iterator[Statement]:
    """'O diagnóstico mais provável é apendicite aguda (B).'"""
    for match in grammar.BESIDE.finditer(written.plain):
        begin, end = written.sentence_start(match.start()), match.start()
        for cue in written.places:
            places = [place for place in cue if begin <= place.start < place.at < end]
            places = [place for place in places if place.kind in ("label", "matter")]
            if not places or any(written.refused(place) for place in places):
                continue
            letter = match["letter"].upper()
            other = any(written.has_other_text(letter, place.at) for place in places)
            yield Statement(*match.span("letter"), None if other else letter, "beside")
            break


def _alone(written: Written) -> list[Statement]:
    """A letter that is a whole line, or with its noun a whole clause."""
    lines = [
        Statement(*line.span(1), None if line[1][0] == SEVERAL else line[1].upper(), "line")
        for line in grammar.LONE_LINE.finditer(written.plain)
    ]
    clauses = []
    for mention in written.mentions:
        before = written.plain[written.clause_start(mention.start) : mention.start]
        if before.strip(" \t\"'-•").lower() in ("", "a", "o", "é a"):
            clauses.append(mention)
    return _agreed(lines) + clauses


def _judged(written: Written) -> Statement | None:
    """The one line of a list that is called right, or the one that is not called wrong."""
    verdicts: dict[str, bool | None] = {}
    ends = [item.start() for item in written.items[1:]]
    for item, end in zip(written.items, [*ends, len(written.plain)], strict=False):
        letter, start = item["letter"].upper(), item.end()
        worded = written.wordings.at(start)
        if worded and worded.letter == letter:
            start = worded.end
        if end == len(written.plain):  # what follows the last one's paragraph is said of them all
            paragraph = written.plain.find("\n\n", start)
            end = end if paragraph < 0 else paragraph
        verdict = grammar.VERDICT.search(item["marks"])
        verdict = verdict or grammar.VERDICT.search(written.plain, start, end)
        verdicts[letter] = bool(verdict["right"]) if verdict else None
    right = [letter for letter, verdict in verdicts.items() if verdict]
    left = right or [k for k in written.alternatives if verdicts.get(k) is not False]
    if len(left) == 1 and left[0] in verdicts:
        return Statement(0, 0, left[0], "judged")
    return None


def _opening(written: Written) -> Statement | None:
    """The letter that opens the first or the last line, if no other one opens or lists anything."""
    lines, begin = written.plain.split("\n"), 0
    openings: list[Statement | None] = []
    for line in lines:
        openings.append(_opens(written, line, begin))
        begin += len(line) + 1
    named = {opening.letter for opening in openings if opening}
    named |= set(grammar.HAS_BRACKET.findall(written.plain))
    opening = openings[0] or openings[-1]
    announced = not openings[0] and lines[-2:-1] and lines[-2].rstrip().endswith(":")
    if not opening or not opening.letter or len(named) > 1 or announced:
        return None
    start = written.text_after(opening.end) or opening.end
    verdict = grammar.VERDICT.match(written.plain, start)
    if verdict and verdict["wrong"] and not written.wordings.supports(opening.letter, start):
        return None
    other = written.has_other_text(opening.letter, start)
    return opening._replace(letter=None) if other else opening


def _opens(written: Written, line: str, begin: int) -> Statement | None:
    match = grammar.OPENING.match(line)
    if not match or not match.lastgroup:
        return None
    start, end = match.span(match.lastgroup)
    statement = Statement(begin + start, begin + end, line[start].upper(), "opening")
    if match.lastgroup == "closed" and grammar.GENUS.match(written.text, statement.end):
        return statement if written.has_own_text(line[start].upper(), statement.end) else None
    return statement


def _lettered(written: Written) -> Statement | None:
    """'..., ou seja, b) cardioversão elétrica', if only one letter stands so before its text."""
    statements = []
    for at in written.singles:
        apart = grammar.APART.match(written.plain, at + 1)
        if not apart and written.plain[at] in "AaEeIOo":
            continue
        text = written.text_after(at + 1) if apart else at + 1
        worded = written.wordings.at(text) if text is not None else None
        if not worded or worded.letter != written.plain[at].upper():
            continue
        if not apart and written.plain[at + 1 : worded.start].strip():
            continue
        after = written.plain[worded.end : written.clause_end(worded.end)]
        if not written.denied(at, at + 1) and not grammar.DENIAL.search(after):
            statements.append(Statement(at, at + 1, worded.letter, "lettered"))
    return _last(_agreed(statements))


def _mentioned(written: Written) -> Statement | None:
    """'..., conforme a alternativa B', if no other is mentioned so."""
    statements = []
    for mention in written.mentions:
        supposed = grammar.HYPOTHESIS.search(
            written.plain, written.sentence_start(mention.start), mention.start
        )
        if not supposed and not written.denied(mention.start, mention.end):
            statements.append(mention)
    return _last(_agreed(statements))


def _worded(written: Written) -> Statement | None:
    """The alternative whose text alone is said to be the answer, or is all there is to it."""
    if said := _last([*_cued_text(written), *_praised_text(written)]):
        return said
    return _last(_agreed(list(_text_lines(written)))) or _last(_agreed(list(_verbs(written))))


def _cued_text(written: Written) -> Iterator[Statement]:
    """'A hipótese mais provável é apendicite aguda', 'portanto, cardioversão elétrica'."""
    for places in written.places:
        for place in places:
            worded = written.wordings.at(place.at) if place.kind != "tentative" else None
            if worded and not written.refused(place) and not _doubted(written, place.start, worded):
                yield Statement(worded.start, worded.end, worded.letter, "cued text")
                break


def _praised_text(written: Written) -> Iterator[Statement]:
    """'A anemia ferropriva é a causa mais provável.'"""
    for match in grammar.PRAISED.finditer(written.plain):
        begin = written.clause_start(match.start())
        worded = written.wordings.at(begin)
        if not worded or worded.end > match.start() or _doubted(written, begin, worded):
            continue
        if not written.plain[worded.end : match.start()].strip():
            yield Statement(worded.start, worded.end, worded.letter, "praised text")


def _text_lines(written: Written) -> Iterator[Statement]:
    """A line that is an alternative's text, or the text that the answer opens with."""
    begin = 0
    for line in written.plain.split("\n"):
        worded = written.wordings.at(begin)
        if worded and worded.end <= begin + len(line):
            before = written.plain[begin : worded.start].split()
            ends = (grammar.WHOLE if begin else grammar.ENDS).match(written.plain, worded.end)
            if len(before) <= 2 and ends and not _doubted(written, begin, worded):
                yield Statement(worded.start, worded.end, worded.letter, "text line")
        begin += len(line) + 1


def _verbs(written: Written) -> Iterator[Statement]:
    """'Trata-se de apendicite aguda', 'deve-se iniciar amoxicilina'."""
    for match in grammar.WEAK.finditer(written.plain):
        worded = written.wordings.at(match.end())
        if not worded or not has_words(written.wordings.stems[worded.letter]):
            continue
        if not _doubted(written, match.start(), worded):
            yield Statement(worded.start, worded.end, worded.letter, "verb text")


def _doubted(written: Written, start: int, worded: Wording) -> bool:
    """Whether a text is denied before or behind it, is a question, or stands in a list."""
    plain = written.plain
    verdict = grammar.VERDICT.search(plain, worded.end, written.clause_end(worded.end))
    lettered = any(
        start <= at < worded.start and grammar.APART.match(plain, at + 1) for at in written.singles
    )
    return bool(
        plain[worded.end : worded.end + 1] == "?"
        or (verdict and verdict["wrong"])
        or written.denied(start, worded.start)
        or grammar.DOUBT.search(plain, start, worded.start)
        or written.in_list(worded.start)
        or lettered
    )
