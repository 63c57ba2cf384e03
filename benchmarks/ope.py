"""Off-policy evaluation measured: on public logs, on logs whose truth is known, and on changes that were then made.

    python -m benchmarks.ope --data DIR [--sections obd,coverage,changes] [--replicates 200] [--calls 4000]
                             [--jobs 2] [--json OUT]

DIR holds the sets `obd`, `mmlu_pro` and `bfcl` in canonical form. *obd*: the Open Bandit Dataset's uniform logs
judge the Thompson policy that ran beside them. *coverage*: replicates of logs that this project's own policy made, each
judged under fixed policies whose truth is known. *changes*: a changed pool judged from one log, then simulated.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.ope_changes import judged_and_made
from benchmarks.ope_coverage import plans, replicate, summary
from benchmarks.ope_obd import obd_table
from benchmarks.processes import host_facts

_SHOWN = ("IPS", "SNIPS", "DR", "SNDR", "MRDR")
_SETS = ("mmlu_pro", "bfcl")


def main() -> None:
    """Run the sections, print their tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sections", default="obd,coverage,changes")
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--calls", type=int, default=4_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for the processes started below
    found: dict[str, Any] = {"host": host_facts()}
    sections = options.sections.split(",")
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        if "obd" in sections:
            found["obd"] = obd_table(options.data / "obd")
            _print_obd(found["obd"])
        if "coverage" in sections:
            found["coverage"] = _coverage(pool, options)
        if "changes" in sections:
            run = partial(judged_and_made, calls=2 * options.calls)
            folders = [str(options.data / name) for name in _SETS]
            found["changes"] = dict(zip(_SETS, pool.map(run, folders), strict=True))
            _print_changes(found["changes"])
    if options.json:
        found["options"] = {k: v for k, v in vars(options).items() if k not in ("json", "data")}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _coverage(pool: ProcessPoolExecutor, options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for plan in plans(options.data, options.calls):
        rows = [row for rows in pool.map(partial(replicate, plan), range(options.replicates)) for row in rows]
        lines = summary(rows)
        found.append({"set": Path(plan.folder).name, "calls": plan.calls, "floor": plan.floor, "lines": lines})
        print(f"\n{found[-1]['set']}, {plan.calls:,} calls, floor {plan.floor:g}, {options.replicates} logs")
        print(f"{'policy':13}{'metric':10}{'by':7}{'answered':>9}{'bias':>10}{'RMSE':>10}  coverage (mean width)")
        for line in lines:
            if "always_covered" in line:
                share = line["always_covered"]
                print(
                    f"{line['policy']:13}{'quality':10}{line['sequence']:7}{line['logs']:9}  at every time {share:.1%}"
                )
            elif line["answered"] == 0:
                print(f"{line['policy']:13}{line['metric']:10}cannot tell in {line['refused']} of {line['refused']}")
            elif line["estimator"] in _SHOWN:
                _print_line(line)
    return found


def _print_line(line: dict[str, Any]) -> None:
    answered = f"{line['answered']}/{line['answered'] + line['refused']}"
    covered = ", ".join(f"{kind} {c:.1%} ({line['width'][kind]:.2g})" for kind, c in line["coverage"].items())
    print(
        f"{line['policy']:13}{line['metric']:10}{line['estimator']:7}{answered:>9}{line['bias']:+10.2g}"
        f"{line['rmse']:10.2g}  {covered}"
    )


def _print_obd(rows: list[dict[str, Any]]) -> None:
    print(f"{'campaign':10}{'log → policy':16}{'ESS':>7}{'logged':>9}{'IPS':>9}{'SNIPS':>9}{'DR':>9}{'own log':>9}")
    for row in rows:
        head = f"{row['campaign']:10}{row['log'] + ' → ' + row['policy']:16}{row['effective_samples']:7.0f}"
        if row["cannot_tell"]:
            print(f"{head}  cannot tell, because {row['cannot_tell']}")
            continue
        values = [row["logged"], *(row["estimates"][name] for name in ("IPS", "SNIPS", "DR"))]
        print(head + "".join(f"{v:9.5f}" for v in (*values, row["mean_of_the_policys_own_log"])))


def _print_changes(found: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in found.items():
        print(f"\n{name}: a change judged from the log, then simulated")
        print(f"{'change':32}{'metric':10}{'ESS':>6}{'logged':>11}{'estimate':>11}{'interval':>22}{'simulated':>11}")
        for row in rows:
            head = f"{row['change']:32}{row['metric']:10}{row['effective_samples']:6.0f}{row['logged']:11.5g}"
            if "cannot_tell" in row:
                print(f"{head}{'cannot tell':>44}{row['simulated']:11.5g}")
                continue
            interval = f"{row['low']:.5g}..{row['high']:.5g}"
            within = "" if row["within"] else "  outside"
            print(f"{head}{row['estimate']:11.5g}{interval:>22}{row['simulated']:11.5g}{within}")


if __name__ == "__main__":
    main()
