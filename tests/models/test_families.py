"""Every family is tried out before it is trained: admitted where exact, refused with a sentence."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoConfig

from drbode import config
from drbode.config import BadInput, ModelConfig
from drbode.models import attention, base, families, policy
from drbode.models.attention import Prefix
from drbode.models.base import load_policy
from drbode.models.families import prove, random_network, shrunk, sublayers
from drbode.models.generation import generate
from drbode.models.methods import wrap
from drbode.models.policy import Policy
from drbode.trees import pack
from tests.conftest import settings, words

ALTERNATING = ["full_attention", "sliding_attention"] * 6
WINDOWED = {
    "num_hidden_layers": 12,
    "layer_types": ALTERNATING,
    "use_sliding_window": True,
    "sliding_window": 4096,
}

AS_THEY_COME = """
apertus arcee bert biogpt cohere cohere2 cwm deepseek_v3 ernie4_5 ernie4_5_moe exaone4
gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox gpt_oss granite
granitemoe helium llama minicpm3 mistral mixtral olmo olmo2 olmo3 olmoe opt phi phi3
phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 starcoder2 vaultgemma
"""
# Families with the fields of their configs that differ from transformers' defaults.
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in AS_THEY_COME.split()},
    "granite": ("granite", {"logits_scaling": 8.0}),
    "hunyuan": ("hunyuan_v1_dense", {"head_dim": 128, "num_key_value_heads": 8}),
    "mistral without window": ("mistral", {"sliding_window": None}),
    "mixtral with window": ("mixtral", {"sliding_window": 4096}),
    "phi3 with window": ("phi3", {"sliding_window": 2048}),
    "starcoder2 with window": ("starcoder2", {"sliding_window": 4096}),
    "qwen2 with window": ("qwen2", WINDOWED),
    "qwen3 with window": ("qwen3", WINDOWED),
}

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bloom": ("bloom", {}, "packed trees come out by"),
    "falcon": ("falcon", {}, "packed trees come out by"),
    "gptj": ("gptj", {}, "packed trees come out by"),
    "falcon_h1": ("falcon_h1", {}, "packed trees come out by"),
    "qwen3_5_text": ("qwen3_5_text", {}, "full_attention, linear_attention"),
    "qwen3_next": ("qwen3_next", {}, "full_attention, linear_attention"),
    "lfm2": (
        "lfm2",
        {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
        "nats a token other than one sequence at a time .* types conv, full_attention",
    ),
    "mamba": ("mamba", {}, "no small network can be made of its config"),
    "roberta": ("roberta", {}, "another head than BERT's"),
    "t5": ("t5", {}, "an encoder with a decoder"),
}


def config_of(family: str, values: dict[str, Any]) -> Any:
    return AutoConfig.for_model(family, **values)


@pytest.mark.parametrize("name", EXACT)
def test_packed_trees_are_exact(name: str) -> None:
    proof = prove(config_of(*EXACT[name]), "sdpa")
    assert proof.problem is None
    assert proof.modules


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_packed_trees_are_exact_under_flex(name: str) -> None:
    assert prove(config_of(*EXACT[name]), "flex").problem is None


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_windows_caps_and_sinks_are_exact_under_flex(name: str) -> None:
    assert prove(config_of(*EXACT[name]), "flex").problem is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_packed_trees_compute_otherwise_is_refused(name: str) -> None:
    family, values, said = REFUSED[name]
    problem = prove(config_of(family, values), "sdpa").problem
    assert problem is not None
    assert re.search(said, problem)


GRADIENTS = ["mistral", "gemma2", "gpt_oss", "cohere2", "granite", "olmo3", "qwen3_moe", "phi"]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_equal_one_sequence_at_a_time(name: str) -> None:
    """Of every parameter, the head and the sinks among them, also after soft caps."""
    small = shrunk(config_of(*EXACT[name]))
    gradients = []
    for packed in (True, False):
        network = random_network(small)
        torch.manual_seed(1)
        trees = families.forest(families.SHAPES)
        speaker = Policy(network, None)
        logps = speaker.logps(pack(trees)) if packed else families.one_at_a_time(speaker, trees)
        (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for parameter, expected in gradients[1].items():
        scale = expected.abs().max().clamp(min=1e-3)
        torch.testing.assert_close(
            gradients[0][parameter] / scale, expected / scale, atol=1e-4, rtol=0, msg=parameter
        )


def ignoring(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """An attention function that swallows an argument."""
    return lambda *args, **others: function(*args, **{k: v for k, v in others.items() if k != name})


@pytest.mark.parametrize(
    ("family", "swallowed"),
    [
        ("mistral", "sliding_window"),
        ("gemma3_text", "sliding_window"),
        ("gemma2", "softcap"),
        ("gpt_oss", "s_aux"),
        ("granite", "scaling"),
    ],
)
def test_the_proof_sees_an_attention_that_swallows_an_argument(
    monkeypatch: pytest.MonkeyPatch, family: str, swallowed: str
) -> None:
    monkeypatch.setattr(families, "_proofs", {})
    monkeypatch.setitem(
        AttentionInterface._global_mapping,
        attention.NAMES["sdpa"],
        ignoring(swallowed, attention.tree_attention_sdpa),
    )
    problem = prove(config_of(family, {}), "sdpa").problem
    assert problem is not None
    assert "nats a token" in problem


@pytest.mark.parametrize("family", ["granite", "cohere", "cohere2", "gemma2"])
def test_the_proof_sees_a_head_whose_transform_is_not_known(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setattr(families, "_proofs", {})
    monkeypatch.setattr(policy, "head_transform", lambda _config: (1.0, None))
    scaled = {"logits_scaling": 8.0} if family == "granite" else {}
    problem = prove(config_of(family, scaled), "sdpa").problem
    assert problem is not None
    assert "nats a token" in problem


def test_the_proof_sees_a_prefix_that_lost_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_proofs", {})
    whole = Prefix.update

    def shortened(self: Any, keys: Any, values: Any, layer: int, *_: Any, **__: Any) -> Any:
        return tuple(t[:, :, 8:] for t in whole(self, keys, values, layer))

    monkeypatch.setattr(Prefix, "update", shortened)
    problem = prove(config_of("mistral", {}), "sdpa").problem
    assert problem is not None
    assert problem.startswith("trees after a prefix")


def test_a_small_config_has_one_layer_of_each_type_and_grouped_heads() -> None:
    small = shrunk(config_of("gemma3_text", {"num_hidden_layers": 26, "num_key_value_heads": 1}))
    assert small.layer_types == ["sliding_attention", "full_attention"]
    assert (small.num_hidden_layers, small.sliding_window, small.num_key_value_heads) == (2, 8, 1)
    grouped = shrunk(config_of("qwen3", {"num_attention_heads": 32, "num_key_value_heads": 8}))
    assert (grouped.num_attention_heads, grouped.num_key_value_heads) == (4, 2)
    assert grouped.hidden_size <= 64
    assert shrunk(config_of("gpt2", {})).hidden_size <= 64


@pytest.mark.parametrize(
    ("family", "kind", "longest"), [("phi3", "longrope", 4096), ("llama", "yarn", 131072)]
)
def test_the_context_ends_where_longer_sequences_turn_positions_otherwise(
    family: str, kind: str, longest: int
) -> None:
    rope = {
        "rope_type": kind,
        "rope_theta": 1e4,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "short_factor": [1.0] * 48,
        "long_factor": [2.0] * 48,
    }
    described = config_of(family, {"max_position_embeddings": 131072, "rope_parameters": rope})
    assert policy.context_of(described) == longest


def test_a_proof_is_kept_and_leaves_random_numbers_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(families, "_proofs", {})
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = prove(config_of("llama", {}), "sdpa")
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(families, "random_network", None)
    # Another size of the same kind needs no other proof.
    assert prove(config_of("llama", {"num_hidden_layers": 4}), "sdpa") is first


# --- at the door ----------------------------------------------------------------------------------


def folder_of(path: Path, family: str, values: dict[str, Any]) -> ModelConfig:
    """A model's folder, with random weights and a tokenizer."""
    network = random_network(shrunk(config_of(family, values)))
    network.save_pretrained(path)  # type: ignore[operator]
    words().save_pretrained(path)
    tree = config.compose("evaluate", [f"model.path={path}"])
    return config.build(config.EvaluateConfig, tree).model


