"""What runs on Ray, except training: the cluster, placement, progress, pools of actors."""
