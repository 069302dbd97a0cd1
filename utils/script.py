"""Imported first by a command that is run as a script, such as ``python DJSW/main.py``.

Python looks for modules in the script's folder, where ``DJSW/evaluate.py`` hides other packages of
that name and where ``DJSW.train`` would load a second time as ``train``. The script has put the
repository root first; here its own folder goes.
"""

import sys
from pathlib import Path

_folder = Path(sys.argv[0]).resolve().parent
sys.path[1:] = [entry for entry in sys.path[1:] if Path(entry).resolve() != _folder]
