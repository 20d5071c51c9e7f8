import math
from collections import defaultdict
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer

from drbode.config import LOSSES, load_function
from drbode.objectives.dpo import Loss, Pairs, dpo_loss, mean_nll, pair_metrics

KINDS = list(LOSSES)
BETA = 0.25


def named(kind: str) -> Loss:
    """The function of a name."""
    return load_function(LOSSES[kind].function, "dpo.loss", "a loss")


def pairs(count: int = 6, trained: bool = False) -> Pairs:
    torch.manual_seed(2)
    drawn = [-20 * torch.rand(count, dtype=torch.float64) for _ in range(4)]
    for logps in drawn[:2]:
        logps.requires_grad_(trained)
    return Pairs(*drawn, torch.randint(1, 9, (count,)), torch.randint(1, 9, (count,)))


def one(
    policy: tuple[float, float], reference: tuple[float, float], tokens: tuple[int, int]
) -> Pairs:
    chosen, rejected = tokens
    return Pairs(
        *(torch.tensor([logps]) for logps in (*policy, *reference)),
        torch.tensor([chosen]),
        torch.tensor([rejected]),
    )


@pytest.mark.parametrize(
    ("kind", "label_smoothing", "expected"),
    [
        # Logratios -5 + 9 = 4 of 2 tokens and -10 + 6 = -4 of 8: margin 8, beta margin 2,
        # mean margin 2 + 0.5 = 2.5; the policy alone: -5 + 10 = 5, beta 5 = 1.25.
        ("sigmoid", 0.0, math.log(1 + math.exp(-2))),
        ("sigmoid", 0.1, 0.9 * math.log(1 + math.exp(-2)) + 0.1 * math.log(1 + math.exp(2))),
        ("reference_free", 0.0, math.log(1 + math.exp(-1.25))),
        ("ipo", 0.0, 0.25),  # (2.5 - 1 / 0.5)^2
        ("ipo", 0.5, 10.25),  # half of 0.5^2 and of 4.5^2
        ("hinge", 0.0, 0.0),  # 1 - 2 is negative
        ("hinge", 0.1, 0.3),  # a tenth of 1 + 2
    ],
)
def test_by_hand(kind: str, label_smoothing: float, expected: float) -> None:
    pair = one(policy=(-5.0, -10.0), reference=(-9.0, -6.0), tokens=(2, 8))
    found = dpo_loss(named(kind), pair, BETA, label_smoothing)
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_the_hinge_by_hand_where_it_is_open() -> None:
    # Margin (-5 + 6) - (-4 + 4) = 1: 1 - 0.25.
    pair = one(policy=(-5.0, -4.0), reference=(-6.0, -4.0), tokens=(1, 1))
    torch.testing.assert_close(dpo_loss(named("hinge"), pair, BETA), torch.tensor([0.75]))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    ("kind", "expected"), [("sigmoid", math.log(2)), ("ipo", 1 / (4 * BETA**2)), ("hinge", 1.0)]
)
def test_where_the_policy_is_the_reference(
    kind: str, expected: float, label_smoothing: float
) -> None:
    start = pairs()
    start = replace(
        start, reference_chosen=start.policy_chosen, reference_rejected=start.policy_rejected
    )
    found = dpo_loss(named(kind), start, BETA, label_smoothing)
    torch.testing.assert_close(found, torch.full_like(found, expected))
    metrics = pair_metrics(start, BETA)
    assert not metrics.reward_margin.any()
    assert not metrics.reward_accuracy.any()


