"""Studies: many audits, the product of axes, run wherever there is room and resumed by identity."""
