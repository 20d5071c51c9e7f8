"""Whether a family of models can be run on packed trees: tried out, on the model's own config.

No list says which families are known. A small network of the model's config with random weights
runs packed trees, some of them after a prefix and longer than its windows, and its
log-probabilities are compared with those that plain transformers gives one sequence at a time.
What the tree attention does not know of a family (a state that is carried from token to token, an
attention that is not transformers' interface, a transform of the logits) makes them differ.
"""

import copy
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForPreTraining
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from drbode.models.policy import Attention, Policy, kind_of
from drbode.trees import Completion, Tree, pack

TOLERANCE = 1e-4  # nats a token; rounding in fp32 stays below 1e-5
WINDOW = 8
VOCABULARY = 96
RESERVED = 4  # ids that some families take for padding lie below
FEWEST_LAYERS, MOST_LAYERS = 2, 6

# Prompt and completions, in tokens: several and one, without a prompt, shorter and longer than the
# window. Then the length of the prefix that the same trees are run after.
SHAPES = ((13, (4, 10, 1)), (0, (12,)), (3, (5, 9)), (6, (2,)))
PREFIX = 11

# Sizes that the network has in place of the model's, by the name of the config's field. A width
# is 4 heads of 16.
SIZES: Mapping[str, int] = {
    r"vocab_size": VOCABULARY,
    r"hidden_size|n_embd|d_model|word_embed_proj_dim|embedding_size": 64,
    r"num_attention_heads|n_head|num_heads": 4,
    r"head_dim|qk_nope_head_dim|qk_head_dim|v_head_dim|kv_channels|attention_head_dim": 16,
    r"qk_rope_head_dim": 8,
    r"rotary_dim": 8,
    r"\w*_lora_rank": 16,
    r"\w*intermediate_size|ffn_dim|ffn_hidden_size|n_inner": 48,
    r"num_experts|num_local_experts|n_routed_experts|moe_num_experts": 4,
    r"num_experts_per_tok|num_experts_per_token|moe_topk|moe_k": 2,
    r"n_shared_experts|num_shared_experts|moe_num_shared_experts|n_group|topk_group": 1,
    r"first_k_dense_replace|moe_layer_start_index|decoder_sparse_step|moe_layer_interval": 1,
    r"(?!max_)\w*window\w*|\w*chunk_size": WINDOW,
    r"max_position_embeddings|n_positions": 256,
    r"pad_token_id|bos_token_id|eos_token_id": 0,
}
# Soft caps, so low that the scores and logits of random weights reach them.
CAPS: Mapping[str, float] = {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.0}


class Proof(NamedTuple):
    """What came out for a family: `problem` says what differs (None: nothing)."""

    problem: str | None
    modules: frozenset[str]  # names of its own classes of modules that took part


NONE: frozenset[str] = frozenset()
_proofs: dict[str, Proof] = {}  # of this process, by the small config and the backend


def prove(config: Any, attention: Attention, trust_remote_code: bool = False) -> Proof:
    """Compares packed trees with one sequence at a time on a small network of this config.

    Below TOLERANCE the family is proved for the backend. On the CPU, in fp32; the state of the
    generators of random numbers is left as it was. The result is kept for this process.
    """
    if config.is_encoder_decoder:
        return Proof("it is an encoder with a decoder", NONE)
    with _quiet():
        try:
            small = shrunk(config)
        except Exception as error:  # a config class checks itself, and raises what it likes
            return Proof(f"no small network can be made of its config ({_first(error)})", NONE)
        key = json.dumps([attention, small.to_dict()], sort_keys=True, default=str)
        if key not in _proofs:
            _proofs[key] = _proof(small, attention, trust_remote_code)
        return _proofs[key]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what transformers and PyTorch say of a network that nobody will see."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


def _proof(small: Any, attention: Attention, trust_remote_code: bool) -> Proof:
    modules = NONE
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.device("cpu"),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            network = random_network(small, trust_remote_code)
            modules = own_modules(network)
            policy = Policy(network, None, attention)
            for compared, furthest in differences(policy):
                if furthest > TOLERANCE:
                    return Proof(_differ(compared, furthest, small), modules)
    except Exception as error:  # of the family's own code, which raises what it likes
        return Proof(f"its forward pass on packed trees raises: {_first(error)}", modules)
    return Proof(None, modules)


