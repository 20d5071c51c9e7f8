"""One table of properties that every method has on every family."""

import hashlib
from pathlib import Path
from typing import Any

import bitsandbytes.nn.modules
import pytest
import torch
from peft import AutoPeftModel, AutoPeftModelForCausalLM, PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForPreTraining

from drbode.config import BadInput, Method
from drbode.models import base
from drbode.models.base import Policy, load_policy, quantization_of
from drbode.models.heads import next_sentence_logits
from drbode.models.machine import Machine
from drbode.models.methods import wrap
from drbode.objectives.mlm import nsp_loss
from drbode.trees import Completion, Tree, pack
from tests.conftest import VOCABULARY, asked, tiny

WORDS: dict[Method, tuple[str, ...]] = {
    "full": (),
    "lora": ("lora.r=4",),
    "qlora": ("lora.r=4",),
    "adapter": ("adapter.bottleneck=6",),
    "bitfit": (),
}
METHODS = list(WORDS)
CPU = Machine("cpu", "32-true", "fp32", "sdpa", 1)
BATCH = pack([Tree([1, 2, 3], [Completion([4, 5], [True, True]), Completion([6], [True])])])


@pytest.fixture(params=["qwen3", "llama", "gpt2", "bert"])
def family(request: pytest.FixtureRequest) -> str:
    """With the encoders, which method qlora is not offered for."""
    if request.param == "bert" and request.node.callspec.params.get("method") == "qlora":
        pytest.skip("refused at the door")
    return str(request.param)


class NoTokenizer:
    def save_pretrained(self, folder: str) -> None:
        pass


def words(method: Method, *more: str) -> Any:
    return asked(f"method={method}", *WORDS[method], *more)


@pytest.fixture
def network_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a tiny network from a folder, as a user's is; qlora's in 4 bits."""
    monkeypatch.setattr(
        base.AutoTokenizer, "from_pretrained", lambda *_, **__: NoTokenizer(), raising=True
    )

    def load(family: str, method: Method | None, *more: str) -> Policy:
        folder = tmp_path / f"base-{family}"
        if not folder.exists():
            tiny(family).save_pretrained(folder)
        config = words(method or "lora", f"model.path={folder}", *more)
        held = CPU.quantization(config.qlora) if method == "qlora" else None
        return load_policy(config.model, torch.float32, "sdpa", 0, held, kind=None)

    return load


def test_a_quantized_base_is_the_same_in_training_and_evaluation(
    network_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on processors for which bitsandbytes has a second format."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    network = network_of("qwen3", "qlora").network
    network.set_attn_implementation("sdpa")
    before = logits(network.train())
    assert torch.equal(logits(network.eval()), before)
    assert torch.equal(logits(network.train()), before)


@pytest.fixture
def wrapped(network_of: Any) -> Any:
    def make(family: str, method: Method, *more: str) -> Policy:
        policy: Policy = network_of(family, method)
        wrap(policy, words(method, *more))
        policy.network.eval()  # GPT-2 has dropout of its own
        return policy

    return make


def logits(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output = network(torch.arange(VOCABULARY)[None])
    found: torch.Tensor = output["prediction_logits" if "prediction_logits" in output else "logits"]
    return found


def auto(family: str) -> Any:
    return AutoModelForPreTraining if family == "bert" else AutoModelForCausalLM


def idle(family: str, name: str) -> bool:
    """What only next sentence prediction trains, which is off."""
    return family == "bert" and ("pooler" in name or "seq_relationship" in name)


def generated(policy: Policy) -> torch.Tensor:
    with policy.generating() as network:
        return logits(network)


def trained(policy: Policy) -> None:
    """A few steps that move every trainable tensor."""
    optimizer = torch.optim.SGD(policy.trainable().values(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (-policy.logps(BATCH).sum()).backward()
        optimizer.step()


def digests(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    raw = {n: t.detach().contiguous().view(torch.uint8).numpy() for n, t in tensors.items()}
    return {n: hashlib.sha256(b.tobytes()).hexdigest() for n, b in raw.items()}


def of_no_effect(name: str) -> bool:
    """The bias of BERT's keys adds the same to all scores of a query: its gradient is zero."""
    return ".self.key." in name and name.endswith("bias")


def expected_names(family: str, method: Method, name: str, parameter: nn.Parameter) -> bool:
    """Whether the method trains a tensor, said in another way than the program says it."""
    match method:
        case "full":
            return not idle(family, name)
        case "lora" | "qlora":
            return ".lora_A.default" in name or ".lora_B.default" in name
        case "adapter":
            return ".bottleneck_down.default" in name or ".bottleneck_up.default" in name
        case "bitfit":
            return ".bitfit_vectors.default" in name and parameter.ndim == 1


