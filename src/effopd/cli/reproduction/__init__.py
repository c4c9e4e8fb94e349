"""The paper's figures and tables in the tiny world: training, measuring, and writing them down."""