def _differ(compared: str, furthest: float, config: Any) -> str:
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    layers = f" (its layers are of the types {', '.join(kinds)})" if kinds else ""
    return (
        f"{compared} come out by {furthest:.2g} nats a token other than one sequence at a time"
        f"{layers}"
    )


def _first(error: Exception) -> str:
    """The first line of what an error says, and its class."""
    said = str(error).strip() or "no reason given"
    return f"{type(error).__name__}, {said.splitlines()[0].split('. ')[0]}"


def own_modules(network: nn.Module) -> frozenset[str]:
    """Names of the classes of modules that the network's family defines itself."""
    family = type(network).__module__
    return frozenset(type(m).__name__ for m in network.modules() if type(m).__module__ == family)


# --- a small config and a network of it ---------------------------------------------------------


def shrunk(config: Any) -> Any:
    """The config with small sizes, and one layer of each kind that it has.

    Grouped heads stay grouped, a window that there is becomes WINDOW tokens long.
    """
    values = copy.deepcopy(config.to_dict())
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    kept = _kept_layers(values, config.num_hidden_layers)
    for name, value in values.items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            values[name] = [value[layer] for layer in kept]
        elif name in CAPS and value is not None:
            values[name] = CAPS[name]
        elif isinstance(value, int) and not isinstance(value, bool):
            values[name] = next((n for p, n in SIZES.items() if re.fullmatch(p, name)), value)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):  # lists, or none at all
        if name in values:
            values[name] = 0
    layers = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    values[layers] = len(kept)
    if "qk_rope_head_dim" in values:  # the part of a head that is rotated, in DeepSeek's families
        values["head_dim"] = values["qk_rope_head_dim"]
    if groups is not None:
        values["num_key_value_heads"] = {heads: 4, 1: 1}.get(groups, 2)
    rope = values.get("rope_parameters") or {}
    for name in ("short_factor", "long_factor"):  # of each pair of a head's dimensions
        if name in rope:
            rotated = 16 * values.get("partial_rotary_factor", 1.0)
            rope[name] = rope[name][: int(rotated) // 2]
    values.pop("_name_or_path", None)
    values.pop("dtype", None)
    values.pop("quantization_config", None)
    return type(config).from_dict(values)


def _kept_layers(values: Mapping[str, Any], layers: int) -> list[int]:
    """One layer of each kind, as lists with a value for each layer tell them apart, in order."""
    lists = [v for v in values.values() if isinstance(v, list) and len(v) == layers]
    kinds = [json.dumps([of_layers[n] for of_layers in lists]) for n in range(layers)]
    kept = [kinds.index(kind) for kind in dict.fromkeys(kinds)][:MOST_LAYERS]
    others = [n for n in range(layers) if n not in kept]
    return sorted(kept + others[: max(0, FEWEST_LAYERS - len(kept))])


def random_network(config: Any, trust_remote_code: bool = False) -> nn.Module:
    """A network with random weights, in evaluation mode.

    They are larger than a family draws them, so that every part has a say in the logits.
    """
    auto = AutoModelForPreTraining if kind_of(config) == "encoder" else AutoModelForCausalLM
    torch.manual_seed(0)
    network: nn.Module = auto.from_config(
        config, dtype=torch.float32, trust_remote_code=trust_remote_code
    )
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape)
            if parameter.ndim > 1:
                parameter.copy_(1.5 * noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.1 * noise)
    return network.eval()


