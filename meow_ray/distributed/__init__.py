"""Everything that runs on Ray, except for training: the cluster, placement, progress, actor pools."""
