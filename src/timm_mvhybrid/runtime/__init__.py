"""What every room stands on: one base of errors, and files that are whole or absent. Needs Python alone."""
