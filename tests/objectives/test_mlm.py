"""Stage `mlm`: masks, losses, pairs, resuming, and what an encoder makes of a question."""

import dataclasses
import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM, BertForPreTraining, BertTokenizerFast

from drbode import config, train
from drbode.config import BadInput, MlmConfig
from drbode.data.masking import (
    MaskedSteps,
    Masker,
    exchanged,
    held_out_batches,
    masker,
    plain,
)
from drbode.data.prompts import Renderer
from drbode.data.rows import Text, parse_question
from drbode.data.splits import Ledger, Split
from drbode.evaluation import benchmarks
from drbode.models.base import Policy, load_policy, shipped_folder
from drbode.models.machine import Machine
from drbode.models.methods import wrap
from drbode.models.pseudo import pseudo_logps
from drbode.objectives.logps import token_logps
from drbode.objectives.mlm import mask_tokens, mlm_loss, nsp_loss
from drbode.training.context import StageContext
from drbode.training.mlm import MLMModule
from drbode.training.stages import run_stage
from drbode.trees import Completion, Forest, Tree
from tests.conftest import VOCABULARY, run_context, settings, tiny

MASK, START, END = 96, 95, 94
SPECIAL = {MASK, START, END, 93}
ORDINARY = torch.tensor([i for i in range(VOCABULARY) if i not in SPECIAL])
CPU = Machine("cpu", "32-true", "fp32", "sdpa", 1)
MASKER = Masker(0.15, False, MASK, ORDINARY, torch.zeros(VOCABULARY, dtype=torch.long))


class Vocabulary:
    """What is asked of a tokenizer, with the ids above."""

    mask_token_id, cls_token_id, sep_token_id = MASK, START, END
    all_special_ids = sorted(SPECIAL)

    def __len__(self) -> int:
        return VOCABULARY

    def convert_ids_to_tokens(self, ids: Any) -> list[str]:
        return [f"w{i}" for i in ids]


def block(**changes: Any) -> MlmConfig:
    plain = settings("stages=mlm", "model=bertinho", "method=full").mlm
    small = {
        "learning_rate": 3e-3,
        "optimizer": "adamw",
        "global_batch_size": 8,
        "epochs": 2.0,
        "validate_every": None,
        "checkpoints": 0,
        "warmup_ratio": 0.0,
        "pseudo_perplexity_rows": 2,
    }
    return dataclasses.replace(plain, **small | changes)


def rows(count: int, segments: int, seed: int = 0) -> Forest:
    drawn = torch.Generator().manual_seed(seed)

    def segment() -> Completion:
        n = int(torch.randint(3, 9, (1,), generator=drawn))
        ids = ORDINARY[torch.randint(len(ORDINARY), (n,), generator=drawn)].tolist()
        return Completion([*ids, END], [True] * n + [False])

    return Forest(Tree([START], [segment() for _ in range(segments)]) for _ in range(count))


def policy(method: Any = "full", nsp: bool = False) -> Policy:
    made = Policy(tiny("bert"), Vocabulary())
    words = ["stages=mlm", "model=bertinho", f"method={method}", f"mlm.nsp={nsp}"]
    wrap(made, settings(*words).tuning())
    return made


def module(made: Policy, stage: MlmConfig) -> MLMModule:
    common: dict[str, Any] = {"steps": 1, "step_offset": 0, "machine": CPU, "end": END}
    return MLMModule(made, "mlm", stage, texts=[], **common)


# --- masks --------------------------------------------------------------------------------------


def test_masks_are_drawn_80_10_10_and_never_on_what_is_special() -> None:
    ids = ORDINARY.repeat(220)[:20_000]
    ids[::10] = END
    units = torch.where(ids == END, -1, (ids != END).long().cumsum(0) - 1)
    corrupted, chosen = mask_tokens(
        ids, units, 0.15, MASK, ORDINARY, torch.Generator().manual_seed(0)
    )
    n = len(chosen)
    assert n in (2700, 2701)  # 15 % of 18 000
    assert not (ids[chosen] == END).any()
    assert len(set(chosen.tolist())) == n
    untouched = torch.ones(len(ids), dtype=torch.bool)
    untouched[chosen] = False
    assert torch.equal(corrupted[untouched], ids[untouched])
    replaced = int((corrupted[chosen] == MASK).sum())
    stays = int((corrupted[chosen] == ids[chosen]).sum())
    # A random token is the one that was there once in as many times as there are tokens.
    same = 0.1 / len(ORDINARY)
    for found, share in ((replaced, 0.8), (stays, 0.1 + same), (n - replaced - stays, 0.1 - same)):
        assert abs(found - n * share) < 4 * math.sqrt(n * share * (1 - share))
    drawn = set(corrupted[chosen].tolist()) - {MASK}
    assert drawn <= set(ORDINARY.tolist())
    assert len(drawn) > 80


