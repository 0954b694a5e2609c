"""What schemathesis has to know of our descriptions: bodies that are bytes."""

import schemathesis


@schemathesis.serializer("application/x-tar", "application/zstd")
def binary(context, value):
    value = getattr(value, "data", value)
    return value if isinstance(value, bytes) else str(value).encode()
