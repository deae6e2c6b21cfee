"""From patches to losses: crops, colours, masks; student and teacher, heads, DINO, iBOT, KoLeo, Sinkhorn."""
