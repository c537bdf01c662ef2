"""Rules of positive pairs for tests, made in a module as they have to be. An id is class * 1000 + video * 10 + view."""

from art_kernels import positive_rule


@positive_rule
def same_class_other_video(anchor, candidate):
    return (anchor // 1000 == candidate // 1000) & ~(anchor // 10 == candidate // 10)


@positive_rule
def next_in_time(anchor, candidate):
    return candidate - anchor == 1
