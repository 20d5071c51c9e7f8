"""One table of properties that every method has on every family."""

import hashlib
from pathlib import Path
from typing import Any

import bitsandbytes.nn.modules
import pytest
import torch
from peft import AutoPeftModel, AutoPeftModelForCausalLM, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForPreTraining

from drbode.config import METHODS, BadInput, Method, load_function
from drbode.models import base, tuners
from drbode.models.base import Policy, load_policy, quantization_of
from drbode.models.heads import next_sentence_logits
from drbode.models.machine import Machine
from drbode.models.methods import wrap
from drbode.objectives.mlm import nsp_loss
from drbode.trees import Completion, Tree, pack
from tests.conftest import VOCABULARY, settings, tiny

RATES = "+model.learning_rates.peft={sft: 1, mlm: 1}"  # which are not read here
# What asks for a method; in capitals, tuners of peft's.
WORDS: dict[Method, tuple[str, ...]] = {
    "full": ("method=full",),
    "lora": ("method=lora", "lora.r=4"),
    "qlora": ("method=qlora", "lora.r=4"),
    "adapter": ("method=adapter", "adapter.bottleneck=6"),
    "bitfit": ("method=bitfit",),
    "IA3": ("method=peft", "peft.type=IA3", RATES),
    "VERA": ("method=peft", "peft.type=VERA", "peft.options={r: 4}", RATES),
}
ADAPTERS = [name for name in WORDS if name != "full"]
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
    return settings(*WORDS[method], *more)


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
        wrap(policy, words(method, *more).tuning())
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
        case "IA3":
            return ".ia3_l.default" in name
        case "VERA":
            return ".vera_lambda_b.default" in name or ".vera_lambda_d.default" in name
    raise AssertionError(method)


@pytest.mark.parametrize("method", list(WORDS))
def test_logits_at_the_start_equal_the_base_exactly(
    family: str, method: Method, network_of: Any, wrapped: Any
) -> None:
    plain = generated(network_of(family, method))
    assert torch.equal(generated(wrapped(family, method)), plain)
    if method == "qlora":  # which is another base than the one it was made from
        assert not torch.allclose(plain, generated(network_of(family, None)), atol=1e-4)


@pytest.mark.parametrize("method", list(WORDS))
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


@pytest.mark.parametrize("method", list(WORDS))
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


@pytest.mark.parametrize("method", list(WORDS))
def test_saved_it_is_found_again_by_its_folder(
    family: str, method: Method, tmp_path: Path, wrapped: Any
) -> None:
    policy = wrapped(family, method)
    trained(policy)
    policy.save(tmp_path / "saved")
    config = settings(f"model.path={tmp_path / 'saved'}", "method=full").model
    again = load_policy(config, torch.float32, "sdpa", 0, quantization_of(config), kind=None)
    again.network.eval()
    torch.testing.assert_close(generated(again), generated(policy), atol=1e-6, rtol=0)
    if method != "full":
        (tmp_path / "saved" / base.QUANTIZATION).unlink(missing_ok=True)
        loader = AutoPeftModel if family == "bert" else AutoPeftModelForCausalLM
        plain = loader.from_pretrained(tmp_path / "saved", dtype=torch.float32)
        same = torch.allclose(logits(plain.eval()), generated(policy), atol=1e-6)
        assert same == (method != "qlora")  # plain peft takes the plain base


@pytest.mark.parametrize("method", ["lora", "qlora", "bitfit", "IA3", "VERA"])
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


@pytest.mark.parametrize("method", ADAPTERS)
def test_switched_off_it_is_the_base(
    family: str, method: Method, network_of: Any, wrapped: Any
) -> None:
    policy = wrapped(family, method)
    plain = generated(network_of(family, method))
    trained(policy)
    assert not torch.equal(generated(policy), plain)
    assert policy.holds_base
    with policy.network.disable_adapter():
        assert torch.equal(generated(policy), plain)
    trained(policy)  # it trains on after that
    assert not torch.equal(generated(policy), plain)


@pytest.mark.parametrize("method", list(WORDS))
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
    "IA3": 2 * (32 + 16 + 16 + 32 + 32 + 32 + 48),  # what the attention gives and the MLP is given
    "VERA": 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32 + 7 * 4),
}


