"""What a run says of its preference stages."""

from drbode.reporting.terminal import preferences


def test_a_stage_of_preferences_is_one_line() -> None:
    measures = {
        "reward_accuracy": 0.982,
        "logp_accuracy": 0.71,
        "reward_margin": 1.234,
        "chosen_gain_a_token": -0.25,
        "tokens_chosen": 30.0,
    }
    assert preferences("dpo", measures) == (
        "dpo, held out: reward accuracy 98.2 %, raw logp accuracy 71.0 %, margin 1.23, "
        "chosen answers -0.25 nats a token"
    )
    assert preferences("dpo", measures | {"kl": 2.0}).endswith(", KL 2.00 nats an answer")
    reward = {
        "accuracy": 0.9,
        "score_chosen": 1.0,
        "score_rejected": -1.5,
        "calibration_error": 0.04,
    }
    assert preferences("reward", reward) == (
        "reward, held out: accuracy 90.0 %, score 1.00 of the chosen, -1.50 of the rejected, "
        "calibration error 0.040"
    )
    ppo = {"proxy": 2.5, "gold": 0.5, "kl": 3.0, "cautious": 0.8, "length": 20.0}
    assert preferences("ppo", ppo) == (
        "ppo, held out: score 2.50, gold score 0.50, KL 3.00 nats an answer, cautious 80.0 %, "
        "20.0 tokens an answer"
    )


def test_nothing_is_said_where_nothing_is_held_out_or_preferred() -> None:
    assert preferences("dpo", {}) == preferences("sft", {"accuracy": 1.0}) == ""
