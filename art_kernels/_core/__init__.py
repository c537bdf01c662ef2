"""Infrastructure shared by the operations: backend registry, argument checks, dtypes, kernel launches, operators."""
