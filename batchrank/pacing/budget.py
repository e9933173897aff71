"""How many units of the provider's price (tokens, or searches) may still be spent, counting what
is in flight at its most.

A request is admitted to be sent only if the bill stays under the cap even when everything that is
in flight, and everything whose outcome is unknown, is billed at its upper estimate.
"""

from math import inf


class Budget:
    """`spent` units so far, of `cap` (infinite: no cap); what is reserved may yet be billed.

    `leased` is the bound of it all that has been made durable. A session that is killed may have
    spent so much, and the next one takes it that it has; so nothing is sent beyond the lease.
    """

    LEASES = 50

    def __init__(self, cap: float = inf, spent: int = 0) -> None:
        self._cap = cap
        self._spent = spent
        self.reserved = 0
        self._leased = 0

    @property
    def capped(self) -> bool:
        """Whether there is a cap at all."""
        return self._cap != inf

    @property
    def total(self) -> int:
        """The most that may have been billed once everything reserved is sent."""
        return self._spent + self.reserved

    def reserve(self, units: int) -> bool:
        """Set units aside for a request; False, and nothing is, when the cap might be passed."""
        if self.total + units > self._cap:
            return False
        self.reserved += units
        return True

    def extend_lease(self) -> int | None:
        """Return the bound to make durable next; None while enough of the last one is left.

        It is asked for while half of the last one is left, so that sending rarely waits for it.
        """
        ahead = int(self._cap / self.LEASES)
        if self.total + ahead // 2 <= self._leased:
            return None
        self._leased = self.total + ahead
        return self._leased

    def settle(self, reserved: int, billed: int | None) -> None:
        """Take a request's outcome: units billed, or None where that stays unknown."""
        self.reserved -= reserved
        self._spent += reserved if billed is None else billed
