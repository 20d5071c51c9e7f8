"""Gathers the runs of the study: records, rollouts of PPO, a table, the figure of reward hacking.

python experiments/rlhf_vs_dpo/make.py RUNS [RUNS ...]
"""

import csv
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from drbode.evaluation.inference import difference
from drbode.record import Record, load_record, write_json

HERE = Path(__file__).parent
COLUMNS = ("kl", "proxy", "gold", "keeps_content", "length", "repeats")
SHIPPED = 0.05  # ppo.beta where nothing is said
LAST = 4  # iterations that count as the end
COLOURS = {0.5: "tab:green", 0.05: "tab:blue", 0.005: "tab:red"}


def gather(folders: list[Path]) -> None:
    """Copies records, and what PPO's rollouts came to, iteration by iteration, as a table."""
    rows = []
    for file in sorted(file for folder in folders for file in folder.glob("*/record.json")):
        record = load_record(file, "run it again")
        record.overrides = [o for o in record.overrides if not o.startswith("output_dir=")]
        write_json(HERE / "records" / f"{file.parent.name}.json", asdict(record))
        if "ppo" in record.stages:
            config = record.config
            rows += [
                (config["ppo"]["beta"], config["seed"], number, *values)
                for number, values in enumerate(iterations(file.parent / "metrics.csv"), 1)
            ]
    with (HERE / "rollouts.csv").open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("beta", "seed", "iteration", *COLUMNS))
        writer.writerows([f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in rows)


def iterations(metrics: Path) -> list[tuple[float, ...]]:
    columns: dict[str, list[float]] = {}
    with metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["stage"], row["split"]) == ("ppo", "rollouts"):
                columns.setdefault(row["name"], []).append(float(row["value"]))
    return list(zip(*(columns[name] for name in COLUMNS), strict=True))


def runs() -> dict[tuple[float, int], list[dict[str, float]]]:
    """PPO's iterations by beta and seed."""
    iterations: dict[tuple[float, int], list[dict[str, float]]] = {}
    with (HERE / "rollouts.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            key = (float(row["beta"]), int(row["seed"]))
            iterations.setdefault(key, []).append({name: float(row[name]) for name in COLUMNS})
    return iterations


def last_stages() -> None:
    """What the last stage of each run came to, by greedy answers to held-out prompts."""
    print(
        "| last stage | seed | seconds (of them reward model) | questions right after sft, % "
        "| after it, % | gold score | cautious, % | content kept, % | KL, nats "
        "| wins over sft by gold, % |\n|---|" + "--:|" * 9
    )
    files = (HERE / "records").glob("*.json")
    records = [load_record(file, "take it from the repository again") for file in files]
    for record in sorted(records, key=order):
        stages, config = record.stages, record.config
        last = list(stages)[-1]
        seconds = [stage.seconds for name, stage in stages.items() if name != "sft"]
        opened = stages[last].open
        assert opened is not None, "the last stage aligns"
        summary, wins = opened["summary"], opened["against"]["sft"]["win_rate"]["gold"]
        low, high = wins["interval"]
        print(
            f"| {last}, beta {config[last]['beta']:g} | {config['seed']} | {sum(seconds):.0f}"
            + (f" ({stages['reward'].seconds:.0f})" if "reward" in stages else "")
            + "".join(f" | {100 * record.measures[f'{s}/accuracy']:.1f}" for s in ("sft", last))
            + f" | {summary['gold']:.2f} | {100 * summary['cautious']['share']:.0f}"
            f" | {100 * summary['keeps_content']['share']:.0f}"
            f" | {record.measures[f'{last}/validation/kl']:.1f}"
            f" | {100 * wins['rate']:.1f} [{100 * low:.1f}, {100 * high:.1f}] |"
        )


def order(record: Record) -> tuple[str, float, int]:
    last, config = list(record.stages)[-1], record.config
    return last, -config[last]["beta"], config["seed"]


def hacking() -> None:
    """Where gold was highest in the rollouts, and where proxy and gold ended."""
    ends: dict[float, dict[int, float]] = {}
    print(
        "\n| beta | seed | gold at first | at its highest | at the end | proxy at first "
        "| at the end | KL at the end, nats |\n|" + "--:|" * 8
    )
    for (beta, seed), rows in sorted(runs().items(), key=lambda item: (-item[0][0], item[0][1])):
        top = max(rows, key=lambda row: row["gold"])
        end = {name: mean(row[name] for row in rows[-LAST:]) for name in COLUMNS}
        ends.setdefault(beta, {})[seed] = end["gold"]
        print(
            f"| {beta:g} | {seed} | {rows[0]['gold']:.2f} | {top['gold']:.2f} (KL {top['kl']:.1f})"
            f" | {end['gold']:.2f} | {rows[0]['proxy']:.2f} | {end['proxy']:.2f}"
            f" | {end['kl']:.1f} |"
        )
    for beta in (0.5, 0.005):
        gap = difference(ends[SHIPPED], ends[beta], paired=True)
        assert gap.interval is not None, "three seeds"
        print(
            f"\nGold at the end, beta {beta:g} less {SHIPPED:g}: {gap.mean:+.2f} "
            f"[{gap.interval.low:+.2f}, {gap.interval.high:+.2f}], p {gap.p_value:.3f}"
        )


def figure() -> None:
    panels = {"proxy": "score of the reward model", "gold": "gold score"}
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    for number, (name, label) in enumerate(panels.items(), 1):
        axes = drawn.add_subplot(1, len(panels), number)
        for (beta, seed), rows in runs().items():
            rows = sorted(rows, key=lambda row: row["kl"])
            distance = [max(row["kl"], 0.0) ** 0.5 for row in rows]
            axes.plot(
                distance,
                [row[name] for row in rows],
                marker=".",
                linestyle="none",
                alpha=0.7,
                color=COLOURS[beta],
                label=f"beta {beta:g}" if seed == 0 else None,
            )
        axes.set(xlabel="sqrt(KL to the reference), nats$^{1/2}$", ylabel=f"{label}, of rollouts")
        axes.grid(alpha=0.3)
        axes.legend()
    drawn.savefig(HERE / "reward_hacking.png", dpi=120)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        gather([Path(folder) for folder in sys.argv[1:]])
    last_stages()
    hacking()
    figure()