@pytest.mark.parametrize("method", list(WORDS))
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
        wrap(policy, words("bitfit").tuning())
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
    config = settings(f"model.path={tmp_path / 'saved'}", "method=full").model
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
        wrap(Policy(tiny("qwen3"), None), words("lora", key).tuning())
    assert str(error.value).startswith(key.split("=")[0])


@pytest.mark.parametrize("method", ADAPTERS)
def test_an_adapter_is_trained_further_in_its_own_shape(
    method: Method, tmp_path: Path, wrapped: Any
) -> None:
    policy = wrapped("qwen3", method)
    names = set(policy.trainable())
    trained(policy)
    policy.save(tmp_path / "saved")
    config = words(method, f"model.path={tmp_path / 'saved'}")
    again = load_policy(config.model, torch.float32, "sdpa", 0, quantization_of(config.model))
    wrap(again, config.tuning())
    again.network.eval()
    assert set(again.trainable()) == names
    torch.testing.assert_close(generated(again), generated(policy), atol=1e-6, rtol=0)
    with pytest.raises(BadInput, match="which is an adapter"):
        wrap(again, words("full").tuning())
    other: Method = "bitfit" if method != "bitfit" else "adapter"
    with pytest.raises(BadInput, match=f"which {other} cannot train further"):
        wrap(again, words(other).tuning())
    if method == "lora":
        with pytest.raises(BadInput, match=r"lora.r: .* r 4, got 8; set lora.r=4"):
            wrap(again, settings("method=lora", "lora.r=8").tuning())


@pytest.mark.parametrize("method", ["full", "lora", "adapter", "bitfit", "IA3"])
def test_next_sentence_prediction_trains_its_head_and_without_it_nothing_does(
    method: Method, network_of: Any
) -> None:
    encoder = ("stages=mlm", "model=bertinho")
    for nsp in (False, True):
        policy = network_of("bert", method)
        wrap(policy, words(method, *encoder, f"mlm.nsp={str(nsp).lower()}").tuning())
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
        wrap(policy, words("bitfit").tuning())
    trainable, total = policy.count()
    layer = 2 * 2 * 768 + 4 * 768 + 3072 + 768  # two norms, attention's four, the MLP's two
    assert trainable == 12 * layer + 2 * 768 + 3 * 768  # after the embeddings, and in the head
    assert 0.0011 < trainable / total < 0.0012


# --- any tuner of peft's ------------------------------------------------------------------------

# What fits the tiny network, for tuners whose own defaults do not.
SMALL = {
    "C3A": "{block_size: 16}",
    "FOURIERFT": "{n_frequency: 20}",
    "MISS": "{r: 4}",
    "PSOFT": "{r: 4}",
    "ROAD": "{group_size: 16}",
    "SHIRA": "{r: 2}",
    "VBLORA": "{vector_length: 16, num_vectors: 20}",
    "WAVEFT": "{n_frequency: 20}",
}
ROUNDED = 2e-6  # of tuners that take a matrix apart and put it together
BESIDE = {"VBLORA": 2e-2}  # begins there, as conf/method/block/peft.yaml says


def tuned(kind: str, options: str | None = None, *more: str) -> Any:
    set_options = () if options is None else (f"peft.options={options}",)
    return settings("method=peft", f"peft.type={kind}", *set_options, RATES, *more)


@pytest.mark.filterwarnings("ignore")  # tuners' own: of CUDA, of what cannot be merged
@pytest.mark.parametrize("kind", tuners.types())
def test_every_type_that_is_offered_can_be_trained(
    kind: str, tmp_path: Path, network_of: Any
) -> None:
    policy = network_of("qwen3", None)
    plain = generated(policy)
    start_logps = policy.logps(BATCH).detach()
    config = tuned(kind, SMALL.get(kind))
    wrap(policy, config.tuning())
    policy.network.eval()
    near = BESIDE.get(kind, ROUNDED)
    torch.testing.assert_close(generated(policy), plain, atol=near, rtol=0)
    start, before = policy.state(), generated(policy)
    assert all(policy.network.base_model.prefix in name for name in start)
    trained(policy)
    for name, parameter in policy.trainable().items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert not torch.equal(generated(policy), before)
    under = policy.under(start, lambda: policy.logps(BATCH))
    torch.testing.assert_close(under, start_logps, atol=near, rtol=0)
    with policy.network.disable_adapter():
        assert torch.equal(generated(policy), plain)
    assert list(policy.trainable()) == list(start)
    assert policy.holds_base
    policy.save(tmp_path / "saved")
    torch.manual_seed(77)  # nothing that was drawn is drawn again
    again = PeftModel.from_pretrained(network_of("qwen3", None).model, tmp_path / "saved").eval()
    again.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits(again), generated(policy), atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
