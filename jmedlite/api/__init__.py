"""What the commands do, for Python too: find the inputs, plan, run, leave manifests."""
