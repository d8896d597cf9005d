"""The errors, each with the HTTP status and the kind that a caller of the endpoint sees."""


class TandemError(Exception):
    """Base class of all errors with a message for people; on its own, an internal error.

    A message says what was wrong, what was expected and what to do.
    """

    status = 500
    kind = "server_error"


class UserError(TandemError):
    """The user's input is wrong: a hyperparameter, a channel, a request body."""

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


class ImageError(UserError):
    """An image cannot be read; `kind`, one of `IMAGE_REFUSALS`, decides the status."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = IMAGE_REFUSALS[kind]


#: Why an image is rejected, with the status: 413 over a limit, 415 an unsupported type, 400 damaged.
IMAGE_REFUSALS = {
    "image_empty": 400,
    "image_truncated": 400,
    "image_damaged": 400,
    "image_out_of_proportion": 400,
    "image_too_large": 413,
    "image_too_complex": 413,
    "image_too_many_frames": 413,
    "image_variant_unsupported": 415,
    "image_type_unsupported": 415,
    "not_an_image": 415,
}


class ModelError(TandemError):
    """The algorithm failed on a request; the log has the traceback."""

    kind = "model_error"


class ModelNotReady(TandemError):
    """The model is still loading."""

    status = 503
    kind = "model_not_ready"


class Overloaded(TandemError):
    """The server is busy, or the request is late; the caller should try again in a second."""

    status = 503
    kind = "overloaded"