def test_the_first_gradient_of_sigmoid_is_half_of_beta() -> None:
    start = pairs(trained=True)
    start = replace(
        start,
        reference_chosen=start.policy_chosen.detach(),
        reference_rejected=start.policy_rejected.detach(),
    )
    dpo_loss(named("sigmoid"), start, BETA).sum().backward()
    torch.testing.assert_close(
        start.policy_chosen.grad, torch.full_like(start.policy_chosen, -BETA / 2)
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_in_float64(kind: str, label_smoothing: float) -> None:
    case = pairs(trained=True)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        moved = replace(case, policy_chosen=chosen, policy_rejected=rejected)
        return dpo_loss(named(kind), moved, BETA, label_smoothing)

    assert torch.autograd.gradcheck(loss, (case.policy_chosen, case.policy_rejected))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_raises_the_chosen_and_lowers_the_rejected(kind: str) -> None:
    pair = one(policy=(-5.0, -5.0), reference=(-5.0, -5.0), tokens=(2, 3))
    pair.policy_chosen.requires_grad_()
    pair.policy_rejected.requires_grad_()
    dpo_loss(named(kind), pair, BETA).sum().backward()
    assert pair.policy_chosen.grad is not None
    assert pair.policy_rejected.grad is not None
    assert pair.policy_chosen.grad < 0 < pair.policy_rejected.grad


@pytest.mark.parametrize("kind", KINDS)
def test_each_pair_has_its_own_loss(kind: str) -> None:
    case = pairs()
    order = torch.randperm(len(case.policy_chosen))
    permuted = Pairs(*(getattr(case, field.name)[order] for field in fields(case)))
    found, expected = (
        dpo_loss(named(kind), permuted, BETA, 0.1),
        dpo_loss(named(kind), case, BETA, 0.1),
    )
    assert torch.equal(found, expected[order])


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "reference_free"])
def test_what_both_completions_gain_alike_changes_nothing(kind: str) -> None:
    case = pairs()
    moved = replace(
        case, policy_chosen=case.policy_chosen + 3, policy_rejected=case.policy_rejected + 3
    )
    torch.testing.assert_close(
        dpo_loss(named(kind), moved, BETA), dpo_loss(named(kind), case, BETA)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_counts_but_for_reference_free(kind: str) -> None:
    case = pairs()
    moved = replace(case, reference_chosen=case.reference_chosen - 1)
    unmoved = torch.equal(dpo_loss(named(kind), moved, BETA), dpo_loss(named(kind), case, BETA))
    assert unmoved != LOSSES[kind].needs_reference


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_label_half_of_the_time_has_nothing_to_teach(kind: str) -> None:
    case = pairs()
    swapped = Pairs(
        case.policy_rejected,
        case.policy_chosen,
        case.reference_rejected,
        case.reference_chosen,
        case.rejected_tokens,
        case.chosen_tokens,
    )
    torch.testing.assert_close(
        dpo_loss(named(kind), case, BETA, 0.5), dpo_loss(named(kind), swapped, BETA, 0.5)
    )


def test_mean_nll_by_hand() -> None:
    found = mean_nll(torch.tensor([-6.0, -1.0]), torch.tensor([3, 4]))
    torch.testing.assert_close(found, torch.tensor([2.0, 0.25]))


def test_metrics_by_hand() -> None:
    # The logratios are 4 and -4; then -1 and 1, though the chosen one is the more probable.
    case = Pairs(
        policy_chosen=torch.tensor([-5.0, -2.0], requires_grad=True),
        policy_rejected=torch.tensor([-4.0, -3.0], requires_grad=True),
        reference_chosen=torch.tensor([-9.0, -1.0]),
        reference_rejected=torch.tensor([0.0, -4.0]),
        chosen_tokens=torch.tensor([1, 1]),
        rejected_tokens=torch.tensor([1, 1]),
    )
    found = vars(pair_metrics(case, BETA))
    expected = {
        "reward_chosen": [1.0, -0.25],
        "reward_rejected": [-1.0, 0.25],
        "reward_margin": [2.0, -0.5],
        "reward_accuracy": [True, False],
        "logp_accuracy": [False, True],
        "logps_chosen": [-5.0, -2.0],
        "logps_rejected": [-4.0, -3.0],
    }
    assert {name: tensor.tolist() for name, tensor in found.items()} == expected
    assert not any(tensor.requires_grad for tensor in found.values())


class Peer:
    """trl's DPOTrainer up to its loss, on logps that are given in place of a network."""

    def __init__(self, loss_type: str, label_smoothing: float = 0.0) -> None:
        torch.manual_seed(3)
        # Chosen, then rejected completions, of 1 to 6 tokens behind a prompt of 2.
        lengths = torch.tensor([1, 6, 3, 4, 5, 2, 2, 6])
        self.mask = (torch.arange(8) >= 2) & (torch.arange(8) < 2 + lengths[:, None])
        logps = -3 * torch.rand(8, 7, dtype=torch.float64) * self.mask[:, 1:]
        self.logps = logps.requires_grad_()
        self.reference = -9 * torch.rand(8, dtype=torch.float64)
        self.metrics: dict[str, list[float]] = defaultdict(list)
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=SimpleNamespace(
                device="cpu", gather=Tensor.detach, gather_for_metrics=Tensor.detach
            ),
            beta=BETA,
            loss_types=[loss_type],
            loss_weights=[1.0],
            label_smoothing=label_smoothing,
            f_divergence_type="reverse_kl",
            precompute_ref_logps=True,
            ld_alpha=None,
            use_weighting=False,
            aux_loss_enabled=False,
            _metrics={"train": self.metrics},
            _total_train_tokens=0,
            _tp_size=1,
        )
        unwatched = torch.zeros(8, 7)
        outputs = SimpleNamespace(
            log_probs=self.logps, entropy=unwatched, mean_logits=unwatched, is_top1=unwatched.bool()
        )
        chosen, rejected = self.reference.chunk(2)
        self.loss = DPOTrainer._compute_loss(
            trainer,
            lambda **_: outputs,
            {
                "input_ids": torch.zeros(8, 8).long(),
                "attention_mask": torch.ones(8, 8),
                "completion_mask": self.mask.long(),
                "ref_chosen_logps": chosen,
                "ref_rejected_logps": rejected,
            },
            return_outputs=False,
        )

    def pairs(self) -> Pairs:
        return Pairs(
            *self.logps.sum(1).chunk(2), *self.reference.chunk(2), *self.mask.sum(1).chunk(2)
        )


