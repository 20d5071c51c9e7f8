"""Makes the shipped base model's tokenizer and config, and ships its weights (see README.md).

python experiments/bodinho_base/make.py tokenizer
python experiments/bodinho_base/make.py ship outputs/RUN/cpt
"""

import sys
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from drbode.data.bodinho import medical
from drbode.data.bodinho.pretraining import documents
from drbode.models.base import bodinho_folder

VOCABULARY = 3072
CONTEXT = 2048
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # as in Qwen3
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    # A word at the start of a line gets the space that it has inside one, so that its tokens are
    # the same in both places; decoding takes the space off again.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\n(?=\S)"), "\n ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace("\n ", "\n"), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [document["text"] for document in documents(20_000)]
    for special in SPECIAL:
        texts = [text.replace(special, "\n") for text in texts]
    # The names alone, not a word of what is true of them, often enough to become single tokens.
    names = sorted({fact.subject.name for fact in medical()[0]})
    tokenizer.train_from_iterator([*texts, *names * 100], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
        architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(folder)


def ship(trained: Path, folder: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.bfloat16)
    network.save_pretrained(folder, safe_serialization=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["tokenizer"]:
            make_tokenizer(bodinho_folder())
        case ["ship", run]:
            ship(Path(run), bodinho_folder())
        case _:
            sys.exit(__doc__)
