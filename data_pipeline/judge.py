"""A recipe's verdict on every row: the reason it is dropped for, or none.

Most rules look at one row. Top fractions and balancing look at all rows that are left when they are reached, so the
judge first goes through the tables to learn where a fraction ends or how frequent an entry is; then any row can be
judged alone, in any order and on any machine.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from data_pipeline.balance import count_entries, kept_by_balance
from data_pipeline.rules import BalanceRule, KeepRule, Rule, SampleRule, TopFractionRule, with_derived
from data_pipeline.subset import chances, uid_halves
from data_pipeline.top_fraction import Cuts, above_cut, find_cuts

BLOCKED = "blocked"
"""The column of a frame that says which blocklist has the row, `blocked_<kind>`, or null; only with blocklists."""


@dataclass
class Judge:
    """A recipe's rules and what was learnt for them."""

    rules: list[Rule]
    has_blocklist: bool = False
    cuts: dict[str, Cuts] = field(default_factory=dict)  # by the reason of a top fraction
    entry_counts: dict[str, np.ndarray] = field(default_factory=dict)  # by the reason of a balance rule

    def learn(self, tables: Callable[[], Iterator[pl.DataFrame]]) -> None:
        """Looks at all rows as often as the rules ask for.

        Args:
            tables: goes through all rows each time it is called: frames with uid and what the rules are made from
                (`rules.columns_to_read`), and BLOCKED with blocklists.
        """
        for number, rule in enumerate(self.rules):
            if isinstance(rule, TopFractionRule):
                self.cuts[rule.reason] = find_cuts(
                    rule, lambda number=number: self._survivors(tables, number)
                )
            elif isinstance(rule, BalanceRule):
                self.entry_counts[rule.reason] = count_entries(rule, self._survivors(tables, number))

    def reasons(self, frame: pl.DataFrame) -> pl.Series:
        """Text, a row for each of the frame's: the reason of the first rule it fails, null when it is kept."""
        return (
            self._prepared(frame, self.rules)
            .select("uid", reason=self._reason(self.rules))
            .collect()["reason"]
        )

    def _survivors(self, tables: Callable[[], Iterator[pl.DataFrame]], number: int) -> Iterator[pl.DataFrame]:
        """uid and the columns of rule `number`, of the rows that passed the rules before it and have them all."""
        rule, before = self.rules[number], self.rules[:number]
        has_all = [pl.col(name).is_not_null() for name in rule.columns]
        for frame in tables():
            rows = self._prepared(frame, [*before, rule]).filter(self._reason(before).is_null(), *has_all)
            yield rows.select("uid", *dict.fromkeys(rule.columns)).collect()

    def _prepared(self, frame: pl.DataFrame, rules: list[Rule]) -> pl.LazyFrame:
        return with_derived(frame.lazy(), rules)

    def _reason(self, rules: list[Rule]) -> pl.Expr:
        reasons = [pl.col(BLOCKED)] if self.has_blocklist else []
        for rule in rules:
            keep = self._keep(rule)
            missing = [
                pl.when(pl.col(name).is_null()).then(pl.lit(f"missing_{name}")) for name in rule.columns
            ]
            unanswered = pl.coalesce(*missing, pl.lit("missing_value"))
            reasons.append(pl.when(keep.is_null()).then(unanswered).when(~keep).then(pl.lit(rule.reason)))
        return pl.coalesce(*reasons, pl.lit(None, pl.String))

    def _keep(self, rule: Rule) -> pl.Expr:
        """Whether a row passes the rule; null where it has no answer."""
        match rule:
            case KeepRule():
                return rule.expression
            case TopFractionRule():
                return above_cut(rule, self.cuts[rule.reason])
            case BalanceRule():
                return kept_by_balance(rule, self.entry_counts[rule.reason])
            case SampleRule():
                return _sampled(rule)


def _sampled(rule: SampleRule) -> pl.Expr:
    def decide(uids: pl.Series) -> pl.Series:
        return pl.Series(chances(uid_halves(uids), rule.seed, "sample") < rule.fraction, dtype=pl.Boolean)

    return pl.col("uid").map_batches(decide, return_dtype=pl.Boolean)
