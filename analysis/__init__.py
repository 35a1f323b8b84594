"""Learning curves of several runs beside each other: reading, aggregating, drawing, reporting."""
