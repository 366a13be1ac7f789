"""Whether layers and volumes still are what a manifest says."""
