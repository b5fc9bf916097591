"""The course: twelve notebook modules whose tasks check themselves, and how they are made and proved.

In a notebook: ``from labkit.course import check``, then ``check("m02.q1")``.
"""

from labkit.course.checking import check

__all__ = ["check"]