def test_the_mean_of_the_masked_share_is_the_probability_also_in_short_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    ids, units = torch.arange(10), torch.arange(10)
    drawn = [mask_tokens(ids, units, 0.25, MASK, ORDINARY, generator).chosen for _ in range(2000)]
    counts = Counter(map(len, drawn))
    assert set(counts) == {2, 3}
    assert abs(counts[3] - 1000) < 4 * math.sqrt(500)
    places = torch.bincount(torch.cat(drawn), minlength=10)
    assert ((places - 500).abs() < 4 * math.sqrt(2000 * 0.25 * 0.75)).all()
    one = [mask_tokens(ids[:1], units[:1], 0.01, MASK, ORDINARY, generator) for _ in range(20)]
    assert all(len(masked.chosen) == 1 for masked in one)
    with pytest.raises(ValueError, match="no token that may be masked"):
        mask_tokens(ids, torch.full((10,), -1), 0.15, MASK, ORDINARY, generator)


def test_whole_words_are_masked_whole() -> None:
    goes_on = torch.zeros(VOCABULARY, dtype=torch.long)
    goes_on[[7, 8]] = 1
    whole = dataclasses.replace(MASKER, whole_words=True, goes_on=goes_on)
    ids = torch.tensor([START, 1, 7, 8, 2, 7, END, 7, 3, END])
    maskable = [False, True, True, True, True, True, False, True, True, False]
    assert whole.units(ids, maskable).tolist() == [-1, 0, 0, 0, 1, 1, -1, 2, 3, -1]
    assert MASKER.units(ids, maskable).tolist() == [-1, 0, 1, 2, 3, 4, -1, 5, 6, -1]
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        units = whole.units(ids, maskable)
        chosen = mask_tokens(ids, units, 0.5, MASK, ORDINARY, generator).chosen
        words = set(units[chosen].tolist())
        assert chosen.tolist() == [i for i, unit in enumerate(units.tolist()) if unit in words]


def test_the_pieces_of_a_word_are_those_that_wordpiece_marks() -> None:
    tokenizer = AutoTokenizer.from_pretrained(shipped_folder("bertinho"))
    made = masker(tokenizer, block(whole_words=True))
    ids = torch.tensor(tokenizer("a febre xyw pele.", add_special_tokens=False)["input_ids"])
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert pieces == ["a", "febre", "x", "##y", "##w", "pele", "."]
    assert made.units(ids, [True] * 7).tolist() == [0, 1, 2, 2, 2, 3, 4]
    assert not set(made.ordinary.tolist()) & set(tokenizer.all_special_ids)


