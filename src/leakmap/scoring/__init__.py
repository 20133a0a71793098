"""How much leaked: metrics, the line-up, floors, intervals and the verdict."""
