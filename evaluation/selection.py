"""The decisions that are judged: a pool's, in the order of the log, joined with what came of them, as chunks of arrays.

Selects, joins and checks; a row that cannot be judged is refused with the file, the row and the column. Knows no policy
and no estimator.
"""
# ruff: noqa: S608 - statements are built from this file's own constants and quoted names

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb

from bandit.errors import InvalidInput
from evaluation.learning import GradedAnswer
from evaluation.logged import Attempt, LoggedRounds
from evaluation.logs import DRAWN, Log, quoted

__all__ = ["LEFT_OUT", "SelectedRounds", "Selection"]

LEFT_OUT: Final = {
    "pinned": "the caller named the model",
    "cached": "answered from the cache: no model was asked",
    "sticky": "kept on its model: nothing was drawn",
    "shadow": "a second call beside another decision",
    "experiment": "whoever is in an experiment stays with its variant: not drawn call by call",
    "bypass": "decided without a look at the request: there is no context",
}
"""Why decisions of a kind cannot be judged. Of these sticky ones, shadows and experiments teach a pool that learns."""

MOST_GROUPS: Final = 50  # of categories, and of tiers; the rest share one group
_SUM_TOLERANCE: Final = 1e-6
_CAUSED_BY_CALLER: Final = "(400, 409, 413, 415, 422)"  # as `bandit.types.Outcome.failed`


@dataclass(frozen=True, slots=True)
class Selection:
    """Which decisions are judged: of one pool, under an SQL condition on `decisions`, from and before unix times.

    `latest`: nothing older than the latest so many of the pool is looked at, not even to learn from.
    """

    pool: str
    where: str | None = None
    since_ts: float | None = None
    until_ts: float | None = None
    latest: int | None = None


