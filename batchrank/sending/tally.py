"""Count what a request plan has spent so far, exchange by exchange."""

import msgspec

from batchrank.records import RequestPlan, Spent


class Tally(msgspec.Struct, gc=False):
    """What a plan has spent so far. `unknown`: sent, and no whole answer came, or not yet.
    `aboard`: it has a place in flight.
    """

    aboard: bool = True
    requests: int = 0
    retries: int = 0
    unknown: int = 0
    at_risk: int = 0
    tokens: int = 0
    units: int = 0
    implausible: int = 0

    def sent(self, most: int) -> None:
        """A request is on its way that may be billed so many units."""
        self.requests += 1
        self.unknown += 1
        self.at_risk += most

    def bill(self, billed: int | None, likely: int, most: int) -> None:
        """Add an answer's bill. Where it does not say, the rest of the most it may be stays at
        risk.
        """
        self.units += likely if billed is None else billed
        if billed is None:
            self.at_risk += most - likely

    def spent(self, answered: RequestPlan | None = None) -> Spent:
        """`answered`: the plan, if it was; what it was likely to cost counts then."""
        return Spent(
            self.requests,
            self.retries,
            self.unknown,
            self.at_risk,
            self.tokens,
            0 if answered is None else answered.estimate,
            self.units,
            0 if answered is None else answered.estimate * answered.counted,
            self.implausible,
        )
