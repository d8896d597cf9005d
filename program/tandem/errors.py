"""What can go wrong, each kind with the HTTP status that a caller of the endpoint sees."""


class TandemError(Exception):
    """Base of all errors with a sentence a person can act on; raised bare, the fault is ours.

    A message says what was got, what was expected and what to do.
    """

    status = 500
    kind = "server_error"


class UserError(TandemError):
    """The user's input is at fault: a hyperparameter, a channel, a request body."""

    status = 400
    kind = "bad_request"


class NotAcceptable(UserError):
    """None of the media types in `Accept` can be produced."""

    status = 406
    kind = "not_acceptable"


class PayloadTooLarge(UserError):
    """The request body is over the limit."""

    status = 413
    kind = "payload_too_large"


class UnsupportedMediaType(UserError):
    """The request's `Content-Type` cannot be read."""

    status = 415
    kind = "unsupported_media_type"


class ModelError(TandemError):
    """The algorithm failed on a request; the log has the trace."""

    kind = "model_error"


class ModelNotReady(TandemError):
    """The model is still loading."""

    status = 503
    kind = "model_not_ready"


class Overloaded(TandemError):
    """The queue before the model is full; the caller should try again in a second."""

    status = 503
    kind = "overloaded"
