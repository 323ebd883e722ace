"""Grammar errors of English texts: LanguageTool over HTTP, supervised, or a few rules as an offline stand-in."""

from .checker import BACKENDS, make_checker
from .matches import Checker, GrammarServiceError, Match

__all__ = ["BACKENDS", "Checker", "GrammarServiceError", "Match", "make_checker"]
