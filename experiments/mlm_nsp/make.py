"""Makes the tokenizer and the config of bertinho, the shipped encoder.

python experiments/mlm_nsp/make.py
"""

import string
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertConfig, BertTokenizerFast

from drbode.config import BERTINHO
from drbode.data.bodinho import TEXTS
from drbode.models.base import shipped_folder

CONTEXT = 256
MERGES = 600
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = string.printable.strip() + "áéíóúâêôãõàçüñÁÉÍÓÚÂÊÔÃÕÀÇÜÑªº°–—“”‘’µ²³"
SPLITS = ("train", "general")  # texts that are trained on, none of those held out


def vocabulary() -> dict[str, int]:
    """All letters, and the pieces that byte pair encoding makes of the texts, most frequent first.

    Few pieces, so that a word which no training text has falls into pieces that have been trained.
    """
    split = BertPreTokenizer().pre_tokenize_str
    texts = [row["text"] for name in SPLITS for row in TEXTS[name]("all")]
    counts = Counter(word for text in texts for word, _ in split(text))
    letters = sorted({*LETTERS, *(letter for word in counts for letter in word)})
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *merges(counts)]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def merges(counts: Counter[str]) -> Iterator[str]:
    """The pieces of byte pair encoding (Sennrich et al. 2016), in WordPiece's writing.

    The trainers of `tokenizers` break ties in another order every time they run.
    """
    words = {word: [word[0], *(f"##{letter}" for letter in word[1:])] for word in counts}
    for _ in range(MERGES):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in words.items():
            for pair in pairwise(pieces):
                pairs[pair] += counts[word]
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        merged = left + right.removeprefix("##")
        for pieces in words.values():
            for at in range(len(pieces) - 1, 0, -1):
                if pieces[at - 1 : at + 1] == [left, right]:
                    pieces[at - 1 : at + 1] = [merged]
        yield merged


def main() -> None:
    folder = shipped_folder(BERTINHO)
    folder.mkdir(exist_ok=True)
    tokenizer = BertTokenizerFast(
        vocab=vocabulary(), do_lower_case=False, strip_accents=False, model_max_length=CONTEXT
    )
    tokenizer.save_pretrained(folder)
    BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=CONTEXT,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["BertForPreTraining"],
    ).save_pretrained(folder)


if __name__ == "__main__":
    main()
