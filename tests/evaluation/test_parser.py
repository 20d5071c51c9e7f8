"""Answers as models write them, by hand, and the letter that each states.

Those below say nothing of the alternatives' texts; those in answers.jsonl, of many forms, do.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from drbode.evaluation.parser import first_letter, stated_letter
from drbode.evaluation.wordings import Wordings, folded

NEUTRAL = {
    "A": "violeta primeiro",
    "B": "carmim segundo",
    "C": "turquesa terceiro",
    "D": "ocre quarto",
    "E": "magenta quinto",
}
FILE = Path(__file__).with_name("answers.jsonl")
ANSWERS = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]

STATED: dict[str | None, list[str]] = {
    "A": [
        "A",
        "a",
        "A\nA\nA",
        "a) repouso",
        "A) A paciente deve ser internada.",
        "Resposta: a",
        "Resposta: A, porque há instabilidade.",
        "A resposta é A.",
        "Letra a",
        'Letra "a"',
        "A é a correta.",
        "O quadro é de IAM, logo a letra A.",
        "As alternativas B, C e D estão erradas; logo, A",
        "A alternativa A: o quadro",
        "**Resposta correta: A) Insulina**",
        "A alternativa correta é **A**.",
        "A alternativa correta é A) Insulina",
        "Não é E. É A.",
        "Com base no quadro clínico, trata-se de apendicite aguda.\n\nResposta: alternativa A.",
        (
            "A) A paciente deve ser internada imediatamente, pois há risco.\n\nExplicação: o "
            "quadro sugere pré-eclâmpsia."
        ),
        "De acordo com o Ministério da Saúde, a resposta é a alternativa (A).",
        "A única alternativa que contempla o tratamento é a letra A",
    ],
    "B": [
        "B\n\nB",
        "B) Excluir tuberculose",
        "A) Incorreta.\nB) Correta.\nC) Incorreta.\n\nResposta: B",
        "A resposta correta é a letra (B).",
        "A resposta correta para a questão é a letra B.",
        "A resposta correta para este caso é B.",
        "A resposta está na alternativa B.",
        "A resposta correta é a **B**, pois trata a causa.",
        "A resposta é “B”.",
        "item B",
        "A correta é a B",
        "A mais adequada é B.",
        "Entre A e B, fico com B",
        "Entre A e B, fico com a B.",
        "Vou de B",
        "A alternativa A está incorreta. A alternativa B está correta.",
        "A alternativa A está errada e a B está correta.",
        "Resposta: B\n\nA) errada\nB) certa\nC) errada",
        "talvez a letra A...</think> Letra B",
        "A letra correta é B",
        "Trata-se da alternativa B.",
        "Opção B é a melhor.",
        "B é a correta, pois A e C são contraindicadas.",
        "Letra B é correta.",
        "A resposta é: não A, mas B.",
        (
            "A resposta correta é a letra B\n\nA letra A está incorreta porque a dose é "
            "baixa.\nA letra C está incorreta."
        ),
        (
            "A resposta correta é **B) Realizar cardioversão elétrica sincronizada**.\n\n"
            "**Justificativa:**\n- A alternativa A está incorreta, pois a amiodarona não é "
            "indicada.\n- A alternativa C está incorreta.\n- A alternativa D é uma opção "
            "apenas em casos estáveis."
        ),
        (
            "Com base no quadro clínico apresentado, a conduta mais adequada é a internação, "
            "conforme a alternativa B."
        ),
        "O paciente apresenta insuficiência cardíaca classe C. Portanto, letra B.",
        "A resposta é C. Se fosse gestante, a resposta seria B.",
        "Alternativa correta: B – Iniciar antibioticoterapia",
        "A resposta correta é a opção B: Iniciar antibioticoterapia",
        "Não tenho certeza, mas acho que a resposta é a B.",
        "B) Vitamina D",
        "a alternativa correta e a letra b",
        "alternativa b",
        "ALTERNATIVA B",
        "LETRA B",
        "Letra: B",
        "Opção: B",
        "B - correta",
        "A resposta é **(B)** porque",
        "Por eliminação, letra B.",
        "A resposta correta é a alternativa de letra B.",
        "Segundo a diretriz, a melhor resposta é B.",
        "A melhor alternativa é a B.",
    ],
    "C": [
        "C",
        "c",
        "C.",
        "(C)",
        "[C]",
        "C)",
        "c)",
        "**C**",
        "__C__",
        "`C`",
        "**C**.",
        "  C \n",
        "\n\nC\n\n",
        '"C"',
        "- C",
        "> C",
        "### C",
        "C!",
        "👉 C",
        "C ✅",
        "<answer>C</answer>",
        "<b>C</b>",
        "$C$",
        "\\(C\\)",
        "\\boxed{C}",
        "$\\boxed{C}$",
        "\\boxed{\\text{C}}",
        "\\boxed{(C)}",
        "A resposta é $\\boxed{\\textbf{C}}$.",
        "\\boxed{C) sulfato}",
        "C) sulfato de magnésio",
        "c) sulfato de magnésio",
        "(C) sulfato de magnésio",
        "**C) Sulfato de magnésio.**",
        "C. Sulfato de magnésio",
        "C - sulfato de magnésio",
        "C: sulfato de magnésio",
        "C – Sulfato",
        "Letra C: sulfato de magnésio",
        "Letra C, sulfato de magnésio.",
        "alternativa c) sulfato",
        "C, pois o sulfato previne convulsões.",
        "C porque previne convulsões",
        "O quadro é de eclâmpsia.\n\nC) Sulfato de magnésio.",
        "A) errada\nB) errada\nC) certa\n\nC",
        "Resposta: C",
        "resposta: c",
        "RESPOSTA: C",
        "Resposta C",
        "Resposta:\nC",
        "Resposta:\n\n**C**",
        "**Resposta:** C",
        "**Resposta: C**",
        "Resposta: **C)** Sulfato de magnésio",
        "Resposta final: C.",
        "Resposta correta: (C)",
        "Resposta: letra C",
        "Resposta: Letra C.",
        "Resposta = C",
        "Resposta - C",
        "Resposta → C",
        "R: C",
        "Resp.: C",
        "Gabarito: C",
        "Gabarito letra C",
        "GABARITO: LETRA C",
        '{"resposta": "C"}',
        "Resposta (letra): C",
        "Resposta: C) sulfato de magnésio",
        "Resposta: C - sulfato",
        "Resposta: C (sulfato)",
        "Resposta: C, sulfato de magnésio",
        "Resposta: C. Sulfato de magnésio",
        "Resposta: C pois é a droga de escolha",
        "Resposta: é a letra C",
        "Resposta: A letra C.",
        "Minha resposta é C.",
        "A resposta é C",
        "A resposta é: C",
        "A resposta é a C.",
        "a resposta é c",
        "A resposta correta, portanto, é a C.",
        "letra C",
        "Letra c",
        "alternativa c)",
        "Alternativa C",
        "alternativa (c)",
        "É a letra C!",
        "Acredito que seja a letra C.",
        "Acho que é a letra C",
        "Acho que é C.",
        "Sem dúvida, a letra C.",
        "Não há dúvida de que é a letra C.",
        "Por exclusão a letra C.",
        "Alternativa correta: C",
        "A alternativa correta é a letra C.",
        "A alternativa que melhor descreve o quadro é a C.",
        "O correto é C.",
        "A alternativa C é a correta.",
        "A letra C é a resposta.",
        "C é a alternativa correta.",
        "A alternativa C está correta.",
        "A letra 'C' é a mais adequada.",
        "Escolho C",
        "Eu marcaria C.",
        "Voto na C.",
        "Logo: C",
        "Assim, a alternativa correta é **C**.",
        "Trata-se de dengue -> C",
        "a resposta não é B, é C",
        "A resposta não é A nem B. É C.",
        "Não é B, mas C.",
        "A resposta correta não é a B e sim a C.",
        "Eliminando as alternativas A e B, resta a letra C.",
        "Descarto a letra B. Fico com a letra C.",
        "Resposta: B. Pensando melhor, resposta: C",
        "Letra B... aliás, letra C.",
        "B ou C, mas prefiro C",
        "A letra C é a correta e a B está errada.",
        "Resposta: C. A letra B está errada.",
        "Resposta: C, e não B.",
        "É C, não B.",
        "C\n\nJustificativa: o sulfato de magnésio previne convulsões.",
        "<think>Seria a letra A? Não.</think>\n\nC",
        "~~B~~ Resposta: C",
        "A alternativa correta é a de letra C.",
        "Resposta: <C>",
        "Resposta：C",
        "Gabarito oficial: C",
        "A resposta é a opção (c), insuficiência cardíaca.",
        "A opção correta é, portanto, a C.",
        "Somente a alternativa C está correta.",
        "Apenas a C está correta.",
        "A resposta não é simples e a correta é C.",
        "A resposta correta é a letra C, e não a letra B.",
        "Resposta da questão 5: C",
        "A resposta correta da questão 5 é C",
        "Acredito que a alternativa correta seja a letra C.",
        "resposta:C",
        "Letra:C",
        (
            "Para responder a esta questão, vamos analisar cada alternativa:\n\n**A)** "
            "Incorreta. A dose é baixa.\n\n**B)** Incorreta. Não há indicação.\n\n**C)** "
            "Correta. É a droga de escolha.\n\n**D)** Incorreta.\n\nPortanto, a alternativa "
            "correta é a **letra C**."
        ),
        "A resposta correta é:\n\n**C**",
        (
            "A letra A está errada porque o paciente é alérgico. A letra B está errada. Sobra "
            "a letra C."
        ),
        "A alternativa A e a alternativa B estão incorretas. A alternativa C é a resposta correta.",
        "Eu ficaria em dúvida entre B e C, mas marcaria C.",
        'A resposta correta é a letra "C".',
        'Resposta: "C"',
        "Resposta: 'c'",
        "C\n",
        "C) \n",
        "A causa é o vírus da hepatite C. Logo, C.",
        "Letra “C”, pois a hepatite C é crônica.",
        "A paciente é gestante\nE tem hipertensão\nResposta: C",
        "A única alternativa correta é a C.",
        "Ⓒ",
        "C\u200b",
        "Resposta: C</s>",
        "A resposta correta é a letra C (sulfato de magnésio).",
        "**Resposta:**\n\n**Alternativa C**",
        "### Resposta final\n\nC",
        "Resposta final\nC",
        "Resposta: **C** - Sulfato",
        "Resposta: *C*",
        "[[C]]",
        "((C))",
        "{{C}}",
        "Resposta: [[C]]",
        "#### C",
    ],
    "D": [
        "Alternativa D - cardioversão elétrica",
        "D) Não realizar cesariana",
        "Resposta: letra D. aplicação de cardioversão",
        "A resposta certa seria a alternativa D",
        "A resposta correta é a alternativa **D) aplicação de cardioversão elétrica**.",
        "opção d",
        "Opção D.",
        "opcao d",
        "Opção correta: d)",
        "A alternativa mais adequada é a D.",
        "Opto pela letra D.",
        "A paciente tem dor e febre; portanto, D",
        "A paciente tem pré-eclâmpsia grave. Portanto, D.",
        "Não é a letra A, mas sim a letra D.",
        "A resposta é B. Não, a resposta é D.",
        "<think>\n\n</think>\n\nResposta: D",
        "Analisando o caso, a hepatite B é viral. A resposta é a letra D.",
        "Considerando o exposto, a resposta correta seria: **Letra D**",
        "Eu escolheria a letra “d”.",
        "Acredito que D.",
        "A alternativa a ser escolhida é a D.",
        "A alternativa mais provável é a D.",
        "É D",
        "é d",
        (
            "O diagnóstico mais provável é hepatite B aguda. Assim, a alternativa correta "
            "é:\n\n**D) Solicitar HBsAg e anti-HBc IgM.**"
        ),
        (
            "Resposta correta: **D**\n\nExplicação: A vitamina D é essencial. A deficiência de "
            "vitamina A causa cegueira."
        ),
        "Letra D.\n\nA letra A estaria correta se a paciente fosse gestante.",
        "A alternativa D é a mais adequada porque previne convulsões.",
        "A alternativa D seria a mais indicada neste caso.",
        "resp: d",
        "Alternativa: (D)",
        "D) Child-Pugh C",
        "Dessa forma, a resposta correta é a letra D, cardioversão.",
        "Desse modo, letra D.",
        "Diante disso, a alternativa que deve ser assinalada é a D.",
        "Assinale a alternativa D.",
        "Resposta: É a letra D",
        "A resposta é D!",
    ],
    "E": [
        "E",
        "e",
        "e) nenhuma das anteriores",
        "resposta: e.",
        "A resposta é E",
        "letra e.",
        "Letra 'E'",
        "E é a resposta correta",
        "Eu marcaria a alternativa E.",
        "Ou seja, E.",
        "1. O paciente tem febre.\n2. Há sopro.\n\nResposta final: **E**",
        "Sendo assim, marco a alternativa E.",
        "A opção que melhor responde à questão é a letra E: embolia pulmonar.",
        'É a alternativa "E".',
        "E)",
        "E) Nenhuma",
        "Resposta: E) Embolia",
    ],
    None: [
        "A\nB\nC",
        "A) febre\nB) tosse\nC) dor",
        "A) febre; B) tosse; C) dor",
        "Vamos analisar as alternativas:\nA) Febre é comum na dengue",
        "A) Incorreta, pois",
        "<think>A resposta é C",
        "",
        " \n",
        "nenhuma",
        "Nenhuma das alternativas",
        "Resposta: nenhuma das anteriores",
        "Nenhuma das alternativas está correta.",
        "Eu acredito",
        "E o paciente",
        "A paciente",
        "A paciente tem eclâmpsia",
        "Vitamina D",
        "Portanto, vitamina D.",
        "Resposta: vitamina D",
        "hepatite C é causada",
        "A hepatite C é causada por um vírus.",
        "A resposta é hepatite C.",
        "A hepatite C é a correta causa",
        "Influenza A",
        "tipo B",
        "Grupo sanguíneo A+",
        "A+",
        "Resposta: A+",
        "O+",
        "AB",
        "E. coli",
        "Resposta: E. coli",
        "C. difficile é a causa mais comum.",
        "D-dímero",
        "Resposta: D-dímero",
        "B12",
        "Resposta: B12",
        "beta-bloqueador",
        "Resposta: B-lactâmicos",
        "Dengue",
        "Dado o quadro",
        "Caso clínico",
        "Cefaleia",
        "Não sei",
        "Resposta: não sei",
        "Resposta: A paciente deve ser internada",
        "Resposta: A conduta é expectante.",
        "A resposta é a",
        "A resposta é a prescrição de repouso",
        "A resposta correta é a seguinte",
        "Resposta:",
        "Logo, a conduta é expectante.",
        "Portanto, a paciente deve ser internada",
        "Alternativas A e C estão corretas",
        "As alternativas A e C estão corretas.",
        "Resposta: A e C",
        "Resposta: B ou D",
        "A, B, C, D",
        "A ou B",
        "B/C",
        "A resposta é a letra A ou a letra B.",
        "Resposta: A, C e D.",
        "Estou em dúvida entre a letra A e a letra B.",
        "Estou entre A e B.",
        "Todas",
        "A alternativa B está incorreta.",
        "A resposta não é C.",
        "Não é a letra C.",
        "Descarto a letra B.",
        "A letra C está errada.",
        "A menos provável é a letra D.",
        "A alternativa B descreve um quadro de asma.",
        "Na alternativa B, a dose está errada.",
        "Como descrito na letra B.",
        "Será a letra C?",
        "A alternativa A está correta. A alternativa C está correta.",
        "Resposta: F",
        "F",
        "42",
        "O agente da hepatite é C.",
        "Não tenho como responder.",
        "A alternativa A apresenta o tratamento de escolha da doença.",
        "Apesar disso, a dose é baixa",
        "Trata-se, portanto, da alternativa B.",
        "Eu acredito que A paciente tem",
        "A hepatite mais provável é a B.",
        "O tipo sanguíneo mais provável é A.",
        "A vitamina mais adequada é a D.",
        "A vitamina correta é a D.",
        "Child-Pugh: C",
        "Resposta: classe C",
        "A letra B não é a correta.",
        "A letra C é a menos invasiva.",
        "C é a resposta errada.",
        "A alternativa B é a resposta incorreta.",
        "Todas estão corretas, exceto a letra B.",
        "E é",
        "A e B",
        "Resposta: b, c",
        "Os itens A e B",
        (
            "Vamos analisar as alternativas:\n\n- **A)** Febre alta é comum na dengue, mas não "
            "é específica.\n- **B)** A prova do laço é útil"
        ),
        "A vitamina A é lipossolúvel. A vitamina C não é.",
        "Não é possível determinar a resposta com as informações dadas.",
        "Desculpe, não posso ajudar com isso.",
        "Como modelo de linguagem, não posso dar conselhos médicos. Consulte um médico.",
        "Opção A: incorreta. Opção B: correta. Opção C: incorreta.",
        "Tanto a letra A quanto a letra B estão corretas.",
        "Ans: B",
        (
            "A questão pede a alternativa incorreta. A alternativa C está incorreta, pois a "
            "dose é errada."
        ),
        "Vitamina B12",
        "Hepatite A",
        "Resposta: hepatite A",
        "Grupo B",
        "Streptococcus do grupo A.",
        "1. A paciente tem 30 anos.\n2. E tem febre.\n3. Logo é dengue.",
        "Marque C",
        "Responda só com a letra.",
        "A) B) C) D)",
        "A alternativa correta não é a A.",
        "As corretas são B e D.",
        "A resposta é nenhuma.",
        "E agora?",
        "A?",
        "🅰️",
    ],
}


@pytest.mark.parametrize(
    ("text", "letter"), [(text, letter) for letter, texts in STATED.items() for text in texts]
)
def test_an_answer_states_its_letter_or_none(text: str, letter: str | None) -> None:
    assert stated_letter(text, NEUTRAL) == letter


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer["written"][:60])
def test_an_answer_to_a_question_states_its_letter_or_none(answer: dict[str, Any]) -> None:
    assert stated_letter(answer["written"], answer["alternatives"]) == answer["states"]


def test_there_are_many_of_every_kind() -> None:
    assert sum(map(len, STATED.values())) > 300
    assert all(len(texts) > 10 for texts in STATED.values())
    assert len(ANSWERS) >= 200
    assert sum(answer["states"] is None for answer in ANSWERS) >= 50
    assert {answer["states"] for answer in ANSWERS} >= set("ABCDEFGHIJ")


@pytest.mark.parametrize("marks", ["**{}**", "> {}", "### {}", "<p>{}</p>", "{}\n\n"])
def test_marks_around_an_answer_change_nothing(marks: str) -> None:
    for answer in ANSWERS:
        if "\n" not in answer["written"] and not re.search(r"[<{*]", answer["written"]):
            written = marks.format(answer["written"])
            assert stated_letter(written, answer["alternatives"]) == answer["states"], written


def test_a_text_alone_states_whatever_letter_it_has() -> None:
    """Where no letter is written, the letters of the question may change places."""
    changed = 0
    letter = re.compile(r"(?<!\w)(?:[A-J]|[b-df-j]|[ae](?=[).:*“”\"]))(?!\w)")
    for answer in ANSWERS:
        texts = answer["alternatives"]
        if answer["states"] and not letter.search(answer["written"]):
            other = dict(zip(texts, [*list(texts.values())[1:], texts["A"]], strict=True))
            (moved,) = [k for k, text in other.items() if text == texts[answer["states"]]]
            assert stated_letter(answer["written"], other) == moved, answer["written"]
            changed += 1
    assert changed > 30


def test_a_letter_before_the_text_of_another_alternative_is_no_answer() -> None:
    texts = {"A": "Diazepam", "B": "Sulfato de magnésio", "C": "Fenitoína"}
    for form in (
        "{}) {}",
        "Resposta: {}. {}",
        "A alternativa correta é:\n\n{}. {}",
        "letra {}: {}",
    ):
        for letter in texts:
            for other, text in texts.items():
                stated = letter if letter == other else None
                assert stated_letter(form.format(letter, text), texts) == stated


def test_a_letter_that_was_not_offered_is_no_answer() -> None:
    four = {letter: NEUTRAL[letter] for letter in "ABCD"}
    assert stated_letter("Resposta: E", four) is None
    assert stated_letter("Resposta: D. Aliás, resposta: E", four) is None


def test_a_long_answer_is_read_quickly() -> None:
    """No form backtracks without end: these take milliseconds, or for ever."""
    for text in ("a resposta " * 2000, "A, " * 3000, "- " * 5000, "( " * 5000, "\n" * 5000):
        assert stated_letter(text, NEUTRAL) is None


CONTAINED = {"A": "Hepatite", "B": "Hepatite B aguda", "C": "Hepatite B crônica"}
OPPOSITE = {"A": "Iniciar antibiótico.", "B": "Não iniciar antibiótico.", "C": "Hipertireoidismo"}
LONG = {
    "A": "Iniciar amoxicilina por via oral, orientar hidratação e reavaliar em 48 horas.",
    "B": "Iniciar amoxicilina por via oral, orientar hidratação e reavaliar em 72 horas.",
}


@pytest.mark.parametrize(
    ("alternatives", "text", "letter"),
    [
        (CONTAINED, "hepatite", "A"),
        (CONTAINED, "hepatite, pois", "A"),
        (CONTAINED, "hepatite C", None),
        (CONTAINED, "hepatite B", None),
        (CONTAINED, "a hepatite B aguda", "B"),
        (CONTAINED, "um quadro de hepatite B crônica", "C"),
        (OPPOSITE, "iniciar o antibiótico", "A"),
        (OPPOSITE, "não iniciar antibiótico", "B"),
        (OPPOSITE, "iniciar antibióticos", "A"),
        (OPPOSITE, "hipertiroidismo", "C"),  # a letter is wanting
        (OPPOSITE, "hipotireoidismo", None),
        (LONG, "iniciar amoxicilina via oral, hidratação e reavaliar em 48 horas", "A"),
        (LONG, "a administração de amoxicilina", None),
        (LONG, "iniciar amoxicilina por via oral, orientar hidratação e reavaliar", None),
        ({"A": "coorte", "B": "transversal"}, "coorte ou transversal", None),
        ({"A": "coorte", "B": "transversal"}, "coorte. O transversal", "A"),
    ],
)
def test_a_place_words_one_alternative_or_none(
    alternatives: dict[str, str], text: str, letter: str | None
) -> None:
    worded = Wordings(text, folded(text), alternatives).at(0)
    assert (worded and worded.letter) == letter


def test_folding_moves_no_character() -> None:
    text = "É a Opção Ç, à 10 ºC; İ também"
    assert folded(text) == "é a opcao c, a 10 ºc; i tambem"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        ("c)", "C"),
        ("Resposta: B", "E"),
        ("Não sei", "E"),
        ("nmxyz 12", None),
        ("", None),
    ],
)
def test_the_chapter_takes_the_first_letter_out_of_any_word(text: str, letter: str | None) -> None:
    assert first_letter(text) == letter
