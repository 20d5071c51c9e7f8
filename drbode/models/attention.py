"""The tree attention: a token sees its own prompt and its own completion before it, nothing else.

Trees may go on from a common prefix, which every token sees: keys that come before those of the
trees' own tokens, as a model's cache brings them.

In an encoder, whose attention says that it is not causal, a token sees what stands after it too, of
the same prompt and completion; a prompt sees no completion in either, for it may have several.

One rule, two backends, registered with transformers under the names below, so no model's code is
touched. `sdpa` runs each prompt and completion through scaled_dot_product_attention on its own,
`flex` is told the rule and skips what it hides.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from drbode.trees import Layout

# What transformers hands to every attention function, and these need not read. Anything else that
# is not None (a window, a soft cap, a sink) changes what the model computes, and is refused.
HARMLESS = {
    "position_ids",  # already in the queries and keys, or in the embeddings that they come from
    "use_cache",  # keys are kept, or not, before the attention function is called
}

NAMES = {"sdpa": "drbode_tree_sdpa", "flex": "drbode_tree_flex"}


class Prefix(DynamicCache):  # type: ignore[misc]
    """Keys and values of tokens that all trees of a batch go on from; unlike a cache, never grows.

    They hold for the weights that they were computed with.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of the prefix, and after them those of the trees' tokens."""
        own = self.layers[layer_idx]
        keys = torch.cat([own.keys, key_states], dim=2)
        return keys, torch.cat([own.values, value_states], dim=2)

    def repeated(self, rows: int) -> DynamicCache:
        """The same as a cache that grows, for a batch of so many rows."""
        return DynamicCache(
            [[t.expand(rows, -1, -1, -1) for t in (own.keys, own.values)] for own in self.layers]
        )


def _refuse_unknown(others: Mapping[str, Any]) -> None:
    unknown = [n for n, value in others.items() if value is not None and n not in HARMLESS]
    if unknown:
        raise ValueError(
            f"the tree attention does not know {', '.join(unknown)}, which the model hands to its "
            "attention: without it the model would compute something else"
        )


def _checked(layout: Layout | None, query: Tensor) -> Layout:
    if layout is None:
        raise ValueError("the tree attention was called without a layout of trees")
    tokens = sum(map(sum, layout))
    if query.shape[0] != 1 or query.shape[2] != tokens:
        raise ValueError(
            f"the trees hold {tokens} tokens in one row, the query has shape {tuple(query.shape)}"
        )
    return layout


def _causal(module: nn.Module) -> bool:
    """Whether a token sees nothing after it, as transformers' attention modules say of themselves.

    Raises AttributeError for one that does not say.
    """
    return bool(module.is_causal)


def tree_attention_sdpa(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens dim"],
    key: Float[Tensor, "1 kv_heads seen dim"],
    value: Float[Tensor, "1 kv_heads seen dim"],
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "1 tokens heads dim"], None]:
    """Piece by piece: a prompt with its first completion, then each further one on the same keys.

    After a prefix, whose keys each piece would copy, it is tree by tree under the rule as a mask.
    Where it is not causal the prompt goes alone, then every completion on its keys. Raises
    ValueError without a layout, or with an argument that it does not know.
    """
    _refuse_unknown(others)
    layout = _checked(layout, query)
    causal = _causal(module)
    if key.shape[2] > query.shape[2]:
        return _after_prefix(query, key, value, scaling, dropout, layout, causal), None
    lengths = [n for tree in layout for n in tree]
    queries, keys, values = (t.split(lengths, dim=2) for t in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    at = 0
    for prompt, *completions in layout:
        shared = slice(at, at + 2 if completions and causal else at + 1)
        if causal or prompt:
            outputs.append(
                scaled_dot_product_attention(
                    _joined(queries[shared]),
                    _joined(keys[shared]),
                    _joined(values[shared]),
                    dropout_p=dropout,
                    is_causal=causal,
                    scale=scaling,
                    enable_gqa=grouped,
                )
            )
        for branch in range(shared.stop, at + 1 + len(completions)):
            outputs.append(
                scaled_dot_product_attention(
                    queries[branch],
                    _joined((keys[at], keys[branch])),
                    _joined((values[at], values[branch])),
                    attn_mask=_lower_right(prompt, queries[branch].shape[2], query.device)
                    if causal
                    else None,
                    dropout_p=dropout,
                    scale=scaling,
                    enable_gqa=grouped,
                )
            )
        at += 1 + len(completions)
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _after_prefix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    dropout: float,
    layout: Layout,
    causal: bool,
) -> Float[Tensor, "1 tokens heads dim"]:
    prefix = key.shape[2] - query.shape[2]
    lengths = [sum(tree) for tree in layout]
    keys, values = (t.split([prefix, *lengths], dim=2) for t in (key, value))
    outputs = [
        scaled_dot_product_attention(
            own,
            torch.cat((keys[0], keys[number]), dim=2),
            torch.cat((values[0], values[number]), dim=2),
            attn_mask=pad(_within_tree(tree, query.device, causal), (prefix, 0), value=True),
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for number, (tree, own) in enumerate(zip(layout, query.split(lengths, 2), strict=True), 1)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2)


@lru_cache(maxsize=512)
def _within_tree(tree: tuple[int, ...], device: torch.device, causal: bool) -> Tensor:
    """True where a token of a tree may look at another of the same tree."""
    branch = torch.arange(len(tree)).repeat_interleave(torch.tensor(tree)).to(device)  # 0: prompt
    seen = (branch == 0) | (branch == branch[:, None])
    return seen.tril() if causal else seen


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
    key: Float[Tensor, "1 kv_heads seen dim"],
    value: Float[Tensor, "1 kv_heads seen dim"],
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "1 tokens heads dim"], None]:
    """The same rule by FlexAttention.

    Raises ValueError without a layout, with dropout, or with an argument that it does not know.
    """
    _refuse_unknown(others)
    layout = _checked(layout, query)
    if dropout:
        raise ValueError("FlexAttention has no dropout; set model.attention=sdpa")
    mixed = _flex(query.device.type)(
        query,
        key,
        value,
        block_mask=_block_mask(
            layout, key.shape[2] - query.shape[2], query.device, _causal(module)
        ),
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
def _block_mask(layout: Layout, prefix: int, device: torch.device, causal: bool) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    lengths = torch.tensor([prefix, *(n for tree in layout for n in tree)])
    trees = torch.tensor([-1, *(i for i, tree in enumerate(layout) for _ in tree)])  # -1: prefix
    branches = torch.tensor([0, *(b for tree in layout for b in range(len(tree)))])  # 0: prompt
    tree = trees.repeat_interleave(lengths).to(device)
    branch = branches.repeat_interleave(lengths).to(device)

    keys = len(tree)
    # The last key that a token may see: its own, or any. A tensor, for the rule is vectorised.
    last = torch.arange(keys, device=device) if causal else torch.full_like(tree, keys)
    return create_block_mask(
        lambda _batch, _head, query, key: (
            (tree[key] < 0)
            | (
                (tree[query + prefix] == tree[key])
                & ((branch[key] == 0) | (branch[key] == branch[query + prefix]))
                & (key <= last[query + prefix])
            )
        ),
        None,
        None,
        keys - prefix,
        keys,
        device=str(device),
    )


def _no_mask(*_: Any, **__: Any) -> None:
    """The tree functions know what may be seen; transformers is to build no mask for them."""


for _name, _function in (("sdpa", tree_attention_sdpa), ("flex", tree_attention_flex)):
    AttentionInterface.register(NAMES[_name], _function)
    AttentionMaskInterface.register(NAMES[_name], _no_mask)
