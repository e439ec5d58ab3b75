"""Settings of the documentation site: `make docs` builds it with warnings as errors."""

import os
from types import FunctionType

from pydantic import BaseModel
from sphinx.application import Sphinx

import shoal

project = "Shoal"
author = "The Shoal authors"
copyright = "2026, The Shoal authors"
version = release = shoal.__version__

extensions = ["myst_parser", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "api/generated/modules.rst"]
html_theme = "furo"
html_title = f"Shoal {release}"

# A page per package is written from the docstrings at every build: the list of modules stands nowhere else.
# Sphinx's extension reads the options of such a page from the environment alone.
os.environ["SPHINX_APIDOC_OPTIONS"] = "members,show-inheritance"
apidoc_modules = [
    {
        "path": "../shoal",
        "destination": "api/generated",
        "exclude_patterns": ["../shoal/registry/migrations"],
        "module_first": True,
        "max_depth": 2,
    }
]

default_role = "code"  # `name` in a docstring is code
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
# ignore-module-all: a name is documented where it is defined, once.
autodoc_default_options = {
    "members": True,
    "ignore-module-all": True,
    "show-inheritance": True,
    "exclude-members": "model_config",
}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# The type `bytes` in a signature and the attributes of that name are told apart by nothing.
suppress_warnings = ["ref.python"]


def add_field_help(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """A config's field says what it is once, in `Field(description=...)`: show that as its attributes."""
    if not (isinstance(obj, type) and issubclass(obj, BaseModel)):
        return
    own = obj.__dict__.get("__annotations__", {})
    lines.extend(["", "Fields:", ""])
    for field, info in obj.model_fields.items():
        if field in own:
            lines.append(f"* `{field}` = `{info.default!r}`: {info.description}")
    lines.append("")


def skip_defaults(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """A function that is the default of a dataclass's field is no method: its class has said what it is."""
    default = what == "class" and isinstance(obj, FunctionType) and "." not in obj.__qualname__
    return True if default else None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-skip-member", skip_defaults)
    app.connect("autodoc-process-docstring", add_field_help)