@pytest.mark.parametrize("method", METHODS)
def test_logits_at_the_start_equal_the_base_exactly(
    family: str, method: Method, network_of: Any, wrapped: Any
) -> None:
    plain = generated(network_of(family, method))
    assert torch.equal(generated(wrapped(family, method)), plain)
    if method == "qlora":  # which is another base than the one it was made from
        assert not torch.allclose(plain, generated(network_of(family, None)), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_trains_gets_a_gradient_and_what_is_frozen_stays(
    family: str, method: Method, checkpointing: bool, wrapped: Any
) -> None:
    policy = wrapped(family, method)
    if checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.network.train()
    parameters = dict(policy.network.named_parameters())
    names = {n for n, p in parameters.items() if expected_names(family, method, n, p)}
    assert names == set(policy.trainable())
    frozen = {n: p for n, p in parameters.items() if n not in names}
    before, start = digests(frozen), policy.state()
    trained(policy)
    (-policy.logps(BATCH).sum()).backward()
    for name, parameter in policy.network.named_parameters():
        if name in names:
            assert parameter.grad is not None, name
            if of_no_effect(name):
                assert parameter.grad.abs().max() < 1e-5, name
                continue
            assert parameter.grad.abs().sum() > 0, name
            assert not torch.equal(parameter.detach(), start[name]), name
        else:
            assert parameter.grad is None, name
    assert digests(frozen) == before


@pytest.mark.parametrize("method", METHODS)
def test_saved_it_loads_in_plain_peft_and_transformers(
    family: str, method: Method, tmp_path: Path, network_of: Any, wrapped: Any
) -> None:
    policy = wrapped(family, method)
    trained(policy)
    policy.save(tmp_path / "saved")
    if method == "full":
        plain = auto(family).from_pretrained(tmp_path / "saved")
    else:
        plain = PeftModel.from_pretrained(network_of(family, method).model, tmp_path / "saved")
    assert plain.config._attn_implementation in ("sdpa", base.NAMES["sdpa"])
    plain.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits(plain.eval()), generated(policy), atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_saved_it_is_found_again_by_its_folder(
    family: str, method: Method, tmp_path: Path, wrapped: Any
) -> None:
    policy = wrapped(family, method)
    trained(policy)
    policy.save(tmp_path / "saved")
    config = asked(f"model.path={tmp_path / 'saved'}", "method=full").model
    again = load_policy(config, torch.float32, "sdpa", 0, quantization_of(config), kind=None)
    again.network.eval()
    torch.testing.assert_close(generated(again), generated(policy), atol=1e-6, rtol=0)
    if method != "full":
        (tmp_path / "saved" / base.QUANTIZATION).unlink(missing_ok=True)
        loader = AutoPeftModel if family == "bert" else AutoPeftModelForCausalLM
        plain = loader.from_pretrained(tmp_path / "saved", dtype=torch.float32)
        same = torch.allclose(logits(plain.eval()), generated(policy), atol=1e-6)
        assert same == (method != "qlora")  # plain peft takes the plain base


@pytest.mark.parametrize("method", ["lora", "qlora", "bitfit"])
def test_merged_and_reloaded_it_equals_unmerged(
    family: str, method: Method, tmp_path: Path, network_of: Any, wrapped: Any
) -> None:
    policy = wrapped(family, method)
    trained(policy)
    policy.save(tmp_path / "saved")
    on_plain = PeftModel.from_pretrained(network_of(family, None).model, tmp_path / "saved").eval()
    on_plain.set_attn_implementation("sdpa")
    unmerged = logits(on_plain)
    on_plain.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = auto(family).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged.eval()), unmerged, atol=1e-5, rtol=0)
    gap = (generated(policy) - unmerged).abs().max()
    # What was trained on the quantized base is another model on the plain one: scored on both.
    assert (gap > 1e-3) if method == "qlora" else (gap < 1e-6)


def test_a_bottleneck_adapter_is_not_merged(wrapped: Any) -> None:
    with pytest.raises(ValueError, match="not linear"):
        wrapped("qwen3", "adapter").network.merge_and_unload()


@pytest.mark.parametrize("method", ["lora", "qlora", "adapter", "bitfit"])
def test_switched_off_it_is_the_base(
    family: str, method: Method, network_of: Any, wrapped: Any
) -> None:
    policy = wrapped(family, method)
    plain = generated(network_of(family, method))
    trained(policy)
    assert not torch.equal(generated(policy), plain)
    with policy.network.disable_adapter():
        assert torch.equal(generated(policy), plain)
    trained(policy)  # it trains on after that
    assert not torch.equal(generated(policy), plain)


