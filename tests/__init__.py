"""The tests.

Python keeps what it has compiled, also where the environment says that it must not, as that of
many images does: the tests start a hundred processes, and each would compile the SDKs anew.
"""

import os
import sys

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
