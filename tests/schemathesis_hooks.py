"""What schemathesis has to know of our descriptions: bodies that are bytes.

Its workers parse Python at once, which loses count of the depth in CPython 3.11
("AST constructor recursion depth mismatch"): one at a time here.
"""

import ast
import threading

import schemathesis

ONE_AT_A_TIME = threading.Lock()
PARSE = ast.parse


def parse(*arguments, **options):
    with ONE_AT_A_TIME:
        return PARSE(*arguments, **options)


ast.parse = parse


@schemathesis.serializer("application/x-tar", "application/zstd")
def binary(context, value):
    value = getattr(value, "data", value)
    return value if isinstance(value, bytes) else str(value).encode()