class SelectedRounds:
    """The `count` decisions of a pool in the order of the log, joined with what came of them; `selected` are judged.

    `arms`: every model that was in the pool. `version`, `dimension`: of the contexts. `categories`, `tiers`: names of
    groups, the most frequent first. `dropped`: older decisions that were left out by `latest`; `first_ts`:
    of the first. Decisions that were not drawn for their call alone are never judged: `left_out` says how many, by the
    kinds of `LEFT_OUT`; those that have a context are there to learn from.
    `fallbacks`: judged decisions that another model answered, as the one that was drawn failed; `fallback_usd`: what
    that cost beside.
    """

    def __init__(self, log: Log, selection: Selection) -> None:
        self._log, self._connection = log, log.connection
        self.selection = selection
        self._join()
        self._check()
        one = self._connection.execute
        (before,) = one("SELECT count(*) FILTER (drawn) FROM rounds").fetchall()[0]
        if selection.latest is not None:
            one(
                "DELETE FROM rounds WHERE row < (SELECT min(row) FROM"
                " (SELECT row FROM rounds WHERE drawn ORDER BY row DESC LIMIT $latest))",
                {"latest": selection.latest},
            )
        self.count, self.selected = one(
            "SELECT count(*) FILTER (drawn), count(*) FILTER (selected) FROM rounds"
        ).fetchall()[0]
        if not self.selected:
            raise InvalidInput("selection", self._emptiness())
        self.dropped = before - self.count
        (self.first_ts,) = one("SELECT min(ts) FROM rounds").fetchall()[0]
        self.from_ts, self.to_ts = one("SELECT min(ts), max(ts) FROM rounds WHERE selected").fetchall()[0]
        arms = " UNION ALL ".join(
            f"SELECT DISTINCT d.arms FROM {part}.decisions d JOIN rounds r ON r.seq = d.seq AND r.part = '{part}'"
            for part in log.parts
        )
        names = one(f"SELECT DISTINCT unnest(arms) AS arm FROM ({arms}) ORDER BY arm")
        self.arms = tuple(str(row[0]) for row in names.fetchall())
        self.version, self.dimension = self._features()
        self.categories, self.tiers = self._groups("category"), self._groups("tier")
        self.left_out = self._left_out()
        self.fallbacks, self.fallback_usd = one(
            "SELECT count(*), coalesce(sum(other_usd), 0) FROM rounds WHERE selected AND served_by <> chosen"
        ).fetchall()[0]

    def admit(self, names: Sequence[str]) -> None:
        """Count models in that no decision of the log knew: nothing could be drawn of them."""
        self.arms = (*self.arms, *(name for name in names if name not in self.arms))

    def answers(self) -> list[list[GradedAnswer]]:
        """For each log with decisions of the pool, in their order, the benchmark answers in it."""
        found = []
        parts = self._connection.execute("SELECT part FROM rounds GROUP BY part ORDER BY min(row)").fetchall()
        for (part,) in parts:
            rows = self._connection.execute(
                f"SELECT seq, model, quality, category FROM {part}.benchmark_results"
                " WHERE quality IS NOT NULL ORDER BY seq"
            ).fetchall()
            found.append([GradedAnswer(*row) for row in rows])
        return found

    def latency_quantile(self, q: float) -> float | None:
        """A quantile of the answered calls' latencies, in seconds; None where none was measured."""
        found = self._connection.execute(
            "SELECT quantile_cont(latency_s, $q) FROM rounds WHERE selected AND status = 'ok'", {"q": q}
        ).fetchall()
        value = found[0][0]
        return None if value is None else float(value)

    def chunks(self, rows: int = 50_000, *, first: int = 0, selected_only: bool = True) -> Iterator[LoggedRounds]:
        """Arrays of at most `rows` rounds each, from number `first` on; the parts' borders are kept."""
        for part, low, high in self._connection.execute(
            "SELECT part, min(row), max(row) FROM rounds GROUP BY part ORDER BY 2"
        ).fetchall():
            for start in range(max(low, first), high + 1, rows):
                stop = min(start + rows, high + 1)
                chunk = self._chunk(part, start, stop, selected_only=selected_only)
                if len(chunk):
                    yield chunk

    def _chunk(self, part: str, start: int, stop: int, *, selected_only: bool) -> LoggedRounds:
        per_arm = {
            "p": ("probabilities", "DOUBLE"),
            "f": ("feasible", "BOOLEAN"),
            "q": ("predicted_quality", "DOUBLE"),
            "c": ("predicted_cost_usd", "DOUBLE"),
        }
        columns = [
            f"CAST(d.{column}[list_position(d.arms, {quoted(arm)})] AS {kind}) AS {short}{i}"
            for short, (column, kind) in per_arm.items()
            for i, arm in enumerate(self.arms)
        ]
        columns += [f"d.context[{i + 1}] AS x{i}" for i in range(self.dimension)]
        where = "AND r.selected" if selected_only else ""
        found = self._connection.execute(
            f"SELECT r.*, {', '.join(columns)} FROM rounds r JOIN {part}.decisions d ON d.seq = r.seq"
            f" WHERE r.part = $part AND r.row >= $start AND r.row < $stop {where}"
            f" AND d.seq BETWEEN (SELECT min(seq) FROM rounds WHERE part = $part AND row >= $start AND row < $stop)"
            f" AND (SELECT max(seq) FROM rounds WHERE part = $part AND row >= $start AND row < $stop) ORDER BY r.row",
            {"part": part, "start": start, "stop": stop},
        ).fetchnumpy()
        several: dict[int, list[Attempt]] = {}
        if not selected_only:  # only who learns asks how a call came to its end
            given = {"part": part, "start": start, "stop": stop}
            for row, *attempt in self._connection.execute(_ATTEMPTS.format(part=part), given).fetchall():
                several.setdefault(row, []).append(Attempt(*attempt))
        return LoggedRounds.of(found, self.arms, self.dimension, several)

    def _join(self) -> None:
        conditions = ["drawn"]
        parameters: dict[str, Any] = {"pool": self.selection.pool}
        for name, sign, value in (("since", ">=", self.selection.since_ts), ("until", "<", self.selection.until_ts)):
            if value is not None:
                conditions.append(f"d.ts {sign} ${name}")
                parameters[name] = value
        if self.selection.where is not None:
            conditions.append(f"coalesce(({self.selection.where}), FALSE)")
        self._connection.execute("CREATE OR REPLACE SEQUENCE row_numbers MINVALUE 0 START 0")
        for i, part in enumerate(self._log.parts):
            head = "CREATE OR REPLACE TABLE rounds AS" if i == 0 else "INSERT INTO rounds"
            query = _JOINED.format(part=part, condition=" AND ".join(conditions))
            try:
                self._connection.execute(f"{head} {query}", parameters | {"part": part})
            except duckdb.Error as error:
                if self.selection.where is None:
                    raise InvalidInput("log", f"{self._log.names[i]} cannot be read: {error}") from None
                raise InvalidInput("--where", f"is no condition on decisions: {error}") from None

    def _check(self) -> None:
        for part, name in zip(self._log.parts, self._log.names, strict=True):
            for column, wrong, message in _FAULTS:
                found = self._connection.execute(
                    f"SELECT d.decision_id, d.seq FROM {part}.decisions d JOIN rounds r ON r.seq = d.seq"
                    f" AND r.part = $part AND r.selected WHERE {wrong} ORDER BY d.seq LIMIT 1",
                    {"part": part},
                ).fetchall()
                if found:
                    raise InvalidInput(
                        "log", f"{name}: decision {found[0][0]} (seq {found[0][1]}), column {column}: {message}"
                    )

    def _features(self) -> tuple[str, int]:
        versions: dict[tuple[str, int], int] = {}
        for part in self._log.parts:
            for version, width, count in self._connection.execute(
                f"SELECT d.context_version, len(d.context), count(*) FROM {part}.decisions d JOIN rounds r"
                f" ON r.seq = d.seq AND r.part = $part WHERE r.selected GROUP BY ALL",
                {"part": part},
            ).fetchall():
                versions[version, width] = versions.get((version, width), 0) + count
        if len(versions) > 1:
            counted = ", ".join(f"{version!r} ({count:,})" for (version, _), count in versions.items())
            raise InvalidInput(
                "selection",
                f"its decisions were made with several versions of the features: {counted};"
                " choose one, for example --where \"context_version = '…'\"",
            )
        ((version, width),) = versions
        return version, int(width)

    def _groups(self, column: str) -> tuple[str, ...]:
        found = self._connection.execute(
            f"SELECT {column} FROM rounds WHERE selected AND {column} IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC, 1"
            f" LIMIT {MOST_GROUPS}"
        ).fetchall()
        names = [row[0] for row in found]
        self._connection.execute(f"ALTER TABLE rounds ADD COLUMN {column}_code INTEGER")
        self._connection.execute(
            f"UPDATE rounds SET {column}_code = coalesce(list_position($names, {column}), 0) - 1", {"names": names}
        )
        return tuple(names)

    def _left_out(self) -> dict[str, int]:
        """The pool's decisions that are not judged, by kind; pinned calls are no pool's: all are counted."""
        found: dict[str, int] = {}
        for part in self._log.parts:
            for kind, count in self._connection.execute(
                f"SELECT {_KIND} AS kind, count(*) FROM {part}.decisions"
                f" WHERE NOT {DRAWN} AND (pool = $pool OR mode = 'pinned') GROUP BY ALL ORDER BY kind",
                {"pool": self.selection.pool},
            ).fetchall():
                found[kind] = found.get(kind, 0) + count
        return found

    def _emptiness(self) -> str:
        pools = self._log.pools()
        if self.selection.pool not in pools:
            known = ", ".join(f"{pool!r} ({count:,})" for pool, count in pools.items()) or "none at all"
            return f"no decision of a pool {self.selection.pool!r} is in the log; decisions by pool: {known}"
        return (
            f"none of the {self.count:,} decisions of pool {self.selection.pool!r} is left by --where, --since, --until"
        )


