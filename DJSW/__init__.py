"""The commands and their tables; a mistake in a table is reported as one sentence."""

import sys
import traceback
from importlib import import_module

__version__ = "1.0.0"

try:
    import_module("DJSW.pipelines")
    import_module("DJSW.recipes")
except Exception as error:  # whatever a mistake raises
    frames = traceback.extract_tb(error.__traceback__)
    place = next(frame for frame in reversed(frames) if frame.filename.endswith(".py"))
    file, line, message = place.filename, place.lineno, str(error)
    if isinstance(error, SyntaxError):
        file, line, message = str(error.filename), error.lineno, error.msg
    print(f"error: {file}, line {line}: {type(error).__name__}: {message}", file=sys.stderr)
    raise SystemExit(2) from None
