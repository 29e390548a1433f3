"""The price of tokens, and an estimate of what labelling will cost."""

import json
import math
from datetime import date
from typing import Any, NamedTuple

from pydantic.dataclasses import dataclass

from data.config import STRICT, NotNegative, WholeNotNegative

MILLION = 1_000_000


@dataclass(frozen=True, config=STRICT)
class Price:
    """What one model charges: US dollars per million tokens, as its provider's page stated on a date."""

    model: str  # which these prices are of; they are used for no other
    input: NotNegative
    output: NotNegative
    cached_input: NotNegative  # input that the provider has cached from an earlier call
    batch: NotNegative  # price at the batch endpoint as a part of the price: 0.5 is half
    output_tokens: WholeNotNegative  # expected of an answer, for estimates before there are answers
    as_of: date  # day on which it was looked up, as 2026-11-21

    def of(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0, batch: bool = False) -> float:
        """US dollars. cached_tokens are among the input tokens."""
        fresh = input_tokens - cached_tokens
        dollars = fresh * self.input + cached_tokens * self.cached_input + output_tokens * self.output
        return dollars / MILLION * (self.batch if batch else 1.0)


def text_tokens(sent: Any) -> int:
    """Estimated tokens of the text in a request: a quarter of its characters, the usual rule for English."""
    return math.ceil(len(json.dumps(sent, ensure_ascii=False)) / 4)


class CostEstimate(NamedTuple):
    """What labelling some clips would take."""

    clips: int
    calls: int  # in all
    answered: int  # of the calls, how many the ledger has answers to
    input_tokens: int  # of the remaining calls
    output_tokens: int  # likewise, as expected of an answer
    dollars: float | None  # of the remaining calls; None where the price is unknown
    minutes: float | None  # that the rate limits of the source need at least; None where there are none
    batch: bool = False  # whether the dollars are at the price of the provider's batch endpoint
    unit: str = "clips"  # what `clips` counts

    def line(self, name: str, model: str, price: Price | None) -> str:
        """The estimate in one line for people."""
        dollars = f"cost unknown: no price of {model} given"
        if self.dollars is not None:
            dollars = f"${self.dollars:,.2f}" if self.dollars >= 1 or not self.dollars else f"${self.dollars:.4f}"
        dated = f" ({'batch prices' if self.batch else 'prices'} of {price.as_of})" if price else ""
        time = f", at least {self.minutes:,.0f} min at the given rate" if self.minutes else ""
        return (
            f"{name} ({model}): {self.clips:,} {self.unit}, {self.calls:,} calls, {self.answered:,} answered before; "
            f"to send: {_tokens(self.input_tokens)} tokens in, {_tokens(self.output_tokens)} out, "
            f"{dollars}{dated}{time}"
        )


def _tokens(count: int) -> str:
    return f"{count / MILLION:,.2f} M" if count >= MILLION / 10 else f"{count:,}"