_KIND: Final = """
    CASE WHEN mode IN ('bandit', 'weighted', 'canary')
    THEN CASE WHEN origin IS NOT NULL THEN 'shadow' WHEN experiment IS NOT NULL THEN 'experiment' ELSE 'bypass' END
    ELSE mode END
"""
_FAILED: Final = (
    "coalesce({0}.status = 'timeout' OR ({0}.status = 'error' AND coalesce({0}.http_status, 0) NOT IN"
    f" {_CAUSED_BY_CALLER}), FALSE)"
)
# What came of a decision is what came of the model that was chosen: over its own attempts, retries included. Another
# model's attempts after it failed are `other_usd`, and whose answer feedback speaks of is `graded`.
_JOINED: Final = f"""
    WITH d AS (
        SELECT *, {DRAWN} AS drawn FROM {{part}}.decisions
        WHERE pool = $pool AND ({DRAWN} OR (mode NOT IN ('pinned', 'cached')
              AND coalesce(context_version, '') <> 'none' AND list_contains(arms, chosen)))),
    o AS (
        SELECT decision_id, count(*) AS attempts,
               arg_max(struct_pack(status := a.status, http_status := a.http_status, tokens_in := a.input_tokens,
                                   tokens_out := a.output_tokens, cached := a.cached_tokens,
                                   first_token_s := a.time_to_first_token_s), a.attempt)
                   FILTER (a.model = chosen) AS own,
               arg_max(struct_pack(model := a.model, status := a.status, http_status := a.http_status), a.attempt)
                   AS last,
               sum(a.cost_usd) FILTER (a.model = chosen) AS cost_usd,
               sum(a.latency_s) FILTER (a.model = chosen) AS latency_s,
               max(a.seq) FILTER (a.model = chosen) AS outcome_seq,
               sum(a.cost_usd) FILTER (a.model <> chosen) AS other_usd
        FROM {{part}}.outcomes a JOIN (SELECT decision_id, chosen FROM d) USING (decision_id) GROUP BY decision_id),
    r AS (
        SELECT decision_id, arg_min(quality, seq) AS first_quality, min(seq) AS first_seq,
               arg_max(quality, seq) AS last_quality, max(seq) AS last_seq, arg_max(reward, seq) AS reward
        FROM {{part}}.rewards
        WHERE quality IS NOT NULL AND NOT coalesce(list_contains(map_keys(metrics), 'imputed'), FALSE)
        GROUP BY decision_id),
    joined AS (
        SELECT $part AS part, d.seq, {{condition}} AS selected, d.drawn, d.origin IS NOT NULL AS beside, d.ts,
               d.category, d.tier, d.chosen, d.input_tokens, o.own.status AS status, o.own.tokens_in AS tokens_in,
               o.own.tokens_out AS tokens_out, o.own.cached AS tokens_cached, o.own.first_token_s AS first_token_s,
               coalesce(o.attempts, 0) AS attempts, o.cost_usd, o.latency_s,
               o.outcome_seq, o.other_usd, coalesce(o.last.model, d.chosen) AS served_by, r.* EXCLUDE (decision_id),
               CASE WHEN coalesce(o.last.status, 'ok') = 'ok' THEN coalesce(o.last.model, d.chosen) END AS graded,
               {_FAILED.format("o.own")} AS failed
        FROM d LEFT JOIN o USING (decision_id) LEFT JOIN r USING (decision_id) ORDER BY d.seq)
    SELECT nextval('row_numbers') AS row, * FROM joined
"""
_ATTEMPTS: Final = """
    SELECT r.row, o.seq, o.attempt, o.model, o.status, o.http_status, o.latency_s, o.input_tokens, o.output_tokens,
           o.cost_usd, o.time_to_first_token_s
    FROM rounds r JOIN {part}.decisions d ON d.seq = r.seq JOIN {part}.outcomes o USING (decision_id)
    WHERE r.part = $part AND r.row >= $start AND r.row < $stop
          AND (r.attempts > 1 OR r.served_by <> r.chosen OR r.status <> 'ok')
    ORDER BY r.row, o.seq
"""
_FAULTS: Final = (
    ("arms", "d.arms IS NULL OR len(d.arms) = 0", "is missing"),
    ("chosen", "d.chosen IS NULL OR NOT list_contains(d.arms, d.chosen)", "names no model of arms"),
    ("probabilities", "d.probabilities IS NULL", "is missing: without propensities nothing can be judged"),
    ("probabilities", "len(d.probabilities) <> len(d.arms)", "has another length than arms"),
    (
        "probabilities",
        "list_bool_or([p IS NULL OR isnan(p) OR p < 0 OR p > 1.000001 FOR p IN d.probabilities])",
        "holds what is no probability",
    ),
    (
        "probabilities",
        f"abs(list_sum(d.probabilities) - 1) > {_SUM_TOLERANCE}",
        "does not sum to 1 (within 1e-6)",
    ),
    ("propensity", "d.propensity IS NULL OR isnan(d.propensity)", "is missing"),
    ("propensity", "d.propensity <= 0 OR d.propensity > 1.000001", "is not above 0 and at most 1"),
    (
        "propensity",
        f"abs(d.propensity - d.probabilities[list_position(d.arms, d.chosen)]) > {_SUM_TOLERANCE}",
        "is not the probability of the chosen model",
    ),
)
