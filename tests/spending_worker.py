"""A process that spends of a budget it shares with others, until it is refused often enough, or killed.

`python spending_worker.py URL NAME SEED`: holds, waits a little, books some of what it held beside an entry of a list.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

from metered_calls import ALICE, budget, outcome, record
from trial_counts import TrialCounts

from serving.access.shared_ledger import SharedLedger
from serving.errors import BudgetExhausted

LIMIT_USD = 0.25
DEAREST = 2_000  # millionths of a USD in one call
AT_ONCE = 8
ALIVE_MS = 500
ENTRIES = (budget(usd=LIMIT_USD, per="total", name="all"), budget(scope="user", usd=1.0, per="total", name="each"))


async def spend(counts: TrialCounts, ledger: SharedLedger, rng: random.Random) -> None:
    refused = 0
    while refused < 30:
        most = rng.randrange(1, DEAREST)
        try:
            held = await ledger.reserve(ALICE, most / 1e6, 0, time.time())
        except BudgetExhausted:
            refused += 1
            await asyncio.sleep(0.002)
            continue
        await asyncio.sleep(rng.random() * 0.005)
        made, result = record(), outcome(rng.randrange(most + 1) / 1e6, time.time())
        counts.note(b"%d" % round((result.cost_usd or 0.0) * 1e12))
        ledger.booked(made, result)
        ledger.outcome(made, result)
        ledger.release(held)
        await counts.flush()


async def main(url: str, name: str, seed: int) -> None:
    counts = TrialCounts(url, name)
    ledger, rng = SharedLedger(counts, counts.scripts(), ENTRIES), random.Random(seed)

    async def beat() -> None:
        while True:
            await counts.live(ALIVE_MS)
            await asyncio.sleep(ALIVE_MS / 5_000)

    beating = asyncio.create_task(beat())
    await counts.live(ALIVE_MS)
    sys.stdout.write(f"{counts.writer}\n")
    sys.stdout.flush()
    await asyncio.gather(*(spend(counts, ledger, rng) for _ in range(AT_ONCE)))
    beating.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
