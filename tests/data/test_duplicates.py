"""Near-duplicates: hand-made texts of known Jaccard index, and a stream that keeps little."""

import random
from collections.abc import Iterator

import pytest

from drbode.data.duplicates import near_duplicates, plain

WORDS = [f"palavra{n}" for n in range(1000)]


def of(start: int, count: int) -> str:
    return " ".join(WORDS[start : start + count])


def test_of_plain_text_case_and_signs_are_gone_and_accents_stay() -> None:
    assert plain("  Qual É o\nagente, da 'malária'?") == "qual é o agente da malária"
    assert plain("e\u0301 a") == plain("\u00e9 a") != plain("e a")


def test_a_repeated_text_is_found_whatever_its_signs() -> None:
    texts = ["A dengue é viral.", "Outro texto, bem diferente.", "a DENGUE é viral!", ""]
    assert list(near_duplicates(texts)) == [None, None, 0, None]


def test_the_threshold_is_a_jaccard_index_of_runs_of_words() -> None:
    # 100 runs each; the second shares 90 of them with the first, 90 / 110 = 0.82.
    texts = [of(0, 102), of(10, 102)]
    assert list(near_duplicates(texts, threshold=0.7)) == [None, 0]
    assert list(near_duplicates(texts, threshold=0.95)) == [None, None]
    # 75 of 125: what the hashes find worth a look is not yet alike.
    assert list(near_duplicates([of(0, 102), of(25, 102)], threshold=0.7)) == [None, None]
    # The same words in another order share no run of three.
    shuffled = WORDS[:102]
    random.Random(0).shuffle(shuffled)
    assert list(near_duplicates([of(0, 102), " ".join(shuffled)])) == [None, None]
    assert list(near_duplicates([of(0, 102), " ".join(shuffled)], words=1)) == [None, 0]


def test_what_is_found_is_one_that_stays() -> None:
    # The third shares 90 / 110 = 0.82 with the second, which goes, and 0.67 with the first.
    texts = [of(0, 102), of(10, 102), of(20, 102), of(0, 102)]
    assert list(near_duplicates(texts, threshold=0.75)) == [None, 0, None, 0]


def test_planted_repetitions_are_found_and_nothing_else() -> None:
    draw = random.Random(0)
    texts: list[str] = []
    expected: list[int | None] = []
    for number in range(150):
        if number % 3:
            texts.append(" ".join(draw.choices(WORDS, k=60)))
            expected.append(None)
        else:
            texts += [" ".join(draw.choices(WORDS, k=200))]
            changed = texts[-1].split()
            changed[100] = "outra"
            expected += [None, len(texts) - 1]
            texts.append(" ".join(changed))
    assert list(near_duplicates(texts)) == expected


def test_it_streams() -> None:
    drawn = []

    def texts() -> Iterator[str]:
        for number in range(3):
            drawn.append(number)
            yield f"texto número {number}"

    found = near_duplicates(texts())
    assert next(found) is None
    assert drawn == [0]


@pytest.mark.parametrize("threshold", [0.0, 1.5])
def test_a_threshold_that_is_no_index_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        list(near_duplicates(["a"], threshold))
