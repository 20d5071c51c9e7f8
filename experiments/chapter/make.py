"""The progression of the study: base, SFT and DPO, and the difference between the last two.

python experiments/chapter/make.py
"""

from pathlib import Path
from statistics import mean

from drbode.evaluation.inference import difference, mean_interval
from drbode.evaluation.statistics import mcnemar_exact
from drbode.record import load_record

POINTS = ("base", "sft", "dpo")


def main() -> None:
    variants: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for file in sorted((Path(__file__).parent / "records").glob("*.json")):
        record = load_record(file, "take it from the repository again")
        config = record.config
        key = (config["sft"]["format"], config["benchmark"]["protocol"])
        seeds = variants.setdefault(key, {name: {} for name in POINTS})
        for name in POINTS:
            seeds[name][config["seed"]] = 100 * record.measures[f"{name}/accuracy"]
    print("| trained on | asked by | base | after SFT | after DPO | DPO less SFT, points | p |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for (trained, protocol), seeds in sorted(variants.items()):
        cells = [f"{mean(seeds['base'].values()):.1f}"]
        for name in POINTS[1:]:
            interval = mean_interval(list(seeds[name].values()))
            assert interval is not None, "five seeds"
            cells.append(
                f"{mean(seeds[name].values()):.1f} [{interval.low:.1f}, {interval.high:.1f}]"
            )
        gain = difference(seeds["sft"], seeds["dpo"], paired=True)
        assert gain.interval is not None, "seeds differ"
        cells.append(f"{gain.mean:+.1f} [{gain.interval.low:+.1f}, {gain.interval.high:+.1f}]")
        print(f"| {trained} | {protocol} | {' | '.join(cells)} | {gain.p_value:.2f} |")
    least = min(mcnemar_exact(lost + 1, lost) for lost in range(325))
    print(f"\n325 or 326 right of 1301: the exact McNemar test gives p = {least:g} at the least.")


if __name__ == "__main__":
    main()
