"""What a fresh start (`--restart`) throws away: rows, requests, and the money that was paid.

Counted from the parts and the state, whoever stopped the run and however. Nothing is decided here,
and nothing is deleted.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from batchrank.config.pricing import Price
from batchrank.config.providers import PROVIDERS
from batchrank.errors import BatchrankError, OutputUnusable
from batchrank.files.paths import Place
from batchrank.output.parts import count_rows
from batchrank.output.receipt import Receipt, money
from batchrank.output.receipt_file import read_receipt
from batchrank.records import Spent
from batchrank.state.checkpoint import Checkpoint, read_fingerprint
from batchrank.state.fingerprint import Fingerprint


class Losses(msgspec.Struct, frozen=True):
    """Rows that are answered, and what they took; None: a damaged or lost state hides it."""

    rows: int
    requests: int | None
    cost_usd: float | None
    cost_is_real: bool

    @property
    def are_none(self) -> bool:
        """Whether nothing is lost that anybody would miss."""
        return not self.rows and not self.requests

    def __str__(self) -> str:
        if self.requests is None or self.cost_usd is None:
            return f"{_count(self.rows, 'row')}, whose cost is not known any more"
        cost = money(self.cost_usd, True) if self.cost_is_real else "nothing"
        requests = _count(self.requests, "request")
        return f"{_count(self.rows, 'row')} and {requests}, for which {cost} was paid"


Agree = Callable[[Losses], None]
"""Asks somebody, and raises `BatchrankError` where the answer is no."""


def agree(_: Losses) -> None:
    """Agree to whatever is lost."""


def refuse_losses(losses: Losses, out: object) -> None:
    """Refuse to lose anything where nobody can be asked. Raises `OutputUnusable`."""
    if not losses.are_none:
        raise OutputUnusable(
            f"{out}: a fresh start would throw away {losses}. Choose a new output, or say --yes "
            "(yes=True) to lose them."
        )


def count_losses(parts: Iterable[Place], database: Path, receipts: Place) -> Losses:
    """Count what is in these parts and this state; `receipts` is the folder of its receipt."""
    rows = sum(map(count_rows, parts))
    receipt: Receipt | None = None
    with suppress(BatchrankError):
        receipt = read_receipt(receipts)
    try:
        kept, spent, begun = _of_state(database)
    except BatchrankError:
        if receipt is None:
            return Losses(rows, None, None, True)
        return Losses(rows, receipt.requests, receipt.cost_usd, receipt.cost_is_real)
    if begun is None:
        told = (0, 0.0, False) if receipt is None else _told(receipt)
        return Losses(rows, *(told if rows == 0 or receipt else (None, None, True)))
    if receipt is not None and receipt.requests == spent.requests:
        return Losses(rows + kept, *_told(receipt))
    cost = round(_price(begun, receipt).cost(spent.units), 6)
    bills = PROVIDERS[str(begun.config["endpoint.provider"])].bills
    real = bills if receipt is None else receipt.cost_is_real
    return Losses(rows + kept, spent.requests, cost, real)


def _told(receipt: Receipt) -> tuple[int, float, bool]:
    return receipt.requests, receipt.cost_usd, receipt.cost_is_real


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _of_state(database: Path) -> tuple[int, Spent, Fingerprint | None]:
    """Rows that wait for others of their part, what all was spent, and as what it was begun."""
    begun = read_fingerprint(database)
    if begun is None:
        return 0, Spent(), None
    state = Checkpoint(database)
    kept = state.rows_kept(state.parts(), scored=False)
    return kept, state.spent, state.decoded(begun, Fingerprint)


def _price(begun: Fingerprint, receipt: Receipt | None) -> Price:
    """What a run's requests cost: as its last receipt says, or else as its provider does."""
    provider = PROVIDERS[str(begun.config["endpoint.provider"])]
    price = provider.of(str(begun.config["endpoint.model"])).price or Price()
    if receipt is None:
        return price
    return replace(price, usd=float(receipt.config["endpoint"]["price_usd"]))
