"""What the local server is told: every figure of the hosted API that a test may want to move."""

import msgspec

from batchrank.config.limits import RequestLimits
from batchrank.server.faults.script import FaultScript
from batchrank.server.quotas import QuotaSettings

# Model Studio, "Text rerank": the instruction of a request that brings none.
DEFAULT_INSTRUCT = "Given a web search query, retrieve relevant passages that answer the query."
MODELS = ("qwen3-rerank", "gte-rerank-v2", "qwen3.7-text-rerank")
# No limit on the body is documented for the hosted API; this one protects the machine.
LIMITS = RequestLimits(max_bytes_per_request=32 * 2**20)


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The account (`api_key`, `models`, `quota`), the limits of a request, the bill and the faults.

    A request is billed `query x documents + sum(documents) + tokens_per_request +
    tokens_per_document x documents` tokens; three recorded answers of qwen3-rerank fit 52 and 0.
    `nested_errors` puts errors of the OpenAI-compatible route into OpenAI's envelope.
    Without a key any key is good, and none too.
    """

    api_key: str | None = None
    models: tuple[str, ...] = MODELS
    limits: RequestLimits = LIMITS
    tokens_per_request: int = 52
    tokens_per_document: int = 0
    nested_errors: bool = False
    quota: QuotaSettings | None = None
    faults: FaultScript | None = None

    def __repr__(self) -> str:
        """Never the key."""
        return f"ServerSettings(api_key={'set' if self.api_key else None}, …)"
