"""What a person reads: tables of scores, a walk through the eight steps, a doctor's findings (`doctor/`).

The command line calls it, no room does.
"""

from stepclr.report.scores import loading_snippet, score_table
from stepclr.report.walk import STEPS, Walk

__all__ = ["STEPS", "Walk", "loading_snippet", "score_table"]
