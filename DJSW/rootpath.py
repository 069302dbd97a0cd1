"""Imported first by a command that is run as a script (``python DJSW/main.py``).

Python then looks for modules in ``DJSW/``, where ``evaluate.py`` hides other packages of that name
and where ``DJSW.train`` would load a second time as ``train``. The repository root takes its place.
"""

import sys
from pathlib import Path

_folder = Path(__file__).resolve().parent
sys.path[:] = [str(_folder.parent), *(p for p in sys.path if Path(p).resolve() != _folder)]
