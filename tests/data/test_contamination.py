"""Questions of the benchmark in training rows: planted ones are found, clean rows are not taken."""

import itertools
import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from drbode.config import BadInput
from drbode.data import bodinho, contamination
from drbode.data.contamination import Case, Check, Index, Match, texts, words
from drbode.data.rows import Question, parse_question
from drbode.data.sources import Columns, Record

# Written for this test, in the manner of an exam.
EXAM = [
    (
        "Uma agricultora de 47 anos chega à unidade de saúde com febre há cinco dias, dor nas "
        "panturrilhas e olhos avermelhados. Conta que limpou o quintal depois de uma enchente. "
        "Diante desse quadro, a conduta inicial mais adequada é",
        "iniciar doxiciclina e notificar o caso.|aguardar a sorologia sem tratar.|prescrever "
        "apenas hidratação oral.|internar para observar a função cardíaca.",
    ),
    (
        "Um motorista de 62 anos, fumante, queixa-se de tosse seca e cansaço aos esforços há três "
        "meses. A radiografia mostra opacidades nas bases e o exame físico, baqueteamento dos "
        "dedos. O exame que deve ser pedido a seguir é",
        "tomografia de tórax de alta resolução.|broncoscopia com biópsia.|cintilografia de "
        "perfusão.|ressonância do coração.",
    ),
    (
        "Menino de 4 anos, com vacinas em dia, apresenta há dois dias manchas roxas nas pernas, "
        "dor na barriga e inchaço nos tornozelos, uma semana depois de um resfriado. As plaquetas "
        "são normais. A principal hipótese diagnóstica é",
        "vasculite por IgA.|púrpura trombocitopênica imune.|leucemia linfoide aguda.|hemofilia A.",
    ),
    (
        "Gestante de 30 semanas, sem queixas, traz à consulta de pré-natal um teste de tolerância "
        "à glicose alterado. Ela nunca teve diabetes e a mãe usa insulina. Além da orientação "
        "alimentar, o acompanhamento deve incluir",
        "medida da glicemia capilar em casa.|interrupção da gestação.|restrição de todo "
        "carboidrato.|uso imediato de dois comprimidos de metformina.",
    ),
    (
        "Em uma comunidade ribeirinha, a equipe de saúde da família observa que muitos idosos "
        "deixaram de tomar o remédio da pressão porque a balsa que o traz passou a atrasar. Para "
        "melhorar a adesão dessa população, a equipe deve primeiro",
        "planejar com a comunidade um estoque local.|trocar todos os remédios por chás.|visitar "
        "apenas os casos graves.|encerrar o acompanhamento dos faltosos.",
    ),
]
KINDS = ("verbatim", "re-punctuated", "alternatives reordered", "one word changed")
COLUMNS = {
    "chat": Columns(("data",)),
    "answered": Columns(("data",)),
    "text": Columns(("text",)),
    "pair": Columns(("prompt", "chosen", "rejected")),
    "prompt": Columns(("prompt",), ("chosen", "rejected")),
}


def question(stem: str, alternatives: str, number: int = 1) -> Question:
    """The right alternative is the first one."""
    offered = dict(zip("ABCDE", alternatives.split("|"), strict=False))
    fields = {"enunciado": stem, "alternativas": offered, "resposta": "A", "numero": number}
    return parse_question(fields, f"exam.jsonl, line {number}")


def exam() -> list[Question]:
    return [question(*texts, number) for number, texts in enumerate(EXAM, 1)]


def laboratory(split: str = "test", conditions: bodinho.Conditions = "default") -> list[Question]:
    rows = bodinho.questions(split, conditions)
    return [parse_question(row, f"bodinho {n}") for n, row in enumerate(rows, 1)]


def repunctuated(text: str, chance: random.Random) -> str:
    marks = [" - ", "... ", " (", ") ", "\n\n", "; ", "  "]
    said = "".join(w.upper() + chance.choice(marks) for w in words(text))
    return said.replace("AGUDA", "Águda")


