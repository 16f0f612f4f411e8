"""The site: ``sphinx-build -W -c docs . site`` from the root of a checkout."""

from importlib.metadata import version as version_of

project = "rgo_jax"
author = "rgo_jax contributors"
release = version = version_of("rgo_jax")

# Pages lie where they are read in a checkout too, so that their links work in both.
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/*.md",
    "notebooks/*.ipynb",
    "benchmarks/results/**.md",
]
# Leads from the site's address to its first page.
html_extra_path = ["site_root"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header"
]  # a notebook's or a table's page may begin below the first level

# Notebooks are stripped in git: their outputs are those of this build.
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

# Single backticks are references in docstrings, and code where there is nothing to refer to.
default_role = "py:obj"
autodoc_member_order = "groupwise"
autodoc_typehints = "none"  # they are in the text, with shapes and units
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of a NamedTuple are documented already
napoleon_custom_sections = [("Warns", "params_style")]

html_theme = "furo"
html_title = "rgo_jax"
