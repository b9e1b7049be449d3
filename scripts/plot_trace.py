#!/usr/bin/env python3
"""Draws a window of a run's timeline, for documents; to look around in it, open trace.json in https://ui.perfetto.dev.

    plot_trace.py OUTPUT_DIR/trace.json PICTURE.svg [--begin-ms 0] [--ms 50]

A row for what each rank receives, computes and sends; a colour a lane; prefill darker than decode. Needs matplotlib.
"""

import argparse
import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

LANES = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("picture")
    parser.add_argument("--begin-ms", type=float, default=0)
    parser.add_argument("--ms", type=float, default=50)
    args = parser.parse_args()
    with open(args.trace, encoding="utf-8") as file:
        events = [event for event in json.load(file)["traceEvents"] if event["ph"] == "X"]
    rows = sorted({(event["pid"], event["tid"], event["cat"]) for event in events})
    if not rows:
        raise SystemExit(f"{args.trace}: no step ran")
    figure, axes = plt.subplots(figsize=(10, 0.6 + 0.35 * len(rows)), layout="constrained")
    end_ms = args.begin_ms + args.ms
    for event in events:
        begin, length = event["ts"] / 1000, event["dur"] / 1000
        if begin + length < args.begin_ms or begin > end_ms:
            continue
        axes.broken_barh(
            [(begin, length)],
            (rows.index((event["pid"], event["tid"], event["cat"])) - 0.4, 0.8),
            facecolor=LANES[event["args"]["lane"] % len(LANES)],
            alpha=1 if "prefill" in event["name"] else 0.55,
            edgecolor="white",
            linewidth=0.3,
        )
    axes.set_yticks(range(len(rows)), [f"rank {pid}: {what}" for pid, _, what in rows])
    axes.invert_yaxis()
    axes.set_xlim(args.begin_ms, end_ms)
    axes.set_xlabel("ms")
    figure.savefig(args.picture, metadata={"Date": None} if args.picture.endswith(".svg") else None)


if __name__ == "__main__":
    main()
