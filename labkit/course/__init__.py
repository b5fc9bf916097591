"""The course as a student has it: a folder of notebooks."""