def planted(own: Question, kind: str, form: str, chance: random.Random) -> dict[str, Any]:
    """A row of a form in which a question stands."""
    stem, offered = own.stem, list(own.alternatives.values())
    right = own.alternatives[own.answer]
    if kind == "re-punctuated":
        stem, right = repunctuated(stem, chance), repunctuated(right, chance)
        offered = [repunctuated(text, chance) for text in offered]
    elif kind == "alternatives reordered":
        chance.shuffle(offered)
    elif kind == "one word changed":
        parts = stem.split()
        parts[chance.randrange(len(parts))] = "qualquer"
        stem = " ".join(parts)
    listed = "\n".join(f"{letter}) {text}" for letter, text in zip("ABCDE", offered, strict=False))
    match form:
        case "chat":
            turns = [f"{stem}\n{listed}\nResponda só com a letra.", "B"]
        case "answered":
            turns = [stem, f"A resposta é: {right}"]
        case "text":
            return {"text": f"Caderno de exercícios. Leia com calma. {stem} {listed} Boa prova!"}
        case "pair":
            return {"prompt": stem, "chosen": right, "rejected": "Não sei dizer."}
        case _:
            return {"prompt": stem, "chosen": None, "rejected": None}
    roles = ("user", "assistant")
    return {"data": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]}


# A short stem all by itself whose telling word has changed is another question, which is left out.
PLANTED = [
    (make, kind, form)
    for make, kind, form in itertools.product((laboratory, exam), KINDS, COLUMNS)
    if (make, kind, form) != (laboratory, "one word changed", "prompt")
]


@pytest.mark.parametrize(("make", "kind", "form"), PLANTED)
def test_of_twenty_planted_questions_nineteen_are_found(
    make: Callable[[], list[Question]], kind: str, form: str
) -> None:
    chance = random.Random(f"{kind} {form}")
    questions = make()
    chosen = (questions * 4)[:20] if len(questions) < 20 else chance.sample(questions, 20)
    index = Index(questions)
    found = 0
    for own in chosen:
        rows = index.find(texts(planted(own, kind, form, chance), COLUMNS[form]))
        found += own in [one.question for one in rows]
        assert all(one.question == own for one in rows)
    assert found >= 19


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("conditions", ["default", "all"])
def test_what_bodinho_trains_on_is_clean(split: str, conditions: bodinho.Conditions) -> None:
    """Its rows are on the conditions that its questions ask of, in other words."""
    index = Index(laboratory(split, conditions))
    rows = [
        *(texts(row, COLUMNS["chat"]) for row in bodinho.chats("train", "all")),
        *(texts(row, COLUMNS["pair"]) for row in bodinho.pairs("train", "all")),
        *(texts(row, COLUMNS["text"]) for row in bodinho.passages("train", "all")),
        *(texts(row, COLUMNS["text"]) for row in bodinho.general_passages()),
    ]
    assert len(rows) > 9000
    assert [found for row in rows for found in index.find(row)] == []


def test_what_bodinho_asks_in_the_words_of_its_questions_is_found() -> None:
    index = Index(laboratory())
    rows = [list(texts(row, COLUMNS["chat"])) for row in bodinho.chats("test")]
    found = [index.find(row) for row in rows]
    asked = {one.question.where for row in found for one in row}
    assert len(asked) == 180  # all whose conditions chat rows speak of
    # One that many share, on another condition with another answer, is another question.
    assert index.find(["Aponte a terapêutica de escolha no reumatismo.", "repouso."]) == []


