"""The table of the study, from a folder of its evaluations, or from results.csv as it stands.

python experiments/fewshot/make.py [outputs]
"""

import csv
import sys
from pathlib import Path
from statistics import mean

from drbode.evaluation.inference import mean_interval
from drbode.record import load_record

RESULTS = Path(__file__).parent / "results.csv"
KEYS = ("split", "choice", "shots", "fewshot_seed")
VALUES = ("accuracy", "seconds_per_question", "tokens_per_question", "shared_tokens_per_question")


def gather(folder: Path) -> None:
    rows = []
    for file in folder.glob("eval-*/record.json"):
        record = load_record(file, "run it again")
        benchmark = record.config["benchmark"]
        shots = benchmark["num_fewshot"]
        choice = benchmark["fewshot_choice"] if shots else "none"
        values = {name: record.measures[f"model/{name}"] for name in VALUES}
        values["accuracy"] *= 100
        seed = benchmark["fewshot_seed"] if choice == "fixed" else 0
        row = [benchmark["split"], choice, shots, seed]
        rows.append(row + [f"{values[name]:.5g}" for name in VALUES])
    with RESULTS.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(KEYS + VALUES)
        writer.writerows(sorted(rows))


def main() -> None:
    groups: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    with RESULTS.open(newline="") as file:
        for row in csv.DictReader(file):
            key = (row["split"], row["choice"], int(row["shots"]))
            groups.setdefault(key, []).append({name: float(row[name]) for name in VALUES})
    names = ("accuracy, %", "ms a question", "tokens a question", "of them run once")
    print(f"| questions | examples | k | {' | '.join(names)} |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for (split, choice, shots), rows in sorted(groups.items()):
        means = {name: mean(row[name] for row in rows) for name in VALUES}
        interval = mean_interval([row["accuracy"] for row in rows])
        spread = "" if interval is None else f" [{interval.low:.1f}, {interval.high:.1f}]"
        print(
            f"| {split} | {choice} | {shots} | {means['accuracy']:.1f}{spread}"
            f" | {1000 * means['seconds_per_question']:.0f} | {means['tokens_per_question']:.0f}"
            f" | {means['shared_tokens_per_question']:.0f} |"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        gather(Path(sys.argv[1]))
    main()