@pytest.mark.parametrize("kind", ["IA3", "VERA", "LN_TUNING"])
def test_on_a_base_in_bf16_it_trains_in_fp32(kind: str, family: str) -> None:
    policy = Policy(tiny(family).to(torch.bfloat16), None)
    wrap(policy, tuned(kind).tuning())
    with Machine("cpu", "bf16-mixed", "bf16", "sdpa", 1).autocast():
        (-policy.logps(BATCH).sum()).backward()
    for name, parameter in policy.trainable().items():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is not None, name


def test_every_type_of_peft_is_offered_or_has_a_reason() -> None:
    for kind in PEFT_TYPE_TO_CONFIG_MAPPING:
        if kind.value not in tuners.types():
            with pytest.raises(BadInput, match=f"peft.type: {kind.value} .*; expected ADAMSS"):
                wrap(Policy(tiny("qwen3"), None), tuned(kind.value).tuning())


def test_ia3_scales_the_mlp_at_its_entry(family: str, wrapped: Any) -> None:
    layers = dict(wrapped(family, "IA3").model.named_modules())
    scaled = {n: m.is_feedforward for n, m in layers.items() if hasattr(m, "is_feedforward")}
    assert len(scaled) == {"gpt2": 8, "bert": 13}.get(family, 14)
    for name, feedforward in scaled.items():
        mlp = ".mlp." in name or name.endswith(("intermediate.dense", "output.dense"))
        assert feedforward == (mlp and ".attention." not in name), name


def test_ia3_scales_only_the_layers_it_is_given(wrapped: Any) -> None:
    policy = wrapped("qwen3", "IA3", "peft.options={target_modules: [k_proj, down_proj]}")
    ends = {name.split(".")[-3] for name in policy.trainable()}
    assert ends == {"k_proj", "down_proj"}
    assert policy.model.model.layers[0].mlp.down_proj.is_feedforward
    assert not policy.model.model.layers[0].self_attn.k_proj.is_feedforward