@pytest.mark.parametrize("method", METHODS)
def test_state_taken_out_and_in_is_the_same_policy(
    family: str, method: Method, wrapped: Any
) -> None:
    policy, other = wrapped(family, method), wrapped(family, method)
    trained(policy)
    other.load_state(policy.state())
    with torch.no_grad():
        assert torch.equal(policy.logps(BATCH), other.logps(BATCH))
    with pytest.raises(BadInput, match="does not fit"):
        other.load_state({"another": torch.zeros(1)})


# Widths of the tiny Qwen3: 32, q and o 32 x 32, k and v 32 x 16, MLP 48, two layers.
COUNTS: dict[Method, int] = {
    "lora": 2 * 4 * (2 * 64 + 2 * 48 + 3 * 80),
    "qlora": 2 * 4 * (2 * 64 + 2 * 48 + 3 * 80),
    "adapter": 2 * 2 * (32 * 6 + 6 + 6 * 32 + 32),
    "bitfit": 2 * (2 * 32 + 2 * 8) + 32,
}


@pytest.mark.parametrize("method", METHODS)
def test_counts_are_true(method: Method, wrapped: Any) -> None:
    trainable, total = wrapped("qwen3", method).count()
    plain = sum(p.numel() for p in tiny("qwen3").parameters())
    if method == "full":
        assert trainable == total == plain
    else:
        assert trainable == COUNTS[method]
        assert total == plain + COUNTS[method]


def test_bitfit_trains_the_norms_of_qwen3_1_7b() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = Qwen3Config(  # of Qwen/Qwen3-1.7B
        vocab_size=151_936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        policy = Policy(Qwen3ForCausalLM(shape), None)
        wrap(policy, words("bitfit"))
    assert policy.count()[0] == 123_904


def test_pfeiffer_places_one_adapter_a_layer(family: str, wrapped: Any) -> None:
    houlsby = wrapped(family, "adapter").count()[0]
    pfeiffer = wrapped(family, "adapter", "adapter.placement=pfeiffer")
    assert 2 * pfeiffer.count()[0] == houlsby
    names = list(pfeiffer.trainable())
    assert names
    after = ".output.dense." if family == "bert" else ".mlp."
    assert all(after in name and ".attention." not in name for name in names)


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "tanh"])
def test_a_bottleneck_computes_what_the_paper_says(activation: str, wrapped: Any) -> None:
    policy = wrapped("qwen3", "adapter", f"adapter.activation={activation}")
    layer = policy.model.model.layers[0].mlp.down_proj
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    torch.nn.init.normal_(up.weight)
    torch.nn.init.normal_(up.bias)
    x = torch.randn(5, 48)
    h = layer.base_layer(x)
    function = getattr(torch, activation, None) or getattr(nn.functional, activation)
    expected = h + function(h @ down.weight.T + down.bias) @ up.weight.T + up.bias
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.filterwarnings("ignore:.*lora_bias=True.*")
def test_lora_fields_reach_peft(wrapped: Any) -> None:
    policy = wrapped(
        "qwen3",
        "lora",
        "lora.use_rslora=true",
        "lora.rank_pattern={q_proj: 2}",
        "lora.alpha_pattern={q_proj: 5}",
        "lora.exclude_modules=[v_proj]",
        "lora.layers_to_transform=[1]",
        "lora.lora_bias=true",
        "lora.dropout=0.25",
        "lora.alpha=6",
    )
    layers = policy.model.model.layers
    assert isinstance(layers[0].self_attn.q_proj, nn.Linear)
    assert isinstance(layers[1].self_attn.v_proj, nn.Linear)
    q, k = layers[1].self_attn.q_proj, layers[1].self_attn.k_proj
    assert (q.r["default"], k.r["default"]) == (2, 4)
    assert q.scaling["default"] == pytest.approx(5 / 2**0.5)
    assert k.scaling["default"] == pytest.approx(6 / 2)
    assert k.lora_dropout["default"].p == 0.25
    assert k.lora_B["default"].bias is not None


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "olora", "pissa"])
@pytest.mark.parametrize("dora", [False, True])
def test_lora_variants_start_at_the_base_and_are_found_again(
    init: str, dora: bool, tmp_path: Path, network_of: Any, wrapped: Any
) -> None:
    policy = wrapped(
        "qwen3", "lora", f"lora.init_lora_weights={init}", f"lora.use_dora={str(dora).lower()}"
    )
    plain = generated(network_of("qwen3", None))
    torch.testing.assert_close(generated(policy), plain, atol=1e-4, rtol=0)
    assert any("lora_magnitude" in n for n in policy.trainable()) == dora
    trained(policy)
    policy.save(tmp_path / "saved")
    config = asked(f"model.path={tmp_path / 'saved'}", "method=full").model
    again = load_policy(config, torch.float32, "sdpa")
    again.network.eval()
    torch.testing.assert_close(generated(again), generated(policy), atol=1e-4, rtol=0)