def sublayers(config: Any) -> tuple[list[str], list[str]]:
    """Names, within a layer, of the last linear layers of its attention and of its MLP.

    Seen in a small network: of the linear layers that give the model's width, the one that runs
    last. Experts whose weights are one tensor have none.
    """
    with _quiet(), torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        network = random_network(shrunk(config), hasattr(config, "auto_map"))
        policy = Policy(network, None)
        width = policy.model.config.hidden_size
        ran: list[tuple[str, str]] = []  # number of the layer, and name of the module in it
        for name, module in network.named_modules():
            placed = re.fullmatch(r".*?\.(\d+)\.(.*)", name)
            if placed and isinstance(module, nn.Linear | Conv1D) and _width(module) == width:
                at = placed[1], placed[2]
                module.register_forward_hook(lambda *_, at=at: ran.append(at))
        policy.hidden(pack(forest(SHAPES)))
    last = {(layer, "att" in name): name for layer, name in ran}
    attention, mlp = ([n for (_, a), n in last.items() if a is which] for which in (True, False))
    return list(dict.fromkeys(attention)), list(dict.fromkeys(mlp))


def _width(layer: nn.Module) -> int:
    """Of what a linear layer gives; GPT-2's Conv1D calls it nf."""
    return layer.out_features if isinstance(layer, nn.Linear) else int(layer.nf)  # type: ignore[arg-type]


# --- the comparison -----------------------------------------------------------------------------


def differences(policy: Policy) -> Iterator[tuple[str, float]]:
    """What is compared, and the largest difference of a token's logp (nats) in it."""
    if policy.kind == "encoder":
        yield "packed sequences", _furthest(*_encoded(policy))
        return
    trees = forest(SHAPES)
    yield "packed trees", _furthest(policy.logps(pack(trees)), one_at_a_time(policy, trees))
    before = _ids(PREFIX)
    after = [tree for tree in trees if tree.prompt]
    whole = [Tree(before + tree.prompt, tree.completions) for tree in after]
    logps = policy.logps(pack(after), policy.prefix(before))
    yield "trees after a prefix", _furthest(logps, one_at_a_time(policy, whole))


def _furthest(logps: Tensor, expected: Tensor) -> float:
    """The largest difference; infinite where one of them is no number."""
    return float((logps - expected).abs().nan_to_num(nan=torch.inf).max())


def _ids(length: int) -> list[int]:
    return torch.randint(RESERVED, VOCABULARY, (length,)).tolist()


def forest(shapes: Sequence[tuple[int, Sequence[int]]]) -> list[Tree]:
    """Trees of random tokens, all of the completions supervised."""
    return [
        Tree(_ids(prompt), [Completion(_ids(n), [True] * n) for n in completions])
        for prompt, completions in shapes
    ]


def one_at_a_time(policy: Policy, trees: Sequence[Tree]) -> Tensor:
    """Logps of all supervised tokens by plain transformers, a sequence in a forward pass."""

    def logps(network: Any, tree: Tree, ids: list[int]) -> Tensor:
        sequence = torch.tensor([tree.prompt + ids])
        logits: Tensor = network(input_ids=sequence, use_cache=False).logits[0, :-1]
        of_tokens = logits.log_softmax(-1).gather(-1, sequence[0, 1:, None])[:, 0]
        return of_tokens[max(len(tree.prompt) - 1, 0) :]

    return _plainly(
        policy,
        lambda network: [logps(network, t, c.ids) for t in trees for c in t.completions],
    )


def _encoded(policy: Policy) -> tuple[Tensor, Tensor]:
    """Logps of every token of some sequences at its own place: packed, and one at a time."""
    if not hasattr(policy.model, "cls"):
        raise ValueError("it predicts masked tokens with another head than BERT's")
    sequences = [_ids(length) for length in (9, 1, 12, 4)]
    batch = pack([Tree([], [Completion(s, [False] * len(s))]) for s in sequences])
    packed = policy.predicted(policy.hidden(batch), batch.input_ids)

    def logps(network: Any, ids: list[int]) -> Tensor:
        output = network(input_ids=torch.tensor([ids]))
        logits: Tensor = output.prediction_logits
        return logits[0].log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]

    return packed, _plainly(policy, lambda network: [logps(network, s) for s in sequences])


def _plainly(policy: Policy, run: Callable[[Any], list[Tensor]]) -> Tensor:
    """What `run` computes with the network's own attention, in evaluation mode."""
    with policy.generating() as network:
        return torch.cat(run(network))
