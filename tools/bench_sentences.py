"""Time a sentence encoder in integers against the same encoder in onnxruntime and torch, one thread.

    python tools/bench_sentences.py [--rounds 21] [--seconds 8] [--case 32x24 ...]

Each ratio is the peer's time over labkit's, from calls in turns in one process; the median of the rounds and, in brackets, the
10th and 90th percentile. Integers are compared with the reference tier before and after. Set LABKIT_DATA to a folder that holds
stsb/sts-dev.csv.gz to calibrate on real sentences; times do not depend on it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from labkit.benchmark.sentences import CASES, encoder_in_integers, float_encoder, peers_of, stsb_texts, time_case


def main() -> int:
    """Print one line for each pair; 1 where an integer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument(
        "--case", nargs="*", default=[f"{batch}x{length}" for batch, length in CASES], help="batch x tokens"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    encoder, weights = float_encoder()
    texts = stsb_texts(Path(os.environ.get("LABKIT_DATA", "data"))) if weights.startswith("all") else []
    net = encoder_in_integers(encoder, texts)
    print(
        f"{weights}, W8A8, calibrated on {'sentences of STS-B' if texts else 'random tokens'}; peer's time / labkit's time"
    )
    is_wrong = False
    with peers_of(encoder) as peers:
        for case in given.case:
            batch, length = map(int, case.split("x"))
            found = time_case(net, peers, batch, length, rounds=given.rounds, seconds=given.seconds)
            if found.refused is not None:
                print(f"{batch} x {length}: not timed, {found.refused}")
                is_wrong = True
            for name, time in found.pairs.items():
                print(
                    f"{batch:3} x {length:3}  {name:25} {time.theirs_ms:9.3f} ms / {time.ours_ms:8.3f} ms = {time.ratio:5.2f} "
                    f"[{time.p10:.2f}, {time.p90:.2f}]  {time.rounds} rounds, {time.clock}, busy {time.busy:.2f}, "
                    f"lowest cosine {found.cosines[name]:.3f}",
                    flush=True,
                )
    return int(is_wrong)


if __name__ == "__main__":
    sys.exit(main())