def test_a_new_family_is_loaded(tmp_path: Path) -> None:
    loaded = load_policy(folder_of(tmp_path, "cohere2", {}), torch.float32, "sdpa")
    assert loaded.kind == "decoder"
    trees = families.forest(families.SHAPES)
    with torch.no_grad():
        expected = families.one_at_a_time(loaded, trees)
        torch.testing.assert_close(loaded.logps(pack(trees)), expected, atol=1e-4, rtol=0)


def test_a_refused_family_is_refused_in_one_sentence(tmp_path: Path) -> None:
    _, values, _ = REFUSED["lfm2"]
    described = folder_of(tmp_path, "lfm2", values)
    with pytest.raises(BadInput, match=r"of the family lfm2, .* by [\d.]+ nats a token .*expected"):
        load_policy(described, torch.float32, "sdpa")


def test_modules_that_took_no_part_in_the_proof_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the small network has none of the layers that differ, and no field tells of them."""
    described = folder_of(tmp_path, "glm4_moe", {})
    load_policy(described, torch.float32, "sdpa")
    kept = prove(AutoConfig.from_pretrained(tmp_path), "sdpa")
    fewer = kept._replace(modules=kept.modules - {"Glm4MoeMoE"})
    monkeypatch.setattr(base, "prove", lambda *_: fewer)
    with pytest.raises(BadInput, match=r"holds modules .*\(Glm4MoeMoE\)"):
        load_policy(described, torch.float32, "sdpa")


def test_a_window_is_seen_in_generation_after_a_prefix() -> None:
    """Written greedily, as with the prefix in the prompt."""
    speaker = Policy(random_network(shrunk(config_of("mistral", {}))), None)
    torch.manual_seed(2)
    before, prompts = families._ids(11), [families._ids(3), families._ids(9)]
    options: Any = {"end": 1, "max_new_tokens": 12, "max_tokens": 1000}
    after = generate(speaker, prompts, prefix=speaker.prefix(before), **options)
    assert after == generate(speaker, [before + prompt for prompt in prompts], **options)


# --- methods ------------------------------------------------------------------------------------

ENDS = {
    "bert": (["attention.output.dense"], ["output.dense"]),
    "gpt2": (["attn.c_proj"], ["mlp.c_proj"]),
    "llama": (["self_attn.o_proj"], ["mlp.down_proj"]),
    "qwen3": (["self_attn.o_proj"], ["mlp.down_proj"]),
    "phi3": (["self_attn.o_proj"], ["mlp.down_proj"]),  # whose o_proj is defined first
    "phi": (["self_attn.dense"], ["mlp.fc2"]),
    "opt": (["self_attn.out_proj"], ["fc2"]),
    "gpt_neox": (["attention.dense"], ["mlp.dense_4h_to_h"]),
    "glm4_moe": (["self_attn.o_proj"], ["mlp.down_proj", "mlp.shared_experts.down_proj"]),
    "gpt_oss": (["self_attn.o_proj"], []),
}


@pytest.mark.parametrize("family", ENDS)
def test_where_attention_and_mlp_end(family: str) -> None:
    assert sublayers(config_of(family, {})) == ENDS[family]


# Where peft does not reach the experts either, or an adapter has no layer to stand behind.
FUSED = {
    ("gpt_oss", "lora"),
    ("gpt_oss", "adapter"),
    ("mixtral", "adapter"),
    ("phimoe", "lora"),
    ("phimoe", "adapter"),
}


@pytest.mark.parametrize("method", ["lora", "bitfit", "adapter"])
@pytest.mark.parametrize(
    "family", ["cohere2", "gemma2", "gpt_neox", "gpt_oss", "mixtral", "opt", "phi", "phimoe"]
)
def test_methods_begin_at_the_base_and_reach_every_tensor(family: str, method: str) -> None:
    network = random_network(shrunk(config_of(*EXACT[family])))
    speaker = Policy(network, None)
    batch = pack(families.forest(families.SHAPES))
    with torch.no_grad():
        before = speaker.logps(batch)
    rank = ("lora.r=2",) if method == "lora" else ()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        wrap(speaker, settings(f"method={method}", *rank).tuning())
    skipped = any("experts, whose weights are one tensor" in str(w.message) for w in said)
    assert skipped == ((family, method) in FUSED)
    speaker.network.eval()
    after = speaker.logps(batch)
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    after.sum().backward()
    assert all(p.grad is not None for p in speaker.trainable().values())


@pytest.mark.parametrize(
    ("family", "words", "said"),
    [
        ("olmo", ["method=bitfit"], "finds neither biases nor weights of norms"),
        ("mixtral", ["method=adapter", "adapter.placement=pfeiffer"], "experts are one tensor"),
    ],
)
def test_a_method_without_a_place_is_a_sentence(family: str, words: list[str], said: str) -> None:
    speaker = Policy(random_network(shrunk(config_of(family, {}))), None)
    with pytest.raises(BadInput, match=said):
        wrap(speaker, settings(*words).tuning())
