"""What obstore reports, as errors that say what happened, where, and what to do.

A message has the status and the error code of an answer and never its text, a header or an address: a store repeats parts of
a signed request in its answers.
"""

from __future__ import annotations

import re

from retrodb.errors import RetroDBError

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_PASSING_STATUS = {408, 409, 425, 429}
_PASSING_CODE = {"RequestTimeout", "SlowDown", "NoSuchUpload"}  # the last one also of an upload that has just ended
_RETRY = "Check the network and the endpoint, then run the same command again: finished work is kept."
_CREDENTIALS = "Check the credentials (environment, profile or instance) and the policy of the bucket."
NEEDED_STORE = (
    "Use a store with conditional writes (If-None-Match), such as Amazon S3, Google Cloud Storage, Azure or MinIO, "
    "or a local directory."
)
"""The remedy where a store cannot have a database."""
_NOT_IMPLEMENTED = 501
_CREDENTIAL_SERVICES = ("//169.254.", "//metadata.google.internal", "//metadata/computeMetadata")  # of instances
_REMEDIES = {
    301: "Set AWS_REGION to the region of the bucket.",
    400: "Check the name of the bucket, its region (AWS_REGION) and the endpoint.",
    401: _CREDENTIALS,
    403: _CREDENTIALS,
    404: "Create the bucket first, or check its name.",
    507: "Free some space in the store, and run the same command again.",
}


class ShortBodyError(Exception):
    """An answer ended before all of its bytes had arrived."""


def status_of(error: Exception) -> int | None:
    """The HTTP status of the answer; None where none arrived."""
    match = _STATUS.search(str(error))
    return int(match[1]) if match else None


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    from obstore.exceptions import GenericError

    if isinstance(error, ShortBodyError) or _code_of(error) in _PASSING_CODE:
        return True
    status = status_of(error)
    if status in _PASSING_STATUS:
        return True
    if _is_of_credentials(error):
        return False  # obstore has asked several times
    return isinstance(error, GenericError) and (status is None or (status >= 500 and status != _NOT_IMPLEMENTED))


def store_error(error: Exception, where: str) -> RetroDBError:
    """The error for a request that failed, and is not tried again."""
    status, code = status_of(error), _code_of(error)
    if _is_of_credentials(error):
        return RetroDBError("no credentials for the object store were found", where=where, remedy=_CREDENTIALS)
    if code == "NoSuchBucket":
        return RetroDBError("there is no such bucket", where=where, remedy=_REMEDIES[404])
    if status == _NOT_IMPLEMENTED:
        what = "this object store cannot have a database: it answered 501 to a request that it does not know"
        return RetroDBError(what, where=where, remedy=NEEDED_STORE)
    if status is not None:
        what = f"the object store answered {status}" + (f" ({code})" if code else "")
        return RetroDBError(what, where=where, remedy=_REMEDIES.get(status, _RETRY))
    return RetroDBError(_reason(error), where=where, remedy=_RETRY)


def is_missing_bucket(error: Exception) -> bool:
    """Whether an object is missing because its bucket is."""
    return _code_of(error) == "NoSuchBucket"


def _is_of_credentials(error: Exception) -> bool:
    return any(service in str(error) for service in _CREDENTIAL_SERVICES)


def _code_of(error: Exception) -> str:
    match = _CODE.search(str(error))
    return match[1] if match else ""


def _reason(error: Exception) -> str:
    text = str(error).lower().partition("debug source")[0]
    if "timed out" in text:
        return "the object store did not answer in time"
    if isinstance(error, ShortBodyError) or "body error" in text:
        return "the object store sent too few bytes"
    if "sending request" in text:
        return "no connection to the object store"
    return "the request to the object store failed"
