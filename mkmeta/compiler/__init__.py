"""From a manifest to outputs: `plan` decides what a layer holds, sinks write it."""
