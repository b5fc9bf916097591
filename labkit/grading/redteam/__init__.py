"""Our own hostile, broken and odd submissions, and what runs them against the grader on the machine at hand.

`labkit.grading.redteam.catalogue.ATTACKS` lists them; `labkit.grading.redteam.runner.run` says for each what happened.
"""
