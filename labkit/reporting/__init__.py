"""Tables, plots and pages that show what happened."""
