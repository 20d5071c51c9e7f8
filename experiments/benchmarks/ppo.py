"""Iterations of PPO against plain ones: speed, memory, and that both learn alike.

    python experiments/benchmarks/ppo.py

trl 1.16 has no PPO any more, so the peer is the loop one would write by hand with transformers and
peft: `generate` on all prompts of an iteration, padded on the left, then padded passes for the
log-probabilities, the values and the reference, and padded steps. An iteration answers 32
prompts with at most 64 tokens each and takes two passes of clipped steps. Scores come from a Python
function, so that no reward model's pass is in the time. Answers are drawn at a temperature near
zero, for both have to learn from the same ones. What is the same in all arms, and what is timed,
stands in `harness.py`; here the clock also runs while answers are written.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import costs
import harness
import preferences
import workload

ROLLOUTS = 32
WRITTEN = 64  # tokens of an answer, at most
EPOCHS = 2  # passes over an iteration's rollouts
TEMPERATURE = 1e-4
BETA, GAMMA, LAM, CLIP, VALUE_CLIP, VALUE_WEIGHT, OPEN_ENDED = 0.05, 1.0, 0.95, 0.2, 0.2, 0.1, 1.0


def score(_prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """A number an answer, that depends on all of it and means nothing."""
    return [sum(map(ord, answer)) % 7 - 3.0 for answer in answers]


def trees(setting: workload.Setting) -> list[Any]:
    """Prompts; in place of an answer stands how long it will be."""
    return [
        tree._replace(completions=[workload.completion([workload.SPECIAL] * WRITTEN)])
        for tree in preferences.trees(setting)
    ]


def passed(network: Any, head: Any, ids: Any, mask: Any) -> tuple[Any, Any]:
    """Of each token but the first its log-probability, and the value before it."""
    places = (mask.cumsum(1) - 1).clamp(min=0)
    out = network(
        input_ids=ids, attention_mask=mask, position_ids=places, output_hidden_states=True
    )
    logps = out.logits[:, :-1].float().log_softmax(-1)
    states = out.hidden_states[-1][:, :-1].to(head.dtype)
    return logps.gather(2, ids[:, 1:, None])[..., 0], states @ head[:-1] + head[-1]


def sampled(network: Any, setting: workload.Setting, prompts: list[list[int]]) -> tuple[Any, ...]:
    """Ids, which of them are real, which are learned from, and the answers' scores."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[workload.PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = (ids != workload.PAD).long()
    written = network.generate(
        input_ids=ids.to(setting.device),
        attention_mask=mask.to(setting.device),
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        max_new_tokens=WRITTEN,
        pad_token_id=workload.PAD,
        eos_token_id=workload.END,
    )
    answers = written[:, longest:]
    ended = (answers == workload.END).any(1)
    written_mask = (answers == workload.END).cumsum(1) - (answers == workload.END).long() == 0
    words = workload.tokenizer(setting)
    texts = [
        words.decode([t for t in row[keep].tolist() if t != workload.END])
        for row, keep in zip(answers, written_mask, strict=True)
    ]
    scores = torch.tensor(score([], texts)) - OPEN_ENDED * (~ended).float().cpu()
    seen = torch.cat([mask.to(written_mask.device), written_mask.long()], dim=1)
    learnt = seen[:, 1:].bool().clone()
    learnt[:, : longest - 1] = False
    return written, seen, learnt, scores.to(setting.device)


def credit(logps: Any, reference: Any, values: Any, learnt: Any, scores: Any) -> Any:
    """Advantages, whitened, and returns."""
    import torch

    rewards = -BETA * (logps - reference) * learnt
    last = learnt.shape[1] - 1 - learnt.flip(1).long().argmax(1)
    rewards[torch.arange(len(last)), last] += scores
    values = values * learnt
    advantages, after, value_after = torch.zeros_like(values), 0.0, 0.0
    for at in reversed(range(values.shape[1])):
        delta = rewards[:, at] + GAMMA * value_after - values[:, at]
        after = (delta + GAMMA * LAM * after) * learnt[:, at]
        advantages[:, at], value_after = after, values[:, at]
    returns = advantages + values
    flat = advantages[learnt]
    return (advantages - flat.mean()) * torch.rsqrt(flat.var(correction=0) + 1e-8), returns


def plain(
    _arm: Mapping[str, Any],
    setting: workload.Setting,
    rows: list[Any],
    folder: Path,
    clock: costs.Clock,
) -> list[float]:
    import torch
    from transformers import get_scheduler

    network = workload.adapted(workload.make_network(setting, folder), setting, "CAUSAL_LM")
    width = network.config.hidden_size
    head = torch.nn.Parameter(torch.zeros(width + 1, device=setting.device))
    trained = [p for p in network.parameters() if p.requires_grad] + [head]
    steps = EPOCHS * -(-len(rows) // setting.rows_a_step)
    optimizer = torch.optim.AdamW(trained, workload.LEARNING_RATE, weight_decay=0)
    schedule = get_scheduler("linear", optimizer, 0, steps)
    shuffle = torch.Generator().manual_seed(0)

    clock.loaded()
    clock.start()
    losses = []
    for at in range(0, len(rows), ROLLOUTS):
        network.eval()
        with torch.no_grad():
            ids, seen, learnt, scores = sampled(
                network, setting, [t.prompt for t in rows[at : at + ROLLOUTS]]
            )
            old, old_values = passed(network, head, ids, seen)
            with network.disable_adapter():
                reference, _ = passed(network, head, ids, seen)
            advantages, returns = credit(old, reference, old_values, learnt, scores)
        network.train()
        for _ in range(EPOCHS):
            order = torch.randperm(len(ids), generator=shuffle)
            for few in order.split(setting.rows_a_step):
                mask = learnt[few]
                logps, values = passed(network, head, ids[few], seen[few])
                ratio = (logps - old[few]).exp()
                policy_loss = torch.maximum(
                    -advantages[few] * ratio,
                    -advantages[few] * ratio.clamp(1 - CLIP, 1 + CLIP),
                )
                near = old_values[few] + (values - old_values[few]).clamp(-VALUE_CLIP, VALUE_CLIP)
                value_loss = torch.maximum((values - returns[few]) ** 2, (near - returns[few]) ** 2)
                loss = (policy_loss + VALUE_WEIGHT * 0.5 * value_loss)[mask].mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
                clock.step_done()
    return losses


WORK = workload.Work(
    stage="ppo",
    unit="rollouts",
    peers={"plain": {"batch": "whole"}},
    targets=(workload.Target("plain", 1.5),),
    trees=trees,
    peer=plain,
    head=True,
    forward=3,  # writing, what each token was when it was drawn, and the reference
    epochs=EPOCHS,
    words=(
        "reward=ppo:score",
        f"rollouts={ROLLOUTS}",
        f"inner_epochs={EPOCHS}",
        f"max_new_tokens={WRITTEN}",
        f"temperature={TEMPERATURE}",
        f"beta={BETA}",
        f"gamma={GAMMA}",
        f"lam={LAM}",
        f"clip_range={CLIP}",
        f"value_clip_range={VALUE_CLIP}",
        f"value_weight={VALUE_WEIGHT}",
        f"missing_end_penalty={OPEN_ENDED}",
    ),
)

if __name__ == "__main__":
    harness.main(WORK, __doc__)
