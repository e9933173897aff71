"""The receipt's file in an output folder: its name, reading, writing and removing it.

Readers of whole folders (pandas, pyarrow, DuckDB, Spark) skip names that begin with `_`. Earlier
versions wrote `run.json` and `report.html`: these are still read, and go when new ones are written.
"""

from pathlib import Path

import msgspec

from batchrank.errors import OutputUnusable
from batchrank.files.paths import Place
from batchrank.output.parts import write_whole
from batchrank.output.receipt import Receipt

RECEIPT = "_run.json"
PAGE = "_report.html"
FORMER_RECEIPT = "run.json"
FORMER_PAGE = "report.html"
FILES = (RECEIPT, PAGE, FORMER_RECEIPT, FORMER_PAGE)


def receipt_in(folder: Place) -> Place:
    """Return the place of a folder's receipt, under whichever name it is there."""
    former = folder / FORMER_RECEIPT
    return former if not (folder / RECEIPT).exists() and former.exists() else folder / RECEIPT


def read_receipt(folder: Place) -> Receipt | None:
    """Read a folder's receipt; None where there is none. Raises `OutputUnusable`."""
    file = receipt_in(folder)
    try:
        return msgspec.json.decode(file.read_bytes(), type=Receipt)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OutputUnusable(
            f"{file}: is damaged. The command that made the output writes it anew; what is "
            "there is not sent again."
        ) from error


def write_receipt(file: Place, receipt: Receipt, beside: Path) -> None:
    """Write a receipt, and remove an earlier version's beside it. Raises `StorageFailed`."""
    write_whole(file, msgspec.json.format(msgspec.json.encode(receipt)), beside)
    (file.parent / FORMER_RECEIPT).unlink(missing_ok=True)


def remove_receipt(folder: Place) -> None:
    """Remove a folder's receipt."""
    for name in (RECEIPT, FORMER_RECEIPT):
        (folder / name).unlink(missing_ok=True)
