"""Errors as Model Studio words them: a status, a code and a message. `voices` has the envelopes.

Codes and messages are the vendor's own where they are documented ("Error codes", copy of June
2026) or were captured in public issues (Tencent/WeKnora#806 and #3458 for the two on documents).
No text of a captured reply is known for a request over its token limit, for `top_n` below 1 and
for a value of the wrong type: those three are worded here in the same manner.
"""

MESSAGES = {
    "AccessDenied": "Access denied.",
    "AllocationQuota.FreeTierOnly": (
        "The free tier of the model has been exhausted. If you wish to continue access the model "
        'on a paid basis, please disable the "use free tier only" mode in the management console.'
    ),
    "Arrearage": "Access denied, please make sure your account is in good standing.",
    "BadRequest.EmptyInput": "Required input parameter missing from request.",
    "BadRequest.EmptyModel": 'Required parameter "model" missing from request.',
    "BadRequest.EmptyParameters": 'Required parameter "parameters" missing from request.',
    "BadRequest.TooLarge": "Payload Too Large.",
    "DataInspectionFailed": "Input or output data may contain inappropriate content.",
    "InternalError": (
        "An internal error has occured, please try again later or contact service support."
    ),
    "InvalidApiKey": "Invalid API-key provided.",
    "InvalidParameter": (
        "Required parameter(s) missing or invalid, please check the request parameters."
    ),
    "ModelNotFound": "Model can not be found.",
    "ModelServingError": (
        "Too many requests. Your requests are being throttled due to system capacity limits. "
        "Please try again later."
    ),
    "ModelUnavailable": "Model is unavailable, please try again later.",
    "NotFound": "Not found!",
    "RequestTimeOut": "Request timed out, please try again later.",
    "SystemError": "An system error has occured, please try again later.",
    "Throttling": "Requests throttling triggered.",
    "Throttling.AllocationQuota": ("Allocated quota exceeded, please increase your quota limit."),
    "Throttling.BurstRate": (
        "Request rate increased too quickly. To ensure system stability, please adjust your "
        "client logic to scale requests more smoothly over time."
    ),
    "Throttling.RateQuota": "Requests rate limit exceeded, please try again later.",
    "insufficient_quota": (
        "You exceeded your current quota, please check your plan and billing details."
    ),
    "limit_burst_rate": (
        "Request rate increased too quickly. To ensure system stability, please adjust your "
        "client logic to scale requests more smoothly over time."
    ),
    "limit_requests": "You exceeded your current requests list.",
}


class Refused(Exception):
    """A request that is answered with an error: `retry_after` is that header's text, if any.

    `nested` overrides the server's envelope for this answer alone.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str = "",
        *,
        retry_after: str | None = None,
        nested: bool | None = None,
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message or MESSAGES.get(code, code)
        self.retry_after = retry_after
        self.nested = nested


def invalid_value(what: str, where: str) -> Refused:
    """A 400 in the words of the model service behind the gateway; `where` is the field's path."""
    return Refused(
        400,
        "InvalidParameter",
        f"<400> InternalError.Algo.InvalidParameter: Value error, {what}: {where}",
    )


def invalid_request(detail: str) -> Refused:
    """A 400 for a body that is not a request at all; `detail` quotes paths, never values."""
    return Refused(400, "InvalidParameter", f"{MESSAGES['InvalidParameter']} {detail}")
