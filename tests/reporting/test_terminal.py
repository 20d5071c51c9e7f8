"""What a run says of its stages' held-out rows."""

from drbode.reporting.terminal import held_out


def test_a_stage_of_preferences_is_one_line() -> None:
    measures = {
        "reward_accuracy": 0.982,
        "logp_accuracy": 0.71,
        "reward_margin": 1.234,
        "chosen_gain_a_token": -0.25,
        "tokens_chosen": 30.0,
    }
    assert held_out("dpo", measures) == (
        "dpo, held out: reward accuracy 98.2 %, raw logp accuracy 71.0 %, margin 1.23, "
        "chosen answers -0.25 nats a token"
    )
    assert held_out("dpo", measures | {"kl": 2.0}).endswith(", KL 2.00 nats an answer")
    reward = {
        "accuracy": 0.9,
        "score_chosen": 1.0,
        "score_rejected": -1.5,
        "calibration_error": 0.04,
    }
    assert held_out("reward", reward) == (
        "reward, held out: accuracy 90.0 %, score 1.00 of the chosen, -1.50 of the rejected, "
        "calibration error 0.040"
    )
    ppo = {"proxy": 2.5, "gold": 0.5, "kl": 3.0, "cautious": 0.8, "length": 20.0}
    assert held_out("ppo", ppo) == (
        "ppo, held out: score 2.50, gold score 0.50, KL 3.00 nats an answer, cautious 80.0 %, "
        "20.0 tokens an answer"
    )


def test_any_stage_says_what_it_measured_and_a_measure_of_no_registry_is_said_plainly() -> None:
    told = held_out("mlm", {"mlm": 5.0, "nsp_accuracy": 0.75, "pseudo_perplexity": 335.7})
    assert told == "mlm, held out: pseudo-perplexity 335.70, next sentences told 75.0 %"
    assert held_out("sft", {"unheard_of": 3.14159}) == "sft, held out: unheard of 3.142"
    assert held_out("ppo", {"gold_before": 0.5}) == ""


def test_nothing_is_said_where_nothing_was_measured() -> None:
    assert held_out("dpo", {}) == ""
