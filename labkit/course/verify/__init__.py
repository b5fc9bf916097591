"""Proves that the course is sound: blanks fail, solutions pass, mistakes are recognised, mutants are caught, nothing leaks."""
