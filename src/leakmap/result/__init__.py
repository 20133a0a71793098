"""What an audit comes to: the typed content of result.json, its schema, and what studies compute from it."""
