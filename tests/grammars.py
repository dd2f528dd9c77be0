"""Leaves out the grammars that jsonschema builds when nbformat imports it: seconds a process.

They are rfc3987-syntax's, 38 of them, for addresses in other scripts than Latin; jsonschema checks
no such address where they are not there, and a notebook has none. A session that loads nbval has to
load this before it: ``pytest -p tests.grammars --nbval``.
"""

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
