"""The tree attention: a token sees its own prompt and its own completion before it, nothing else.

Trees may go on from a common prefix, which every token sees: keys that come before those of the
trees' own tokens, as a model's cache brings them.

In an encoder, whose attention says that it is not causal, a token sees what stands after it too, of
the same prompt and completion; a prompt sees no completion in either, for it may have several.

Three things that families add to this are known: a window (a token sees itself and the window - 1
positions before it, where a position counts from the start of the prefix through the prompt into
the completion), a soft cap on the scores, and sinks (a learnt score for each head that takes part
in the softmax and carries no value).

One rule, two backends, registered with transformers under the names below, so no model's code is
touched. `sdpa` runs each prompt and completion through scaled_dot_product_attention on its own,
`flex` is told the rule and skips what it hides.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout, pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from drbode.trees import Layout

# What transformers hands to every attention function, and these need not read. Anything else that
# is not None changes what the model computes, and is refused.
HARMLESS = {
    "position_ids",  # already in the queries and keys, or in the embeddings that they come from
    "use_cache",  # keys are kept, or not, before the attention function is called
}

# Not with `sdpa` in it: transformers refuses such a name for families whose plain attention has a
# soft cap or sinks.
NAMES = {"sdpa": "drbode_tree_pieces", "flex": "drbode_tree_flex"}


class Prefix(DynamicCache):  # type: ignore[misc]
    """Keys and values of tokens that all trees of a batch go on from; unlike a cache, never grows.

    They hold for the weights that they were computed with.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of the prefix, and after them those of the trees' tokens."""
        layer = self.layers[layer_idx]
        keys = torch.cat([layer.keys, key_states], dim=2)
        return keys, torch.cat([layer.values, value_states], dim=2)

    def repeated(self, rows: int) -> DynamicCache:
        """The same as a cache that grows, for a batch of so many rows."""
        return DynamicCache(
            [
                [t.expand(rows, -1, -1, -1) for t in (layer.keys, layer.values)]
                for layer in self.layers
            ]
        )


class _Scores(NamedTuple):
    """How a model turns queries and keys into weights, beside what may be seen."""

    scaling: float | None
    dropout: float
    causal: bool
    window: int | None
    softcap: float | None
    sinks: Float[Tensor, " heads"] | None

    def mix(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, lower: bool = False
    ) -> Float[Tensor, "1 heads queries dim"]:
        """Attention of one piece; `lower`: causal without a mask."""
        if self.softcap is None and self.sinks is None:
            return scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                dropout_p=self.dropout,
                is_causal=lower,
                scale=self.scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        if lower:
            mask = _lower_right(0, query.shape[2], query.device, None)
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        scale = query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        scores = (query @ key.transpose(2, 3)) * scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        if self.sinks is not None:
            sinks = self.sinks.to(scores.dtype).view(1, -1, 1, 1)
            scores = torch.cat((scores, sinks.expand(-1, -1, scores.shape[2], 1)), dim=-1)
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        weights = wide.softmax(-1)[..., : key.shape[2]].to(value.dtype)
        return dropout(weights, self.dropout) @ value


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


def _causal(module: nn.Module, window: int | None) -> bool:
    """Whether a token sees nothing after it, as transformers' attention modules say of themselves.

    Raises AttributeError for one that does not say, ValueError for a window that is not causal.
    """
    causal = bool(module.is_causal)
    if window is not None and not causal:
        raise ValueError("the tree attention knows a sliding_window in decoders only")
    return causal


