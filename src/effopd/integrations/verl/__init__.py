"""The search inside verl, see docs/verl.md. Importing this package does not import verl."""
