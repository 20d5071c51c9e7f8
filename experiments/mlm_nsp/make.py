"""Makes the tokenizer and the config of bertinho, the shipped encoder.

python experiments/mlm_nsp/make.py
"""

import string
from collections import Counter

from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertConfig, BertTokenizerFast

from drbode.config import BERTINHO
from drbode.data.bodinho import TEXTS
from drbode.models.base import shipped_folder

CONTEXT = 256
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = string.printable.strip() + "áéíóúâêôãõàçüñÁÉÍÓÚÂÊÔÃÕÀÇÜÑªº°–—“”‘’µ²³"
SPLITS = ("train", "general")  # texts that are trained on, none of those held out


def vocabulary() -> dict[str, int]:
    """Every word that stands in the texts twice or more, most frequent first, and all letters.

    A rarer word is spelled. WordPiece's own trainer gives other pieces every time it runs.
    """
    split = BertPreTokenizer().pre_tokenize_str
    texts = [row["text"] for name in SPLITS for row in TEXTS[name]("all")]
    counts = Counter(word for text in texts for word, _ in split(text))
    often = sorted((w for w, n in counts.items() if n > 1), key=lambda w: (-counts[w], w))
    letters = sorted({*LETTERS, *(letter for word in counts for letter in word)})
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *often]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


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