def test_an_exam_like_text_is_clean() -> None:
    """The same kind of case, the same phrases, and the first half of a question."""
    index = Index(exam())
    stem, offered = EXAM[0]
    half = " ".join(stem.split()[: len(stem.split()) // 2])
    for text in (
        "Uma professora de 35 anos chega à unidade de saúde com febre há dois dias e dor nas "
        "costas. Diante desse quadro, a conduta inicial mais adequada é pedir o hemograma.",
        "Um motorista de 62 anos, fumante, queixa-se de dor no peito aos esforços há três horas. O "
        "exame que deve ser pedido a seguir é o eletrocardiograma.",
        f"{half} Ela mora sozinha.",
        offered.replace("|", " "),
    ):
        assert index.find([text]) == []
    others = [question(*texts, 9) for texts in EXAM[1:]]
    assert not any(
        Index(others).find([own, *alternatives.split("|")]) for own, alternatives in EXAM[:1]
    )


def test_short_stems_need_more_than_most_of_their_words() -> None:
    stems = [f"Qual é o tratamento de escolha {x}?" for x in ("do tétano", "da raiva", "da gota")]
    index = Index([question(s, f"remédio {n}|repouso|soro", n) for n, s in enumerate(stems, 1)])

    def rules(*row: str) -> list[tuple[str, str]]:
        return [(one.question.number, one.rule) for one in index.find(row)]

    assert rules("Qual é o tratamento de escolha da raiva?") == [("2", "verbatim")]
    assert rules("Hoje: qual é o tratamento de escolha da raiva? Pense.") == [("2", "verbatim")]
    assert rules("Qual é o tratamento de escolha da dengue?") == []
    assert rules("Qual é o tratamento de escolha da dengue?", "repouso") == []
    assert rules("Qual é o tratamento de eleição da raiva?") == [("2", "almost")]
    both = f"{stems[0]} {stems[2].replace('escolha', 'eleição')}"
    assert rules(both) == [("1", "verbatim")]  # of the other, not a turn by itself, too little
    assert rules(both, "remédio 1") == [("1", "verbatim")]
    assert rules("Febre?") == []
    assert rules("") == []
    assert Index([question("Febre?", "sim|não")]).find(["FEBRE"])[0].rule == "verbatim"
    assert Index([question("Febre?", "sim|não")]).find(["febre e tosse; sim ou não"]) == []


def test_a_long_stem_whose_numbers_lost_their_commas_is_found() -> None:
    stem = (
        "Criança de 4 anos chega ao pronto-atendimento com vômitos desde ontem e 38,9 °C de febre. "
        "A mãe conta que ela bebeu pouca água. Os exames de sangue mostram hemoglobina de 9,4 e "
        "potássio de 2,5. A conduta adequada nesse momento é"
    )
    index = Index([*exam(), question(stem, "internar.|observar.|dar alta.", 9)])
    (found,) = index.find(["Prova: " + re.sub(r"[^\w\s]", "", stem) + " o quê, então, doutores?"])
    assert (found.question.number, found.rule) == ("9", "almost")
    assert found.score < 94
    other = stem.replace("hemoglobina", "creatinina").replace("potássio", "fósforo")
    other = other.replace("vômitos", "convulsões").replace("febre", "axila")
    assert index.find([other]) == []  # which shares 91 % of its words as well


def test_of_questions_in_the_same_place_the_best_is_found() -> None:
    """A question in full is not the one that asks the same of another condition as well."""
    few = laboratory()[:12]  # on two conditions, so that the names tell nothing
    (found,) = Index(few).find([few[3].stem, few[3].alternatives[few[3].answer]])
    assert found.question == few[3]


def test_an_answer_far_away_is_not_beside() -> None:
    stem = "Qual é o agente que se procura em todos os casos suspeitos de coqueluche?"
    index = Index([question(stem, "Bordetella pertussis|vírus|fungo")])
    changed = stem.replace("todos", "muitos").replace("suspeitos", "novos")
    (found,) = index.find([f"{changed} É Bordetella pertussis."])
    assert (found.rule, found.beside, found.score) == ("beside its answer", "A", 85.7)
    assert found.shared == "qual e o agente que se procura em"
    assert index.find([changed + " então" * 301 + " Bordetella pertussis."]) == []


def test_alternatives_show_as_much_as_they_say() -> None:
    """All of long ones are the question's own; others need what tells the stem from its like."""
    long = "tudo o que se pode beber|tudo o que se pode comer|tudo o que se pode ver"
    stems = [f"Diga o que se recomenda em casos {x}" for x in ("de tétano", "de raiva", "de gota")]
    for offered, all_of in ((long, True), ("sim|não|talvez", False)):
        index = Index([question(s, f"{offered}|{n}", n) for n, s in enumerate(stems, 1)])
        listed, most = offered.split("|"), offered.split("|")[1:]
        alike = "Diga o que se recomenda em casos de dengue"
        assert bool(index.find([alike, *listed, "1"])) == all_of
        assert index.find([alike, *most, "1"]) == []
        changed = "Diga o que se aconselha em casos de raiva, doutor,"
        found = index.find([changed, *most, "2"])
        assert [one.question.number for one in found] == ["2"]


def test_words_are_without_case_accents_marks_and_white_space() -> None:
    assert words(" “Ação”,\n PRÉ-natal\u00a0(2,5 mg)… ") == ["acao", "pre", "natal", "2", "5", "mg"]
    assert words("Ac\u0327a\u0303o") == words("Ação")
    assert words("...") == []


def test_few_questions_are_compared_with_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    index, compared = Index(laboratory("test", "all")), []
    real = contamination._compare
    monkeypatch.setattr(contamination, "_compare", lambda *a: compared.append(a) or real(*a))
    rows = bodinho.chats("train", "all")
    for row in rows:
        index.find(texts(row, COLUMNS["chat"]))
    assert len(compared) < len(rows)  # of 640 questions to a row


def records() -> list[Record]:
    """Nine clean rows, and a question twice among them."""
    own = planted(exam()[2], "verbatim", "chat", random.Random(0))
    rows = [{"data": [{"role": "user", "content": f"febre {n}?"}]} for n in range(9)]
    rows.insert(4, own)
    rows.append(own)
    return [(f"rows.jsonl, line {n}", row) for n, row in enumerate(rows, 1)]


def test_rows_are_dropped_or_kept_as_told_and_the_evidence_stands() -> None:
    for action, rows, unclean in (("drop", 9, set()), ("keep", 11, {"exam.jsonl, line 3"})):
        check = Check(exam(), action)
        kept = check.sift(records(), COLUMNS["chat"], "sft", "train")
        check.refuse()
        assert len(kept) == rows
        assert check.unclean() == unclean
        assert [case.where for case in check.cases] == [f"rows.jsonl, line {n}" for n in (5, 11)]
        assert check.dropped("sft") == [c.where for c in check.cases if action == "drop"]
        assert check.dropped("dpo") == []
        counts = {"action": action, "rows": 2, "questions": 1, "stages": {"sft": 2}}
        assert check.as_dict() == counts | {"rules": {"verbatim": 2}}
    row = check.cases[0].as_row()
    assert (row["row"], row["question"]) == ("rows.jsonl, line 5", "exam.jsonl, line 3")
    assert (row["rule"], row["score"], row["alternatives_beside"]) == ("verbatim", 100.0, "ABCD")
    assert row["shared"] == " ".join(words(EXAM[2][0]))


def test_a_contaminated_run_stops_with_what_to_do() -> None:
    check = Check(exam(), "stop")
    assert len(check.sift(records(), COLUMNS["chat"], "sft", "train")) == 11
    with pytest.raises(BadInput) as raised:
        check.refuse()
    said = str(raised.value)
    assert said.startswith("sft.data.path: rows.jsonl, line 5: asks the benchmark's question exam.")
    for word in (
        "line 3, 'Menino de 4 anos",
        "100 %",
        "2 rows ask 1",
        "action=drop",
        "action=keep",
    ):
        assert word in said
    assert "\n" not in said
    Check(exam(), "stop").refuse()  # of clean rows


def test_a_row_too_odd_to_read_is_left_to_those_who_check_it() -> None:
    fields = {"data": [{"role": "user"}, "x", {"content": 3}, {"content": "febre"}], "text": None}
    assert list(texts(fields, Columns(("data",), ("text", "prompt")))) == ["febre"]
    found = Match(exam()[0], "almost", 95.0, "", "", 0, 1)
    assert Case("cpt", "train", "a, line 1", found).as_row()["stage"] == "cpt"
