"""What is refused, with a status; each surface says it in an object of its own form."""

from __future__ import annotations

from mlx_dgemma.errors import ContextOverflow, DGemmaError, OutOfMemory

KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 413: "invalid_request_error", 429: "rate_limit_error", 500: "server_error",
    501: "not_implemented_error", 503: "overloaded_error",
}  # fmt: skip


class Refused(Exception):
    """A request that is not carried out.

    Attributes:
        status: of HTTP.
        message: one line.
        param: which field is at fault.
        code: a word for programs, as OpenAI's API has them.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def kind(self) -> str:
        """The type of the error, by its status."""
        return KINDS.get(self.status, "invalid_request_error")

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says beside its body."""
        return {"Retry-After": "5"} if self.status in (429, 503) else {}

    def at(self, path: str) -> dict[str, object]:
        """The error object of the surface that a path belongs to."""
        return self.as_anthropic() if path.startswith("/v1/messages") else self.as_openai()

    def as_openai(self) -> dict[str, object]:
        """The error object of OpenAI's API."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def as_anthropic(self) -> dict[str, object]:
        """The error object of Anthropic's API."""
        kind = {"server_error": "api_error"}.get(self.kind, self.kind)
        return {"type": "error", "error": {"type": kind, "message": self.message}}


def refusal(error: DGemmaError) -> Refused:
    """What to answer to something that the engine refused, or had no room for."""
    if isinstance(error, OutOfMemory):
        return Refused(503, str(error), code="out_of_memory")
    if isinstance(error, ContextOverflow):
        return Refused(400, str(error), param="messages", code="context_length_exceeded")
    return Refused(400, str(error))