# --- losses -------------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    logps = token_logps(torch.zeros(5, 3), torch.randn(8, 3), torch.arange(5))
    torch.testing.assert_close(mlm_loss(logps) / 5, torch.tensor(math.log(8)))
    nothing = nsp_loss(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    torch.testing.assert_close(nothing / 4, torch.tensor(math.log(2)))
    # Logits 0 and ln 3, so probabilities 1/4 and 3/4.
    one = nsp_loss(torch.tensor([[0.0, math.log(3)]]), torch.tensor([1]))
    torch.testing.assert_close(one, torch.tensor(math.log(4 / 3)))


@pytest.mark.parametrize("nsp", [False, True])
def test_the_loss_equals_that_of_transformers_on_the_same_masked_batch(nsp: bool) -> None:
    """BertForPreTraining, padded, with attention mask, token types and both labels."""
    stage = block(nsp=nsp, max_tokens=40)
    trees = rows(8, segments=2 if nsp else 1)
    made = policy(nsp=nsp)
    made.network.eval()
    step = next(iter(MaskedSteps(trees, stage, 0, MASKER)))
    assert len(step.batches) > 1
    ours = module(made, stage)
    with torch.no_grad():
        found = sum(ours.sums(b).loss for b in step.batches) / sum(map(ours.units, step.batches))
    inputs: dict[str, list[list[int]]] = {"ids": [], "types": [], "labels": []}
    follows: list[int] = []
    for masked in step.batches:
        labels = torch.full_like(masked.batch.input_ids, -100)
        labels[masked.batch.sources] = masked.batch.targets
        at = 0
        for _, length in masked.batch.layout:
            part = slice(at, at + length)
            inputs["ids"].append(masked.batch.input_ids[part].tolist())
            inputs["types"].append(masked.segments[part].tolist())
            inputs["labels"].append(labels[part].tolist())
            at += length
        follows += masked.follows.tolist()
    width = max(map(len, inputs["ids"]))
    mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids in inputs["ids"]]
    padded = {
        name: torch.tensor([own + [fill] * (width - len(own)) for own in inputs[name]])
        for name, fill in (("ids", 0), ("types", 0), ("labels", -100))
    }
    options = {"attention_mask": torch.tensor(mask), "token_type_ids": padded["types"]}
    with made.generating() as network, torch.no_grad():
        if nsp:
            assert sorted(follows) == [0] * 4 + [1] * 4
            assert padded["types"].sum() > 0
            theirs = network(
                padded["ids"],
                **options,
                labels=padded["labels"],
                next_sentence_label=torch.tensor(follows),
            ).loss
        else:
            alone = BertForMaskedLM(network.config)
            alone.load_state_dict(network.state_dict(), strict=False)
            theirs = alone.eval()(padded["ids"], **options, labels=padded["labels"]).loss
    torch.testing.assert_close(found, theirs, atol=1e-5, rtol=0)


