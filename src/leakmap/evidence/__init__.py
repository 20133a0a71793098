"""The evidence bundle: what an institution files about an audit."""
