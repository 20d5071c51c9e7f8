"""The tree attention: a token sees its own prompt and its own completion before it, nothing else.

One rule, two backends, registered with transformers under the names below, so no model's code is
touched. `sdpa` runs each prompt and completion through scaled_dot_product_attention on its own;
`flex` states the rule as a FlexAttention block mask, which is the fast way on CUDA.
"""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

Layout = tuple[tuple[int, ...], ...]  # of each tree: length of its prompt, of each completion

NAMES = {"sdpa": "drbode_tree_sdpa", "flex": "drbode_tree_flex"}


def _checked(layout: Layout | None, query: Tensor) -> Layout:
    if layout is None:
        raise ValueError("the tree attention was called without a layout of trees")
    tokens = sum(map(sum, layout))
    if query.shape[0] != 1 or query.shape[2] != tokens:
        raise ValueError(
            f"the trees hold {tokens} tokens in one row, the query has shape {tuple(query.shape)}"
        )
    return layout


def tree_attention_sdpa(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens dim"],
    key: Float[Tensor, "1 kv_heads tokens dim"],
    value: Float[Tensor, "1 kv_heads tokens dim"],
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 tokens heads dim"], None]:
    """Piece by piece: a prompt with its first completion, then each further one on the same keys.

    Raises ValueError without a layout.
    """
    layout = _checked(layout, query)
    lengths = [n for tree in layout for n in tree]
    queries, keys, values = (t.split(lengths, dim=2) for t in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    at = 0
    for prompt, *completions in layout:
        shared = slice(at, at + 2 if completions else at + 1)
        outputs.append(
            scaled_dot_product_attention(
                _joined(queries[shared]),
                _joined(keys[shared]),
                _joined(values[shared]),
                dropout_p=dropout,
                is_causal=True,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
        for branch in range(at + 2, at + 1 + len(completions)):
            outputs.append(
                scaled_dot_product_attention(
                    queries[branch],
                    _joined((keys[at], keys[branch])),
                    _joined((values[at], values[branch])),
                    attn_mask=_lower_right(prompt, queries[branch].shape[2], query.device),
                    dropout_p=dropout,
                    scale=scaling,
                    enable_gqa=grouped,
                )
            )
        at += 1 + len(completions)
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _joined(pieces: Any) -> Tensor:
    pieces = [p for p in pieces if p.shape[2]]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


@lru_cache(maxsize=4096)
def _lower_right(prompt: int, length: int, device: torch.device) -> Tensor:
    """True where a completion's token may look: all of the prompt, itself and what is before it."""
    return torch.ones(length, prompt + length, dtype=torch.bool, device=device).tril(prompt)


def tree_attention_flex(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens dim"],
    key: Float[Tensor, "1 kv_heads tokens dim"],
    value: Float[Tensor, "1 kv_heads tokens dim"],
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 tokens heads dim"], None]:
    """The same rule by FlexAttention. Raises ValueError without a layout or with dropout."""
    layout = _checked(layout, query)
    if dropout:
        raise ValueError("FlexAttention has no dropout; set model.attention=sdpa")
    mixed = _flex(query.device.type)(
        query,
        key,
        value,
        block_mask=_block_mask(layout, query.device),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.transpose(1, 2), None


@lru_cache(maxsize=2)
def _flex(device_type: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Compiled it is a fused kernel; uncompiled it writes out all scores, which is right for a test.
    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention


@lru_cache(maxsize=8)  # every layer of a batch asks for the same one
def _block_mask(layout: Layout, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    lengths = torch.tensor([n for tree in layout for n in tree])
    trees = torch.tensor([i for i, tree in enumerate(layout) for _ in tree])
    branches = torch.tensor([b for tree in layout for b in range(len(tree))])  # 0: the prompt
    tree = trees.repeat_interleave(lengths).to(device)
    branch = branches.repeat_interleave(lengths).to(device)

    tokens = len(tree)
    return create_block_mask(
        lambda _batch, _head, query, key: (
            (tree[query] == tree[key])
            & ((branch[key] == 0) | (branch[key] == branch[query]))
            & (key <= query)
        ),
        None,
        None,
        tokens,
        tokens,
        device=str(device),
    )


def _no_mask(*_: Any, **__: Any) -> None:
    """The tree functions know what may be seen; transformers is to build no mask for them."""


for _name, _function in (("sdpa", tree_attention_sdpa), ("flex", tree_attention_flex)):
    AttentionInterface.register(NAMES[_name], _function)
    AttentionMaskInterface.register(NAMES[_name], _no_mask)