def test_gradients_of_a_step_do_not_depend_on_its_micro_batches() -> None:
    gradients = []
    for budget in (10_000, 1):
        stage = block(max_tokens=budget, nsp=True)
        made = policy(nsp=True)
        made.network.eval()
        ours = module(made, stage)
        step = next(iter(MaskedSteps(rows(8, 2), stage, 0, MASKER)))
        units = sum(map(ours.units, step.batches))
        for batch in step.batches:
            (ours.sums(batch).loss / units).backward()
        gradients.append({n: p.grad for n, p in made.trainable().items()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-5, rtol=0, msg=name)


# --- rows ---------------------------------------------------------------------------------------


def test_rows_are_laid_out_as_bert_expects() -> None:
    tokenizer = AutoTokenizer.from_pretrained(shipped_folder("bertinho"))
    text = Text("A dengue ocorre. O exame é a sorologia.", "here")
    for pairs in (False, True):
        (tree,) = Renderer(tokenizer, 64).masked(text, pairs).trees
        assert plain(tree) == tokenizer(text.text)["input_ids"]
        (masked,) = masker(tokenizer, block()).batches(
            [(tree, 0)], 100, torch.Generator().manual_seed(0)
        )
        restored = masked.batch.input_ids.clone()
        restored[masked.batch.sources] = masked.batch.targets
        parts = ("A dengue ocorre.", "O exame é a sorologia.") if pairs else (text.text,)
        expected = tokenizer(*parts)
        assert restored.tolist() == expected["input_ids"]
        assert masked.segments.tolist() == expected["token_type_ids"]
        assert masked.batch.positions.tolist() == list(range(len(restored)))
        assert masked.firsts.tolist() == ([0] if pairs else [])
    (alone,) = Renderer(tokenizer, 64).masked(Text("A dengue ocorre.", "here"), True).trees
    assert len(alone.completions) == 1
    long = Text(" ".join(["A dengue ocorre por picada."] * 9), "here")
    for pairs in (False, True):
        trees = Renderer(tokenizer, 20).masked(long, pairs).trees
        assert max(tree.tokens for tree in trees) <= 20
        inner = [token for tree in trees for token in plain(tree)[1:-1]]
        assert inner == tokenizer(long.text, add_special_tokens=False)["input_ids"]
    assert Renderer(tokenizer, 20).masked(Text(" ", "here"), False).dropped == "no token to mask"


def test_half_of_the_pairs_get_anothers_second_and_every_second_is_seen_once() -> None:
    trees = Forest([*rows(9, 2), *rows(4, 1)])
    partners = exchanged(trees, "0 0")
    assert len(partners) == 4
    assert set(partners) == set(partners.values())
    assert all(partner != index for index, partner in partners.items())
    assert all(index < 9 for index in partners)
    assert partners != exchanged(trees, "0 1")
    assert exchanged(rows(3, 2), "0 0") == {}  # nobody to exchange with
    stage = block(nsp=True, epochs=2.0, global_batch_size=5)
    steps = list(MaskedSteps(trees, stage, 0, MASKER))
    epochs = (steps[:3], steps[3:])
    for epoch in epochs:
        assert sum(int(b.follows.sum()) for step in epoch for b in step.batches) == 4
        assert sum(len(b.follows) for step in epoch for b in step.batches) == 9
        seen = Counter(t for step in epoch for b in step.batches for t in whole(b))
        assert seen == Counter(t for tree in trees for t in [START, *every(tree)])


def whole(masked: Any) -> list[int]:
    ids = masked.batch.input_ids.clone()
    ids[masked.batch.sources] = masked.batch.targets
    found: list[int] = ids.tolist()
    return found


def every(tree: Tree) -> list[int]:
    return [token for completion in tree.completions for token in completion.ids]


def test_masks_are_new_every_epoch_and_follow_from_the_seed() -> None:
    trees, stage = rows(8, 1), block(global_batch_size=8)

    def masked(seed: int, start: int = 0) -> list[dict[tuple[int, ...], set[int]]]:
        loader = MaskedSteps(trees, stage, seed, MASKER)
        loader.start = start
        found = []
        for step in loader:
            (drawn,) = step.batches
            ids, at, own = whole(drawn), 0, {}
            chosen = set(drawn.batch.sources.tolist())
            for _, length in drawn.batch.layout:
                row = tuple(ids[at : at + length])
                own[row] = {i - at for i in chosen if at <= i < at + length}
                at += length
            found.append(own)
        return found

    first, second = masked(0)
    assert first.keys() == second.keys()
    assert first != second
    assert masked(0) == [first, second]
    assert masked(0, start=1) == [second]
    assert masked(1) != [first, second]
    held_out = [held_out_batches(trees, 4096, MASKER, 0)[0].batch.sources for _ in range(2)]
    assert torch.equal(*held_out)


# --- training -----------------------------------------------------------------------------------


def run(made: Policy, stage: MlmConfig, folder: Path, held_out: bool = True) -> Any:
    segments = 2 if stage.nsp else 1
    validation = Split(rows(6, segments, seed=1), Ledger()) if held_out else None
    return run_stage(
        StageContext(
            made,
            "mlm",
            stage,
            Split(rows(20, segments), Ledger()),
            validation,
            run_context(folder),
            folder=folder / "checkpoints",
            step_offset=0,
        )
    )[0]


def test_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With BERT's own dropout, masks and pairs of later epochs."""
    stage = block(nsp=True, epochs=4, checkpoints=1, checkpoint_every=5, validate_every=4)
    straight, broken, again = (policy(nsp=True) for _ in range(3))
    expected = run(straight, stage, tmp_path / "straight")
    assert {"mlm", "nsp", "nsp_accuracy", "pseudo_perplexity"} == set(expected.measures)
    assert expected.validation_loss == pytest.approx(
        expected.measures["mlm"] + expected.measures["nsp"], abs=1e-5
    )
    sums = MLMModule.sums

    def stops(self: Any, batch: Any) -> Any:
        if self.progress.steps == 7:
            raise RuntimeError("the power goes out")
        return sums(self, batch)

    monkeypatch.setattr(MLMModule, "sums", stops)
    with pytest.raises(RuntimeError, match="power"):
        run(broken, stage, tmp_path / "resumed")
    monkeypatch.setattr(MLMModule, "sums", sums)
    found = run(again, stage, tmp_path / "resumed")
    assert (found.steps, found.tokens) == (expected.steps, expected.tokens) == (12, found.tokens)
    assert found.measures == expected.measures
    for name, tensor in straight.state().items():
        assert torch.equal(again.state()[name], tensor), name


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    """A row of one token over and over: what is masked stands beside it."""
    made = policy()
    one = [Tree([START], [Completion([i] * 8 + [END], [True] * 8 + [False])]) for i in range(40)]
    split = Split(Forest(one), Ledger())
    result = run_stage(
        StageContext(
            made,
            "mlm",
            block(epochs=30, learning_rate=1e-2),
            split,
            split,
            run_context(tmp_path),
            folder=tmp_path / "checkpoints",
            step_offset=0,
        )
    )[0]
    assert result.validation_loss is not None
    assert result.validation_loss < 1 < math.log(VOCABULARY)


# --- pseudo-log-likelihood ----------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [1, 30, 4096])
def test_pseudo_logps_are_those_of_one_mask_at_a_time(max_tokens: int) -> None:
    made = policy()
    sequences = [([START, 5, 6, 7, END], [1, 3]), ([START, 9, END], []), ([START, 8, 1, END], [2])]
    found = pseudo_logps(made, sequences, max_tokens)
    assert [len(own) for own in found] == [2, 0, 1]
    assert made.network.training  # as it was
    with made.generating() as network, torch.no_grad():
        for (ids, places), own in zip(sequences, found, strict=True):
            for place, logp in zip(places, own, strict=True):
                masked = torch.tensor([ids])
                masked[0, place] = MASK
                logits = network(masked).prediction_logits[0, place].log_softmax(-1)
                assert logp == pytest.approx(float(logits[ids[place]]), abs=1e-5)


QUESTION = {
    "origem": "x",
    "prova": "y",
    "numero": 1,
    "enunciado": "Qual é o agente da dengue?",
    "alternativas": {"A": "a picada", "B": "o vírus da água", "C": "a mosca"},
    "resposta": "B",
}


@cache
def bertinho() -> Policy:
    words = ("stages=mlm", "model=bertinho", "method=full")
    return load_policy(settings(*words).model, torch.float32, "sdpa", 0, kind="encoder")


def test_an_encoder_answers_by_the_mean_logp_of_an_alternative() -> None:
    made = bertinho()
    with torch.no_grad():  # random weights find all alike
        for parameter in made.network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(0))
    question = parse_question(QUESTION, "here")
    benchmark = settings("stages=mlm", "model=bertinho", "method=full").benchmark
    tokenizer = made.tokenizer
    for limit in (64, 12):
        (answer,) = benchmarks.answer(made, Renderer(tokenizer, limit), [question], benchmark, CPU)
        assert answer.cut == (limit == 12)
        assert answer.scores is not None
        for letter, text in question.alternatives.items():
            own = tokenizer(text, add_special_tokens=False)["input_ids"]
            stem = tokenizer(question.stem, add_special_tokens=False)["input_ids"]
            room = (
                limit
                - 2
                - max(
                    len(tokenizer(t, add_special_tokens=False)["input_ids"])
                    for t in question.alternatives.values()
                )
            )
            ids = [tokenizer.cls_token_id, *stem[-room:], *own, tokenizer.sep_token_id]
            places = range(len(ids) - 1 - len(own), len(ids) - 1)
            (logps,) = pseudo_logps(made, [(ids, places)], 4096)
            assert answer.scores[letter] == pytest.approx(sum(logps) / len(own), abs=1e-5)
        assert answer.letter == max(answer.scores, key=answer.scores.__getitem__)
    with pytest.raises(BadInput, match="too long for the model's 5 tokens"):
        benchmarks.answer(made, Renderer(tokenizer, 5), [question], benchmark, CPU)