def test_options_reach_peft() -> None:
    policy = Policy(tiny("qwen3"), None)
    options = "{r: 3, d_initial: 0.5, layers_to_transform: [1]}"
    wrap(policy, tuned("VERA", options).tuning())
    layer = policy.model.model.layers[1].self_attn.q_proj
    assert torch.equal(layer.vera_lambda_d["default"], torch.full((3,), 0.5))
    assert isinstance(policy.model.model.layers[0].self_attn.q_proj, nn.Linear)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("ia3", None, "peft.type: peft has no type ia3; did you mean IA3.; expected ADAMSS"),
        ("VERRA", None, "peft.type: peft has no type VERRA; did you mean .*VERA"),
        ("PREFIX_TUNING", None, "peft.type: PREFIX_TUNING puts tokens before the sequence"),
        ("PROMPT_TUNING", None, "packed trees have no place"),
        ("P_TUNING", None, "packed trees have no place"),
        ("BITFIT", None, "peft.type: BITFIT is method=bitfit"),
        ("VERA", "{rank: 3}", "peft.options: VERA has no option rank; .* of bias, d_initial"),
        ("LORA", "{init_lora_weights: pissa_niter_4}", "pissa_niter_4 draws at random .* pissa"),
        ("VERA", "{vera_dropot: 0.1}", "did you mean vera_dropout"),
        ("VERA", "{inference_mode: true}", "VERA has no option inference_mode"),
        ("VERA", "{target_modules: [q_prj]}", "names q_prj, .* did you mean q_proj"),
        ("VERA", "{target_modules: [q_proj, v_prj]}", "target_modules names v_prj"),
        ("VERA", "{target_modules: q_prj}", "peft: peft cannot put VERA with these options"),
        ("VERA", "{target_modules: [q_proj, lm_head]}", "peft: VERA .* changes the head"),
        ("LORA", "{target_modules: [q_proj, embed_tokens]}", "LORA .* changes the head or the emb"),
        ("VERA", "{r: 0}", "peft: peft cannot put VERA with these"),
        ("FOURIERFT", None, "peft: peft cannot put FOURIERFT .*n_frequency"),
        ("IA3", "{target_modules: [k_proj], feedforward_modules: [up_proj]}", "subset of"),
    ],
)
def test_what_peft_has_not_is_a_sentence(kind: str, options: str | None, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        wrap(Policy(tiny("qwen3"), None), tuned(kind, options).tuning())


def test_a_tuner_that_finds_nothing_to_train_is_refused() -> None:
    with pytest.raises(BadInput, match="OSF finds nothing in the model to train"):
        wrap(Policy(tiny("gpt2"), None), tuned("OSF").tuning())


def test_an_adapter_is_trained_further_with_the_options_it_has(
    tmp_path: Path, wrapped: Any
) -> None:
    wrapped("qwen3", "VERA").save(tmp_path)
    policy = load_policy(tuned("VERA", None, f"model.path={tmp_path}").model, torch.float32, "sdpa")
    for options in (None, "{r: 4}", "{target_modules: all-linear}", "{target_modules: [q_proj]}"):
        tuning = tuned("VERA", options).tuning()
        if options == "{target_modules: [q_proj]}":
            with pytest.raises(BadInput, match=r"peft.options: .* target_modules .*; leave it out"):
                wrap(policy, tuning)
        else:
            wrap(policy, tuning)
    with pytest.raises(BadInput, match=r"peft.options: .* with r 4, got 8; leave it out"):
        wrap(policy, tuned("VERA", "{r: 8}").tuning())
    with pytest.raises(BadInput, match="of the kind vera, which peft cannot train further"):
        wrap(policy, tuned("IA3").tuning())


def test_a_lora_adapter_is_trained_further_with_its_layers_named(
    tmp_path: Path, wrapped: Any
) -> None:
    named = "lora.target_modules=[q_proj]"
    wrapped("qwen3", "lora", named).save(tmp_path)
    config = words("lora", named, f"model.path={tmp_path}")
    wrap(load_policy(config.model, torch.float32, "sdpa"), config.tuning())


@pytest.mark.parametrize(
    ("kind", "options", "held"),
    [
        ("LORA", "{init_lora_weights: pissa}", False),
        ("LORA", "{init_lora_weights: gaussian}", True),
        ("LOHA", "{init_weights: false}", True),
        ("VERA", "{r: 4, bias: all}", False),
    ],
)
def test_it_is_known_whether_the_base_is_held(
    kind: str, options: str, held: bool, network_of: Any
) -> None:
    policy, config = (
        network_of("gpt2" if "bias" in options else "qwen3", None),
        tuned(kind, options),
    )
    plain = generated(policy)
    wrap(policy, config.tuning())
    policy.network.eval()
    trained(policy)
    with policy.network.disable_adapter():
        assert torch.equal(generated(policy), plain) == held
    assert policy.holds_base == config.peft.keeps_base == held


@pytest.mark.parametrize(("kind", "swapped"), [("IA3", True), ("VERA", False)])
def test_an_adapter_with_a_drawn_part_is_put_beside_the_other(
    kind: str, swapped: bool, tmp_path: Path, wrapped: Any
) -> None:
    """Other tensors in one network make another adapter only where all that differs is trained."""
    policy = wrapped("qwen3", kind)
    for name in ("one", "two"):
        trained(policy)
        policy.save(tmp_path / name)
    other = tuned(kind, None, f"model.path={tmp_path / 'one'}").model
    state = base._same_adapter(policy, str(tmp_path / "two"), other)
    assert (state is not None) == swapped


@pytest.mark.parametrize("option", ["rank_dropout", "module_dropout"])
def test_dropout_of_a_tuner_can_be_switched_off(option: str, network_of: Any) -> None:
    policy = network_of("qwen3", None)
    wrap(policy, tuned("LOHA", f"{{init_weights: false, {option}: 0.5}}").tuning())

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return logits(policy.network.train())

    policy.model.set_attn_implementation("sdpa")
    assert not torch.equal(drawn(0), drawn(1))
    with policy.without_dropout():
        assert torch.equal(drawn(0), drawn(1))
    assert not torch.equal(drawn(0), drawn(1))


def test_every_method_names_a_function_that_is_there() -> None:
    for name, traits in METHODS.items():
        assert callable(load_function(traits.function, "method", name))
