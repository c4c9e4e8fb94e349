"""The paper's figures and tables in the tiny world: training, measuring, and the page of claims."""
