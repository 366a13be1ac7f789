"""Operations on recorded trees: comparing, merging, pruning."""
