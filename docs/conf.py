"""The handbook's settings. `make docs` builds it from what is installed, without a network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

import kfac_lab

# seconds for grammars that jsonschema, which myst_nb imports, does without (tests/grammars.py)
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

project = "kfac_lab"
author = "the kfac_lab authors"
copyright = "the kfac_lab authors, MIT"
version = release = kfac_lab.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    # this folder's own, one idea each
    "gathered",  # notebooks and pages that stand elsewhere in the tree
    "mathml",  # formulas without a script
    "listing",  # what the rest are made of
    "public",  # every public name of a module
    "parts",  # the registry as tables
    "hooks",  # the hook specifications
    "laws",  # the conformance kit
    "variables",  # environment variables
    "commands",  # the command line
]
exclude_patterns = ["_build", "extensions"]
nitpicky = False
suppress_warnings = ["config.cache"]

# ---- Markdown and notebooks: shown as they were executed ---------------------------------------
nb_execution_mode = "off"
nb_merge_streams = True  # one box for what a cell prints, however often it flushed
nb_ipywidgets_js = {}  # nothing from a network; a panel is shown as its text
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3

# ---- docstrings ----------------------------------------------------------------------------------
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

# ---- pages ---------------------------------------------------------------------------------------
html_theme = "pydata_sphinx_theme"
html_math_renderer = "mathml"
html_title = "kfac_lab"
html_static_path = ["static"]
html_css_files = ["handbook.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
}
html_sidebars = {"index": []}
