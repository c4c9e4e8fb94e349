"""Tables, figures and a report page, drawn from run directories alone.

Nothing here runs a model: a figure can be redrawn years later, on a machine without PyTorch.
"""