@pytest.mark.parametrize(
    ("kind", "label_smoothing", "loss_type", "theirs"),
    [
        ("sigmoid", 0.0, "sigmoid", 0.0),
        ("ipo", 0.0, "ipo", 0.0),
        ("hinge", 0.0, "hinge", 0.0),
        # trl smooths no `sigmoid`, but has `robust`, ((1 - s) f(m) - s f(-m)) / (1 - 2 s), which
        # is conservative DPO, (1 - e) f(m) + e f(-m), at s = -e / (1 - 2 e).
        ("sigmoid", 0.1, "robust", -0.1 / 0.8),
    ],
)
def test_equals_trl(kind: str, label_smoothing: float, loss_type: str, theirs: float) -> None:
    peer = Peer(loss_type, theirs)
    ours = dpo_loss(named(kind), peer.pairs(), BETA, label_smoothing).mean()
    torch.testing.assert_close(ours, peer.loss)
    torch.testing.assert_close(
        torch.autograd.grad(ours, peer.logps), torch.autograd.grad(peer.loss, peer.logps)
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.6])
def test_simpo_equals_trl(gamma: float) -> None:
    case = pairs(trained=True)
    peer = SimpleNamespace(
        beta=BETA,
        simpo_gamma=gamma,
        loss_type="simpo",
        label_smoothing=0.0,
        alpha=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    chosen = case.policy_chosen / case.chosen_tokens
    rejected = case.policy_rejected / case.rejected_tokens
    theirs, _, _ = CPOTrainer.cpo_loss(peer, chosen, rejected)
    ours = dpo_loss(named("simpo"), case, BETA, options={"gamma": gamma})
    torch.testing.assert_close(ours, theirs)


def test_simpo_by_hand() -> None:
    """Mean logps -1 and -2 a token: the margin of 2 at beta 2, less gamma 1, is 1."""
    one = torch.tensor([1.0])
    case = Pairs(-3 * one, -8 * one, 0 * one, 0 * one, torch.tensor([3]), torch.tensor([4]))
    loss = dpo_loss(named("simpo"), case, 2.0, options={"gamma": 1.0})
    torch.testing.assert_close(loss, torch.tensor([math.log1p(math.exp(-1))]))
    assert float(dpo_loss(named("simpo"), case, 2.0)) == pytest.approx(math.log1p(math.exp(-1.5)))


def test_metrics_equal_trl() -> None:
    peer = Peer("sigmoid")
    ours = pair_metrics(peer.pairs(), BETA)
    for name, tensor in {
        "rewards/chosen": ours.reward_chosen,
        "rewards/rejected": ours.reward_rejected,
        "rewards/margins": ours.reward_margin,
        "rewards/accuracies": ours.reward_accuracy.double(),
        "logps/chosen": ours.logps_chosen,
        "logps/rejected": ours.logps_rejected,
    }.items():
        assert peer.metrics[name] == [pytest.approx(float(tensor.mean()))]