def test_biases_train_with_lora_where_asked(wrapped: Any) -> None:
    none, every = wrapped("gpt2", "lora"), wrapped("gpt2", "lora", "lora.bias=all")
    added = set(every.trainable()) - set(none.trainable())
    assert added
    assert all(name.endswith(".bias") for name in added)


def test_the_adapter_start_follows_the_seed(wrapped: Any) -> None:
    for method in ("lora", "adapter"):
        states = [
            torch.cat([t.flatten() for t in wrapped("qwen3", method, f"seed={s}").state().values()])
            for s in (0, 0, 1)
        ]
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("lora.target_modules=[q_prj]", "the model has no linear layer q_prj"),
        ("lora.target_modules=[lm_head]", "lm_head is not adapted"),
        ("lora.target_modules=[q_proj,embed_tokens]", "embed_tokens is not adapted"),
        ("lora.exclude_modules=[q_prj]", "the model has no linear layer q_prj"),
        ("lora.rank_pattern={x_proj: 3}", "the model has no linear layer x_proj"),
        ("lora.layers_to_transform=[2]", "layers 0 to 1, got 2"),
    ],
)
def test_a_target_that_cannot_be_adapted_is_named(key: str, named: str) -> None:
    with pytest.raises(BadInput, match=named) as error:
        wrap(Policy(tiny("qwen3"), None), words("lora", key))
    assert str(error.value).startswith(key.split("=")[0])


@pytest.mark.parametrize("method", ["lora", "qlora", "adapter", "bitfit"])
def test_an_adapter_is_trained_further_in_its_own_shape(
    method: Method, tmp_path: Path, wrapped: Any
) -> None:
    policy = wrapped("qwen3", method)
    names = set(policy.trainable())
    trained(policy)
    policy.save(tmp_path / "saved")
    config = words(method, f"model.path={tmp_path / 'saved'}")
    again = load_policy(config.model, torch.float32, "sdpa", 0, quantization_of(config.model))
    wrap(again, config)
    again.network.eval()
    assert set(again.trainable()) == names
    torch.testing.assert_close(generated(again), generated(policy), atol=1e-6, rtol=0)
    with pytest.raises(BadInput, match="which is an adapter"):
        wrap(again, words("full"))
    other: Method = "bitfit" if method != "bitfit" else "adapter"
    with pytest.raises(BadInput, match=f"which {other} cannot train further"):
        wrap(again, words(other))
    if method == "lora":
        with pytest.raises(BadInput, match=r"lora.r: .* r 4, got 8; set lora.r=4"):
            wrap(again, asked("method=lora", "lora.r=8"))


@pytest.mark.parametrize("method", ["full", "lora", "adapter", "bitfit"])
def test_next_sentence_prediction_trains_its_head_and_without_it_nothing_does(
    method: Method, network_of: Any
) -> None:
    encoder = ("stages=mlm", "model=bertinho")
    for nsp in (False, True):
        policy = network_of("bert", method)
        wrap(policy, words(method, *encoder, f"mlm.nsp={str(nsp).lower()}"))
        trained_here = {n for n in policy.trainable() if idle("bert", n)}
        assert bool(trained_here) == (nsp and method != "adapter")
        hidden = policy.hidden(BATCH)
        loss = -policy.predicted(hidden[BATCH.sources], BATCH.targets).sum()
        if nsp:
            logits = next_sentence_logits(policy, hidden[[0, 3]])
            loss = loss + nsp_loss(logits, torch.tensor([0, 1]))
        loss.backward()
        for name, parameter in policy.trainable().items():
            zero_b = method == "lora" and ".lora_A." in name  # no gradient while B is zero
            zero_up = method == "adapter" and ".bottleneck_down." in name
            assert parameter.grad is not None, name
            none = zero_b or zero_up or of_no_effect(name)
            assert none or parameter.grad.abs().sum() > 0, name


def test_bitfit_trains_a_thousandth_of_bertimbau() -> None:
    """123 648 of 109.7 million: all biases and norms, but for next sentences and the head's."""
    from transformers import BertConfig, BertForPreTraining

    with torch.device("meta"):
        policy = Policy(BertForPreTraining(BertConfig(vocab_size=29_794)), None)
        wrap(policy, words("bitfit"))
    trainable, total = policy.count()
    layer = 2 * 2 * 768 + 4 * 768 + 3072 + 768  # two norms, attention's four, the MLP's two
    assert trainable == 12 * layer + 2 * 768 + 3 * 768  # after the embeddings, and in the head
    assert 0.0011 < trainable / total < 0.0012
