"""The grader: a trusted side that knows tasks, oracles and seeds, and workers in a sandbox that know a student's code alone.

Values cross the border, verdicts do not: the worker computes, the trusted side compares. Nothing of a submission is imported,
unpickled or evaluated on the trusted side.
"""
