"""Where a model runs when nodes are slow, busy or gone: the router, its simulator, and a cluster on Ray."""
