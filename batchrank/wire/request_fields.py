"""How a provider's requests differ from its dialect's plainest form: names, and what is sent."""

import msgspec


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    """`instruct`: what the field of the instruction is called; None: there is none.

    `top_n`: the number of documents is sent along, to providers that otherwise answer with fewer.
    `return_documents`: `false` is sent along, to providers that otherwise echo every text.
    """

    instruct: str | None = None
    top_n: bool = False
    return_documents: bool = False


MODEL_STUDIO = Fields(instruct="instruct")