# --- doors --------------------------------------------------------------------------------------


def load(*words: str) -> config.TrainConfig:
    return config.load(config.compose("train", words), words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stages=mlm", "mlm.learning_rate=1"], "model.path: bodinho is a decoder"),
        (["model=bertinho", "sft.learning_rate=1"], "model.path: bertinho is an encoder"),
        (["stages=[mlm,sft]", "model=bertinho"], "stages: mlm trains an encoder and sft a decoder"),
        (["stages=mlm", "model=bertinho", "method=qlora"], "method: stage mlm trains by full"),
        (["stages=mlm", "model=bertinho", "benchmark=letter"], "expected alternatives, got letter"),
        (
            ["stages=mlm", "model=bertinho", "model.chat_template=x.jinja"],
            "model.chat_template: has no effect with stage mlm",
        ),
        (["stages=mlm", "model=bertinho", "mlm.mask_probability=0"], "above 0"),
        (["mlm.nsp=true"], "does not read mlm"),
    ],
)
def test_what_does_not_go_together_is_said_before_a_model_is_loaded(
    words: list[str], said: str
) -> None:
    with pytest.raises(BadInput) as caught:
        load(*words)
    assert said in str(caught.value)


def test_bertimbau_is_loaded_from_the_hub_by_default() -> None:
    model = load("stages=mlm", "model=bertimbau").model
    assert (model.path, model.init) == ("neuralmind/bert-base-portuguese-cased", "pretrained")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A folder of the form that the hub has BERTimbau in: both heads, a cased vocabulary."""
    words = ["a", "o", "dengue", "##s", "ocorre", ".", "Á"]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    vocabulary = {name: i for i, name in enumerate(names)}
    BertTokenizerFast(vocab=vocabulary, do_lower_case=False).save_pretrained(tmp_path / "bert")
    network = tiny("bert")
    network.config.architectures = ["BertForPreTraining"]
    network.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_copy_of_bertimbau_is_loaded_with_its_heads(local: Path, tmp_path: Path) -> None:
    model = load("stages=mlm", "model=bertimbau", f"model.path={local}").model
    made = load_policy(model, torch.float32, "sdpa", kind="encoder")
    assert isinstance(made.network, BertForPreTraining)
    for name, tensor in tiny("bert").state_dict().items():
        assert torch.equal(made.network.state_dict()[name], tensor), name
    assert made.tokenizer.convert_ids_to_tokens(made.tokenizer("Á dengues")["input_ids"]) == [
        "[CLS]", "Á", "dengue", "##s", "[SEP]",
    ]  # fmt: skip
    with pytest.raises(BadInput, match="is an encoder"):
        load_policy(model, torch.float32, "sdpa")
    tiny("qwen3").save_pretrained(tmp_path / "qwen")
    made.tokenizer.save_pretrained(tmp_path / "qwen")
    decoder = dataclasses.replace(model, path=str(tmp_path / "qwen"))
    with pytest.raises(BadInput, match="is a decoder"):
        load_policy(decoder, torch.float32, "sdpa", kind="encoder")
    network = tiny("bert")
    network.config.is_decoder = True
    network.save_pretrained(local)
    with pytest.raises(BadInput, match="set up as a decoder"):
        load_policy(model, torch.float32, "sdpa", kind="encoder")


def test_the_shipped_encoder_is_small_and_drawn_from_the_seed() -> None:
    folder = shipped_folder("bertinho")
    assert sum(f.stat().st_size for f in folder.iterdir()) < 200_000
    model = load("stages=mlm", "model=bertinho").model
    weights = [
        load_policy(model, torch.float32, "sdpa", seed, kind="encoder").model.cls.seq_relationship
        for seed in (3, 3, 4)
    ]
    assert torch.equal(weights[0].weight, weights[1].weight)
    assert not torch.equal(weights[0].weight, weights[2].weight)


def test_the_door_takes_a_copy_of_bertimbau_through_mlm(local: Path, tmp_path: Path) -> None:
    rows = [{"text": f"A dengue{' dengue' * n} ocorre. Á dengues o."} for n in range(8)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (
        *("stages=mlm", "model=bertimbau", f"model.path={local}", "method=lora", "lora.r=4"),
        *("mlm.nsp=true", "mlm.whole_words=true", "mlm.steps=2", "mlm.data.validation_share=0.25"),
        *(f"mlm.data.path={tmp_path / 'texts.jsonl'}", f"output_dir={tmp_path / 'out'}"),
        *("benchmark.questions=3", "forgetting.questions_path=null", "logger=csv"),
        *("trainer.progress=false", "trainer.threads=1"),
    )
    train.train(load(*words), list(words))
    (path,) = (tmp_path / "out").glob("*/record.json")
    record = json.loads(path.read_text())
    stage = record["stages"]["mlm"]
    assert record["status"] == "finished"
    assert set(stage["measures"]) == {"mlm", "nsp", "nsp_accuracy", "pseudo_perplexity"}
    assert stage["summary"]["questions"] == 3
    assert record["data"]["stages"]["mlm"]["train"]["ends_supervised"] is None
    # The folder it leaves loads again, as an encoder, with what was trained.
    again = load(*words[:3], f"model.path={path.parent / 'mlm'}", "method=lora", "lora.r=4")
    made = load_policy(again.model, torch.float32, "sdpa", kind="encoder")
    names = [name for name, _ in made.network.named_parameters()]
    assert any("seq_relationship.lora_B" in name for name in names)
