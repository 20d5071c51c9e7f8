"""Texts that nearly repeat an earlier one, found without comparing each with all."""

import re
import unicodedata
from collections.abc import Iterable, Iterator

from datasketch import MinHash, MinHashLSH

PERMUTATIONS = 128  # of a signature, which then estimates a Jaccard index to about 0.04
SEED = 1  # of the permutations


def near_duplicates(
    texts: Iterable[str], threshold: float = 0.8, words: int = 3
) -> Iterator[int | None]:
    """For each text in turn the index of an earlier one that it nearly repeats, or None.

    Alike are two texts whose runs of `words` words, as `plain` has them, have a Jaccard index of
    `threshold` or more, as MinHash estimates it (Broder 1997); locality-sensitive hashing says
    which are worth the estimate, and misses one or two in a hundred at the threshold itself. A text
    is held against those alone that repeat none themselves, so what is found for it is always one
    that stays. Streams: of a text that stays its signature is kept, about a kilobyte, and of the
    others nothing. A text without words repeats nothing.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"a Jaccard index to find is above 0 and at most 1, got {threshold}")
    # Weighted to miss little: what it finds too much falls to the estimate below.
    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.1, 0.9))
    kept: dict[int, MinHash] = {}
    empty = MinHash(num_perm=PERMUTATIONS, seed=SEED)
    for number, text in enumerate(texts):
        runs = _runs(plain(text).split(), words)
        if not runs:
            yield None
            continue
        signature = empty.copy()
        signature.update_batch(runs)
        alike = (i for i in index.query(signature) if kept[i].jaccard(signature) >= threshold)
        earlier = min(alike, default=None)
        if earlier is None:
            kept[number] = signature
            index.insert(number, signature)
        yield earlier


def plain(text: str) -> str:
    """The words of a text in lower case, a space between two: exact duplicates become equal.

    Without punctuation, and without regard to how accents are encoded; the accents stay, for in
    Portuguese they tell words apart.
    """
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _runs(words: list[str], length: int) -> list[bytes]:
    """Runs of `length` words, each once; of fewer words the one run there is."""
    if not words:
        return []
    starts = range(max(1, len(words) - length + 1))
    return list(dict.fromkeys(" ".join(words[i : i + length]).encode() for i in starts))
