"""How long a server asks to be left alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER = 120.0  # seconds


def retry_after(headers: Mapping[str, str], now: float, longest: float = MAX_RETRY_AFTER) -> float | None:
    """Seconds that a server asks to wait, at most `longest`; None if it asks for nothing readable.

    headers: with lower-case names or regardless of case. now: seconds since the epoch, for a header that is a date.
    """
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):  # the first is OpenAI's own
        try:
            seconds = float(headers.get(name) or "nan") / unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(headers[name]).timestamp() - now
            except (ValueError, OverflowError):
                continue
        if not math.isnan(seconds):
            return min(max(seconds, 0.0), longest)
    return None
