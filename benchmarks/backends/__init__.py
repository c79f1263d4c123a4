"""Who answers for a model: a child process here, a Dask cluster's workers, or a server."""