def tree_attention_sdpa(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens dim"],
    key: Float[Tensor, "1 kv_heads seen dim"],
    value: Float[Tensor, "1 kv_heads seen value_dim"],
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " heads"] | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "1 tokens heads value_dim"], None]:
    """Piece by piece: a prompt with its first completion, then each further one on the same keys.

    After a prefix, whose keys each piece would copy, it is tree by tree under the rule as a mask.
    Where it is not causal the prompt goes alone, then every completion on its keys. Raises
    ValueError without a layout, or with an argument that it does not know.
    """
    _refuse_unknown(others)
    layout = _checked(layout, query)
    causal = _causal(module, sliding_window)
    scores = _Scores(scaling, dropout, causal, sliding_window, softcap, s_aux)
    if key.shape[2] > query.shape[2]:
        return _after_prefix(query, key, value, scores, layout), None
    lengths = [n for tree in layout for n in tree]
    queries, keys, values = (t.split(lengths, dim=2) for t in (query, key, value))
    outputs = []
    at = 0
    for prompt, *completions in layout:
        shared = slice(at, at + 2 if completions and causal else at + 1)
        if causal or prompt:
            first = _joined(queries[shared])
            length = first.shape[2]
            windowed = sliding_window is not None and length > sliding_window
            mask = _lower_right(0, length, query.device, sliding_window) if windowed else None
            outputs.append(
                scores.mix(
                    first,
                    _joined(keys[shared]),
                    _joined(values[shared]),
                    mask,
                    lower=causal and mask is None,
                )
            )
        for branch in range(shared.stop, at + 1 + len(completions)):
            length = queries[branch].shape[2]
            outputs.append(
                scores.mix(
                    queries[branch],
                    _joined((keys[at], keys[branch])),
                    _joined((values[at], values[branch])),
                    _lower_right(prompt, length, query.device, sliding_window) if causal else None,
                )
            )
        at += 1 + len(completions)
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _after_prefix(
    query: Tensor, key: Tensor, value: Tensor, scores: _Scores, layout: Layout
) -> Float[Tensor, "1 tokens heads value_dim"]:
    prefix = key.shape[2] - query.shape[2]
    lengths = [sum(tree) for tree in layout]
    keys, values = (t.split([prefix, *lengths], dim=2) for t in (key, value))
    outputs = [
        scores.mix(
            of_tree,
            torch.cat((keys[0], keys[number]), dim=2),
            torch.cat((values[0], values[number]), dim=2),
            _with_prefix(prefix, tree, query.device, scores.causal, scores.window),
        )
        for number, (tree, of_tree) in enumerate(
            zip(layout, query.split(lengths, 2), strict=True), 1
        )
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _with_prefix(
    prefix: int, tree: tuple[int, ...], device: torch.device, causal: bool, window: int | None
) -> Tensor:
    """True where a token of a tree may look at one of the prefix, or of the same tree."""
    seen = pad(_within_tree(tree, device, causal), (prefix, 0), value=True)
    if window is None:
        return seen
    positions = _positions(prefix, (tree,)).to(device)
    return seen & (positions[prefix:, None] - positions < window)


def _positions(prefix: int, layout: Layout) -> Tensor:
    """Where each key stands in its own sequence: those of the prefix, then the trees' tokens."""
    starts = [
        (start, length)
        for prompt, *completions in layout
        for start, length in ((0, prompt), *((prompt, n) for n in completions))
    ]
    return torch.cat(
        [torch.arange(prefix), *(prefix + start + torch.arange(n) for start, n in starts)]
    )


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
def _lower_right(prompt: int, length: int, device: torch.device, window: int | None) -> Tensor:
    """True where a completion's token may look: the prompt, itself and what is before it.

    Of these the last `window` positions, where there is one.
    """
    seen = torch.ones(length, prompt + length, dtype=torch.bool, device=device).tril(prompt)
    return seen if window is None else seen.triu(prompt - window + 1)


def tree_attention_flex(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens dim"],
    key: Float[Tensor, "1 kv_heads seen dim"],
    value: Float[Tensor, "1 kv_heads seen value_dim"],
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " heads"] | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "1 tokens heads value_dim"], None]:
    """The same rule by FlexAttention.

    Raises ValueError without a layout, with dropout, or with an argument that it does not know.
    """
    _refuse_unknown(others)
    layout = _checked(layout, query)
    if dropout:
        raise ValueError("FlexAttention has no dropout; set model.attention=sdpa")
    causal = _causal(module, sliding_window)
    prefix = key.shape[2] - query.shape[2]
    options: dict[str, Any] = {} if softcap is None else {"score_mod": _capped(softcap)}
    if s_aux is not None:
        options["return_lse"] = True
    mixed = _flex(query.device.type)(
        query,
        key,
        value,
        block_mask=_block_mask(layout, prefix, query.device, causal, sliding_window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        **options,
    )
    if s_aux is not None:  # what the sinks take is known from the log of the sum of exponentials
        mixed, normaliser = mixed
        mixed = mixed * torch.sigmoid(normaliser - s_aux.view(1, -1, 1))[..., None].to(mixed.dtype)
    return mixed.transpose(1, 2), None


@lru_cache(maxsize=8)  # the same function for the same cap, so that it is compiled once
def _capped(cap: float) -> Any:
    return lambda score, _batch, _head, _query, _key: cap * torch.tanh(score / cap)


@lru_cache(maxsize=2)
def _flex(device_type: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Compiled it is a fused kernel; uncompiled it writes out all scores, which is right for a test.
    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention


@lru_cache(maxsize=8)  # every layer of a batch needs the same one
def _block_mask(
    layout: Layout, prefix: int, device: torch.device, causal: bool, window: int | None = None
) -> Any:
    from torch.nn.attention.flex_attention import and_masks, create_block_mask

    lengths = torch.tensor([prefix, *(n for tree in layout for n in tree)])
    trees = torch.tensor([-1, *(i for i, tree in enumerate(layout) for _ in tree)])  # -1: prefix
    branches = torch.tensor([0, *(b for tree in layout for b in range(len(tree)))])  # 0: prompt
    tree = trees.repeat_interleave(lengths).to(device)
    branch = branches.repeat_interleave(lengths).to(device)

    keys = len(tree)
    # The last key that a token may see: its own, or any. A tensor, for the rule is vectorised.
    last = torch.arange(keys, device=device) if causal else torch.full_like(tree, keys)

    # Lambdas, which carry no types to check: FlexAttention counts a function's arguments.
    rule: Any = lambda _batch, _head, query, key: (  # noqa: E731
        (tree[key] < 0)
        | (
            (tree[query + prefix] == tree[key])
            & ((branch[key] == 0) | (branch[key] == branch[query + prefix]))
            & (key <= last[query + prefix])
        )
    )
    if window is not None:
        positions = _positions(prefix, layout).to(device)
        near: Any = lambda _batch, _head, query, key: (  # noqa: E731
            positions[query + prefix] - positions[key] < window
        )
        rule = and_masks(rule, near)
    return create_block_mask(rule, None, None, keys - prefix, keys, device=str(device))


def _no_mask(*_: Any, **__: Any) -> None:
    """The tree functions know what may be seen; transformers is to build no mask for them."""


for _name, _function in (("sdpa", tree_attention_sdpa), ("flex", tree_attention_flex)):
    AttentionInterface.register(NAMES[_name], _function)
    AttentionMaskInterface.register(NAMES[_name], _no_mask)
