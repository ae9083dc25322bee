"""Pictures of an index's rows: from files, tar shards or URLs, each as if it came from a foe."""
